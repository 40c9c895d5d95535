// From a problem to a launch: the kernel made for it, and its grid. Layer: cuda.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "core/of_output.h"
#include "cuda/tile.cuh"

namespace actreg {
namespace cuda {

template <class E>
ACTREG_HD int64_t tiles_of(int64_t n) {
  return (n + Tile<E>::kElements - 1) / Tile<E>::kElements;
}
template <class E>
ACTREG_HD int parts_of(int64_t n) {
  const int64_t tiles = tiles_of<E>(n);
  return tiles < kMaxParts ? static_cast<int>(tiles) : kMaxParts;
}

__device__ inline Dropout drawn(Dropout dropout, const RandomState& random) {
  dropout.seed = random.seed_at ? static_cast<uint64_t>(*random.seed_at) : random.seed;
  dropout.offset = random.offset;
  if (random.offset_at) dropout.offset += static_cast<uint64_t>(*random.offset_at);
  return dropout;
}

inline bool are_aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

// Returns launch(std::true_type if there is dropout).
template <class Act, class E, class F>
cudaError_t dispatch(const Problem& problem, F launch) {
  if (problem.drops()) {
    if constexpr (kIsChosen<Act, E, true>) return launch(std::true_type{});
  } else {
    if constexpr (kIsChosen<Act, E, false>) return launch(std::false_type{});
  }
  return cudaErrorInvalidValue;
}

template <class... Parameters, class... Arguments>
cudaError_t run(void (*kernel)(Parameters...), int64_t blocks, const Launch& launch,
                const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  blocks = std::min<int64_t>(blocks, launch.max_blocks);
  config.gridDim = static_cast<unsigned>(std::max<int64_t>(blocks, 1));
  config.blockDim = kThreads;
  config.stream = launch.stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace cuda
}  // namespace actreg
