// See memory.h.
#include "memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/kernels.h"

// The kernels' __shared__ variables: cuda_runtime.h defines __shared__ as extern.
namespace actreg {
namespace cuda {

alignas(16) double sums[2][kThreads];
bool is_last;
alignas(16) char buffer[16 * kThreads];

}  // namespace cuda
}  // namespace actreg

namespace emulation {
namespace {

const Span kShared[] = {{actreg::cuda::sums, sizeof actreg::cuda::sums},
                        {&actreg::cuda::is_last, sizeof actreg::cuda::is_last},
                        {actreg::cuda::buffer, sizeof actreg::cuda::buffer}};

char* live = nullptr;       // global memory as the running block sees it
std::vector<char> visible;  // global memory as a fence fetches it
std::vector<std::pair<std::size_t, char>> late;

// Calls write(place, byte) for each byte that the running block has changed since its last fence.
template <class Write>
void each_unsent(const Memory& memory, Write write) {
  constexpr std::size_t kChunk = 256;
  for (std::size_t begin = 0; begin < visible.size(); begin += kChunk) {
    const std::size_t end = std::min(begin + kChunk, visible.size());
    if (std::memcmp(live + begin, &memory.fetched[begin], end - begin) == 0) continue;
    for (std::size_t i = begin; i < end; ++i) {
      if (live[i] != memory.fetched[i]) write(i, live[i]);
    }
  }
}

template <class Copy>
void each_shared(Copy copy) {
  std::size_t place = 0;
  for (const Span& span : kShared) {
    copy(static_cast<char*>(span.at), place, span.bytes);
    place += span.bytes;
  }
}

}  // namespace

void begin_launch(Span global) {
  live = static_cast<char*>(global.at);
  visible.assign(live, live + global.bytes);
  late.clear();
}

Memory begin_block() {
  std::size_t bytes = 0;
  each_shared([&](char*, std::size_t, std::size_t size) { bytes += size; });
  return {std::vector<char>(bytes, '\xFF'), visible, visible};
}

void save(Memory& memory) {
  each_shared([&](const char* from, std::size_t place, std::size_t bytes) {
    std::memcpy(&memory.shared[place], from, bytes);
  });
  std::copy_n(live, visible.size(), memory.global.begin());
}

void restore(const Memory& memory) {
  each_shared([&](char* to, std::size_t place, std::size_t bytes) {
    std::memcpy(to, &memory.shared[place], bytes);
  });
  std::copy(memory.global.begin(), memory.global.end(), live);
}

void send_and_fetch(Memory& memory) {
  each_unsent(memory, [](std::size_t place, char byte) { visible[place] = byte; });
  memory.fetched = visible;
  std::copy(visible.begin(), visible.end(), live);
}

// An atomic: all blocks see the change at once. Returns the old value.
unsigned change_for_all(Memory& memory, unsigned* at, unsigned (*change)(unsigned, unsigned),
                        unsigned argument) {
  const auto place = reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(live);
  unsigned old = *at;
  if (place < visible.size()) std::memcpy(&old, &visible[place], sizeof old);
  *at = change(old, argument);
  if (place < visible.size()) {
    for (auto* copy : {&visible, &memory.fetched}) std::memcpy(&(*copy)[place], at, sizeof *at);
  }
  return old;
}

void end_block(const Memory& memory) {
  each_unsent(memory, [](std::size_t place, char byte) { late.emplace_back(place, byte); });
}

void end_launch() {
  for (const auto& [place, byte] : late) visible[place] = byte;
  std::copy(visible.begin(), visible.end(), live);
}

}  // namespace emulation
