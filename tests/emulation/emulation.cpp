// The emulation's scheduler: threads as fibers, barriers, shuffles; and the conversions of halves.
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

Settings settings;

namespace {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStackBytes = 128 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  enum { kRunnable, kAtWarpBarrier, kAtBlockBarrier, kDone } state;
  uint64_t brought[2];  // to the shuffles, by turns: a lane may be one ahead of its readers
  unsigned shuffles;
};

std::vector<Fiber> fibers;  // of the block that runs
Fiber* current = nullptr;
ucontext_t scheduler;
const std::function<void()>* running = nullptr;

// The address sanitizer has to be told of each change of the stack.
void start_switch([[maybe_unused]] void** saved, [[maybe_unused]] const void* stack,
                  [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(saved, stack, bytes);
#endif
}
const void* scheduler_stack = nullptr;
std::size_t scheduler_bytes = 0;
void finish_switch([[maybe_unused]] void* saved, [[maybe_unused]] bool from_scheduler) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, from_scheduler ? &scheduler_stack : nullptr,
                                  from_scheduler ? &scheduler_bytes : nullptr);
#endif
}

void begin_fiber() {
  finish_switch(nullptr, true);
  (*running)();
  current->state = Fiber::kDone;
  start_switch(nullptr, scheduler_stack, scheduler_bytes);
  swapcontext(&current->context, &scheduler);
}

void resume(unsigned thread) {
  current = &fibers[thread];
  threadIdx = thread;
  void* saved = nullptr;
  start_switch(&saved, current->stack.get(), kStackBytes);
  swapcontext(&scheduler, &current->context);
  finish_switch(saved, false);
}

void wait(decltype(Fiber::state) state) {
  current->state = state;
  void* saved = nullptr;
  start_switch(&saved, scheduler_stack, scheduler_bytes);
  swapcontext(&current->context, &scheduler);
  finish_switch(saved, true);
}

std::vector<unsigned> order_of(unsigned count, unsigned salt) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (settings.order == 1) std::reverse(order.begin(), order.end());
  if (settings.order > 1) {
    std::shuffle(order.begin(), order.end(), std::mt19937(settings.order + salt));
  }
  return order;
}

// Lets the threads [begin, end) go on if all of them wait there; those that have ended count as
// arrived at the block's barrier, as they do on a device.
void release(unsigned begin, unsigned end, decltype(Fiber::state) barrier) {
  for (unsigned thread = begin; thread < end; ++thread) {
    const auto state = fibers[thread].state;
    if (state != barrier && !(state == Fiber::kDone && barrier == Fiber::kAtBlockBarrier)) return;
  }
  for (unsigned thread = begin; thread < end; ++thread) {
    if (fibers[thread].state == barrier) fibers[thread].state = Fiber::kRunnable;
  }
}

void run_block(unsigned threads) {
  fibers.resize(std::max<std::size_t>(fibers.size(), threads));
  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber& fiber = fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    fiber.state = Fiber::kRunnable;
    fiber.shuffles = 0;
    makecontext(&fiber.context, begin_fiber, 0);
  }
  for (unsigned turn = 0;; ++turn) {
    bool any_ran = false, all_done = true;
    for (unsigned thread : order_of(threads, turn)) {
      if (fibers[thread].state == Fiber::kRunnable) {
        resume(thread);
        any_ran = true;
      }
      all_done &= fibers[thread].state == Fiber::kDone;
    }
    if (all_done) return;
    for (unsigned begin = 0; begin < threads; begin += kLanes) {
      release(begin, std::min(begin + kLanes, threads), Fiber::kAtWarpBarrier);
    }
    release(0, threads, Fiber::kAtBlockBarrier);
    if (!any_ran) {
      throw std::runtime_error("emulation: threads wait at a barrier that others do not reach");
    }
  }
}

}  // namespace

void wait_for_block() { wait(Fiber::kAtBlockBarrier); }
void wait_for_warp() { wait(Fiber::kAtWarpBarrier); }
int lane() { return static_cast<int>(threadIdx.x % kLanes); }

void expect_all(unsigned lanes) {
  if (lanes != ~0u) throw std::runtime_error("emulation: a shuffle by some lanes of a warp only");
}

uint64_t exchange(uint64_t value, int from) {
  const unsigned turn = current->shuffles++ % 2, first = threadIdx.x - lane();
  current->brought[turn] = value;
  wait_for_warp();
  return fibers[first + from].brought[turn];
}

void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  running = &kernel;
  gridDim = blocks;
  blockDim = threads;
  for (unsigned block : order_of(blocks, 0)) {
    blockIdx = block;
    run_block(threads);
  }
}

}  // namespace emulation

float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float sign = x.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? std::nanf("") : sign * INFINITY;
  return sign * std::ldexp(static_cast<float>(exponent ? fraction + 1024 : fraction),
                           (exponent ? exponent : 1) - 25);
}

// To nearest even.
__half __float2half_rn(float x) {
  const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7FFF};
  const float size = std::fabs(x);
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  if (exponent > 15) return {static_cast<unsigned short>(sign | 0x7C00)};
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  // 1024 units more than the format has at this exponent carry into the next one, and into infinity
  return {static_cast<unsigned short>(sign | ((exponent + 14) * 1024 + units))};
}

__nv_bfloat16 __float2bfloat16_rn(float x) {
  if (std::isnan(x)) return {0x7FFF};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
