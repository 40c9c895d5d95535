// A function that runs on a stack of its own, until it pauses or ends; then its caller goes on.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

class Fiber {
 public:
  void begin(void (*function)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, function, 0);
  }

  void resume() {
    void* saved = nullptr;
    start_switch(&saved, stack_.get(), kBytes);
    swapcontext(&caller(), &context_);
    finish_switch(saved, nullptr, nullptr);
  }

  // To be called by the function: first thing, to pause, and last thing.
  static void begun() { finish_switch(nullptr, &callers_stack(), &callers_bytes()); }
  void pause() {
    void* saved = nullptr;
    start_switch(&saved, callers_stack(), callers_bytes());
    swapcontext(&context_, &caller());
    finish_switch(saved, &callers_stack(), &callers_bytes());
  }
  void end() {
    start_switch(nullptr, callers_stack(), callers_bytes());
    swapcontext(&context_, &caller());
  }

 private:
  static constexpr std::size_t kBytes = 128 * 1024;

  static ucontext_t& caller() {
    static ucontext_t context;
    return context;
  }
  static const void*& callers_stack() {
    static const void* stack = nullptr;
    return stack;
  }
  static std::size_t& callers_bytes() {
    static std::size_t bytes = 0;
    return bytes;
  }

  // The address sanitizer has to be told of each change of the stack.
  static void start_switch([[maybe_unused]] void** saved, [[maybe_unused]] const void* stack,
                           [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(saved, stack, bytes);
#endif
  }
  static void finish_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** stack,
                            [[maybe_unused]] std::size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(saved, stack, bytes);
#endif
  }

  ucontext_t context_;
  std::unique_ptr<char[]> stack_{new char[kBytes]};
};

}  // namespace emulation
