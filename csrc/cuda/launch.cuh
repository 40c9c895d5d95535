// From a problem to a launch: picks the kernel and the grid. Layer: cuda.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "core/of_output.h"
#include "cuda/tile.cuh"

namespace actreg {
namespace cuda {

template <class E>
int64_t tiles_of(int64_t n) {
  return Tile<E>::are_large(n) ? (n + Tile<E>::kElements - 1) / Tile<E>::kElements
                               : (n + Tile<E>::kElementsOfSmall - 1) / Tile<E>::kElementsOfSmall;
}
template <class E>
int parts_of(int64_t n) {
  const int64_t tiles = tiles_of<E>(n);
  return tiles < kMaxParts ? static_cast<int>(tiles) : kMaxParts;
}

// `dropout` with the seed and offset of `random`.
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

// Returns launch(std::true_type) with dropout, launch(std::false_type) without.
template <class Act, class E, class F>
cudaError_t dispatch(const Problem& problem, F launch) {
  if (problem.drops()) {
    if constexpr (kIsChosen<Act, E, true>) return launch(std::true_type{});
  } else {
    if constexpr (kIsChosen<Act, E, false>) return launch(std::false_type{});
  }
  return cudaErrorInvalidValue;
}

// Sets *blocks to the number of blocks of the kernel that fit on one multiprocessor of the current
// device, whose number is `device`. The answer is cached for each kernel and device.
template <auto kKernel>
cudaError_t blocks_at_once(int device, int* blocks) {
  constexpr int kDevices = 32;  // devices with higher numbers are not cached
  static std::atomic<int> known[kDevices];
  const bool is_kept = device >= 0 && device < kDevices;
  *blocks = is_kept ? known[device].load(std::memory_order_relaxed) : 0;
  if (*blocks > 0) return cudaSuccess;
  const cudaError_t error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kKernel, kThreads, 0);
  if (error == cudaSuccess && is_kept) known[device].store(*blocks, std::memory_order_relaxed);
  return error;
}

// Launches one block for each of `blocks` pieces of work, but at most as many blocks as fit on the
// GPU at once. Then each block loops over several pieces, and pays for its start and end only once.
template <auto kKernel, class... Arguments>
cudaError_t run(int64_t blocks, const Launch& launch, const Arguments&... arguments) {
  int at_once = 0;
  const cudaError_t error = blocks_at_once<kKernel>(launch.device, &at_once);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config{};
  blocks = std::min(blocks, int64_t{launch.multiprocessors} * at_once);
  config.gridDim = static_cast<unsigned>(std::max<int64_t>(blocks, 1));
  config.blockDim = kThreads;
  config.stream = launch.stream;
  return cudaLaunchKernelEx(&config, kKernel, arguments...);
}

}  // namespace cuda
}  // namespace actreg
