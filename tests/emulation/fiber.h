// A fiber: a function with its own stack. resume() runs it until it pauses or ends.
#pragma once

#include <setjmp.h>
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
    getcontext(&here_.context);
    here_.context.uc_stack.ss_sp = stack_.get();
    here_.context.uc_stack.ss_size = kBytes;
    here_.context.uc_link = nullptr;
    makecontext(&here_.context, function, 0);
    here_.has_begun = false;
  }

  void resume() {
    void* saved = nullptr;
    start_switch(&saved, stack_.get(), kBytes);
    change(caller(), here_);
    finish_switch(saved, nullptr, nullptr);
  }

  // The function itself calls begun() first, pause() to return to its caller, and end() last.
  static void begun() { finish_switch(nullptr, &callers_stack(), &callers_bytes()); }
  void pause() {
    void* saved = nullptr;
    start_switch(&saved, callers_stack(), callers_bytes());
    change(here_, caller());
    finish_switch(saved, &callers_stack(), &callers_bytes());
  }
  void end() {
    start_switch(nullptr, callers_stack(), callers_bytes());
    change(here_, caller());
  }

 private:
  static constexpr std::size_t kBytes = 128 * 1024;

  struct Place {
    ucontext_t context;
    jmp_buf jump;
    bool has_begun = true;
  };

  // Continues at `to`, until somebody changes back to `from`. swapcontext asks the system for the
  // signal mask each time, which took a quarter of the time of the tests; _longjmp does not. The
  // address sanitizer follows only swapcontext.
  static void change(Place& from, Place& to) {
#if defined(__SANITIZE_ADDRESS__)
    swapcontext(&from.context, &to.context);
#else
    if (_setjmp(from.jump) != 0) return;
    if (to.has_begun) _longjmp(to.jump, 1);
    to.has_begun = true;
    setcontext(&to.context);
#endif
  }

  static Place& caller() {
    static Place place;
    return place;
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

  Place here_;
  std::unique_ptr<char[]> stack_{new char[kBytes]};
};

}  // namespace emulation
