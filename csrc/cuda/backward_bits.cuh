// Backward from bits: one launch reads dy and a bit for each element and writes dx. Layer: cuda.
// See Note [What is kept for backward].
#pragma once

#include "cuda/backward.cuh"

namespace actreg {
namespace cuda {

// The thread's vectors `at`, `at` + 1, ... of a tile.
template <bool kDrops, bool kWhole, class E>
__device__ void backward_bits_vectors(const TwoSlopes& slopes, const Task& task,
                                      const Dropout& dropout, const Gradient<E>& gradient,
                                      const Tile<E>& tile, int at) {
  using T = typename NumberOf<E>::type;
  constexpr int kCount = kVectorsAtOnce<E, kWhole>;
  const T s(dropout.scale);
  Vector<E> dy[kCount];
  unsigned on[kCount];
  gradient.template load_dy<kWhole>(tile, at, dy);
#pragma unroll
  for (int j = 0; j < kCount; ++j) on[j] = load_bits(tile, task.bits, at + j);
  RandomBits<E> random[kCount];
  if constexpr (kDrops) draw(tile, dropout, at, random);
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int k = 0; k < Vector<E>::kElements; k += 2) {
      T dx[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const T dy_i = dy[j].get(k + i), c1 = gradient.slopes.c1;
        const bool is_on = on[j] >> (k + i) & 1;
        if constexpr (kDrops) {
          const bool keep = random[j].is_below(dropout.threshold, k + i);
          dx[i] = backward_from_bit(is_on, slopes, dy_i, keep, gradient.dropped_count, s, c1);
        } else {
          dx[i] = backward_from_bit(is_on, slopes, dy_i, Always{}, Always{}, s, c1);
        }
      }
      dy[j].set(k, dx);
    }
  }
  store<kWhole>(tile, static_cast<E*>(task.out), at, dy);
}

// kDrops: the mask has to be drawn again.
template <bool kDrops, class E>
__global__ void __launch_bounds__(kThreads, kMinBlocks<E, false>)
    backward_bits_kernel(const TwoSlopes slopes, const Task task, const int64_t n,
                         const bool is_aligned, const RandomState random,
                         const typename NumberOf<E>::Sum* dpenalty, const bool dy_is_scalar) {
  const Dropout dropout = drawn(task.dropout, random);
  const Gradient<E> gradient = gradient_of<E>(task, dpenalty, dy_is_scalar);
  const int64_t tiles = tiles_of<E>(n);
#pragma unroll 1
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile<E> tile(index, n, is_aligned);
    for_each_step(tile, [&](auto whole, int at) {
      backward_bits_vectors<kDrops, decltype(whole)::value>(slopes, task, dropout, gradient, tile,
                                                            at);
    });
  }
}

template <class E>
cudaError_t backward_bits_of(const Problem& problem, const TwoSlopes& slopes, const Launch& launch,
                             const RandomState& random, const void* dpenalty, bool dy_is_scalar) {
  const bool is_aligned = are_aligned({problem.out, dy_is_scalar ? nullptr : problem.dy});
  return run(problem.draws_again() ? backward_bits_kernel<true, E> : backward_bits_kernel<false, E>,
             tiles_of<E>(launch.n), launch, slopes, static_cast<const Task&>(problem), launch.n,
             is_aligned, random, static_cast<const typename NumberOf<E>::Sum*>(dpenalty),
             dy_is_scalar);
}

}  // namespace cuda
}  // namespace actreg
