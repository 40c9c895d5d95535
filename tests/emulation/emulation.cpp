// The emulation's scheduler: threads as fibers, blocks that take turns, barriers, shuffles.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"
#include "memory.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

Settings settings;

namespace {

constexpr unsigned kLanes = 32;
constexpr unsigned kBlocksAtOnce = 4;

struct Thread {
  Fiber fiber;
  enum { kRunnable, kAtWarpBarrier, kAtBlockBarrier, kDone } state;
  Place place;          // of the barrier where it waits
  uint64_t brought[2];  // values of the last two shuffles: a lane may be one shuffle ahead
  unsigned shuffles;
};

struct Block {
  unsigned index = 0, turns = 0;
  std::vector<Thread> threads;
  Memory memory;
};

Block slots[kBlocksAtOnce];  // the blocks that run side by side
Block* here = nullptr;       // the running block; `current` is its running thread
Thread* current = nullptr;
const std::function<void()>* running = nullptr;

void run_kernel() {
  Fiber::begun();
  (*running)();
  current->state = Thread::kDone;
  current->fiber.end();
}

// Ends the thread's turn.
void wait(decltype(Thread::state) state, Place place = {}) {
  current->state = state;
  current->place = place;
  current->fiber.pause();
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

std::string name(Place place) { return place.file + (":" + std::to_string(place.line)); }

// Lets the threads [begin, end) continue if all of them wait at `barrier`. As on a GPU, threads
// that have ended count as waiting at a block's barrier.
void release(Block& block, unsigned begin, unsigned end, decltype(Thread::state) barrier) {
  const Thread* first = nullptr;
  bool agree = true;
  for (unsigned i = begin; i < end; ++i) {
    const Thread& thread = block.threads[i];
    if (thread.state == Thread::kDone && barrier == Thread::kAtBlockBarrier) continue;
    if (thread.state != barrier) return;
    if (!first) first = &thread;
    agree &= thread.place.line == first->place.line &&
             !std::strcmp(thread.place.file, first->place.file);
  }
  if (!agree) {
    throw std::runtime_error("emulation: threads meet at different barriers, one of them at " +
                             name(first->place));
  }
  for (unsigned i = begin; i < end; ++i) {
    if (block.threads[i].state == barrier) block.threads[i].state = Thread::kRunnable;
  }
}

void begin(Block& block, unsigned index, unsigned threads) {
  block.index = index;
  block.turns = 0;
  block.memory = begin_block();
  block.threads.resize(threads);
  for (Thread& thread : block.threads) {
    thread.fiber.begin(run_kernel);
    thread.state = Thread::kRunnable;
    thread.shuffles = 0;
  }
}

void enter(Block& block) {
  if (here == &block) return;
  if (here) save(here->memory);
  restore(block.memory);
  here = &block;
  blockIdx = block.index;
}

// Runs each thread until it waits or ends. Returns whether all threads have ended.
bool take_turn(Block& block) {
  const unsigned threads = static_cast<unsigned>(block.threads.size());
  bool any_ran = false, all_done = true;
  for (unsigned thread : order_of(threads, block.turns++)) {
    current = &block.threads[thread];
    if (current->state == Thread::kRunnable) {
      threadIdx = thread;
      current->fiber.resume();
      any_ran = true;
    }
    all_done &= current->state == Thread::kDone;
  }
  if (all_done) return true;
  for (unsigned begin = 0; begin < threads; begin += kLanes) {
    release(block, begin, std::min(begin + kLanes, threads), Thread::kAtWarpBarrier);
  }
  release(block, 0, threads, Thread::kAtBlockBarrier);
  if (!any_ran) {
    throw std::runtime_error("emulation: threads wait at a barrier that others do not reach");
  }
  return false;
}

// The index, below `count`, of the block that takes the next turn.
std::size_t next_of(std::size_t count, std::mt19937& random) {
  if (settings.order < 2) return settings.order == 0 ? 0 : count - 1;
  return random() % count;
}

}  // namespace

void wait_for_block(Place place) { wait(Thread::kAtBlockBarrier, place); }
void wait_for_warp(Place place) { wait(Thread::kAtWarpBarrier, place); }
int lane() { return static_cast<int>(threadIdx.x % kLanes); }

void expect_all(unsigned lanes) {
  if (lanes != ~0u)
    throw std::runtime_error("emulation: only some lanes of a warp take part in a shuffle");
}

uint64_t exchange(uint64_t value, int from, Place place) {
  const unsigned turn = current->shuffles++ % 2, first = threadIdx.x - lane();
  current->brought[turn] = value;
  wait_for_warp(place);
  return here->threads[first + from].brought[turn];
}

void fence() {
  wait(Thread::kRunnable);  // other blocks may run before
  send_and_fetch(here->memory);
}

unsigned atomic(unsigned* at, unsigned (*change)(unsigned, unsigned), unsigned argument) {
  wait(Thread::kRunnable);
  return change_for_all(here->memory, at, change, argument);
}

void run(unsigned blocks, unsigned threads, Span between, const std::function<void()>& kernel) {
  running = &kernel;
  gridDim = blocks;
  blockDim = threads;
  here = nullptr;
  begin_launch(between);
  const unsigned fit = settings.multiprocessors * settings.threads_per_multiprocessor / threads;
  const std::vector<unsigned> order = order_of(blocks, 0);
  std::vector<Block*> alive, free;
  std::mt19937 random(settings.order);
  for (unsigned i = 0; i < std::clamp(fit, 1u, kBlocksAtOnce); ++i) free.push_back(&slots[i]);
  for (auto next = order.begin(); next != order.end() || !alive.empty();) {
    if (next != order.end() && !free.empty()) {
      alive.push_back(free.back());
      free.pop_back();
      begin(*alive.back(), *next++, threads);
      continue;
    }
    const std::size_t turn = next_of(alive.size(), random);
    enter(*alive[turn]);
    if (!take_turn(*alive[turn])) continue;
    end_block(here->memory);
    free.push_back(std::exchange(here, nullptr));
    alive.erase(alive.begin() + turn);
  }
  end_launch();
}

}  // namespace emulation
