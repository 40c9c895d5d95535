// Backward: one launch reads x and dy and writes dx. Layer: cuda.
#pragma once

#include "core/operator.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace actreg {
namespace cuda {

// dy of the tile: the task's, or the same element everywhere, or zeros for none.
template <class E>
__device__ void load_gradient(const Tile<E>& tile, const Task& task, bool is_scalar,
                              Vector<E> (&dy)[Tile<E>::kVectors]) {
  const E* from = static_cast<const E*>(task.dy);
  if (from && !is_scalar) return load(tile, from, dy);
  Vector<E> same;
  fill(same, from ? *from : E{});
#pragma unroll
  for (Vector<E>& vector : dy) vector = same;
}

template <bool kDrops, class E, class Act>
__global__ void __launch_bounds__(kThreads, kMinBlocks<E>)
    backward_kernel(const Act act, const Task task, const int64_t n, const bool is_aligned,
                    const RandomState random, const typename NumberOf<E>::Sum* dpenalty,
                    const bool dy_is_scalar) {
  using T = typename NumberOf<E>::type;
  const Dropout dropout = drawn(task.dropout, random);
  const T s(dropout.scale);
  const bool all_count = task.counted == kKeepAll;
  const PenaltySums<double> slopes = task.penalty.slopes(dpenalty);
  const Slopes<T, bool> c{T(slopes.l1), T(2 * slopes.l2), slopes.l2 != 0};
  const int64_t tiles = tiles_of<E>(n);
#pragma unroll 1
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile<E> tile(index, n, is_aligned);
    Vector<E> x[Tile<E>::kVectors], dy[Tile<E>::kVectors];
    load(tile, static_cast<const E*>(task.x), x);
    load_gradient(tile, task, dy_is_scalar, dy);
    RandomBits<E> bits[Tile<E>::kVectors];
    if constexpr (kDrops) draw(tile, dropout, bits);
#pragma unroll
    for (int j = 0; j < Tile<E>::kVectors; ++j) {
#pragma unroll
      for (int k = 0; k < Vector<E>::kElements; k += 2) {
        T dx[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const T in = x[j].get(k + i), gradient = dy[j].get(k + i);
          if constexpr (kDrops) {
            const bool keep = bits[j].is_below(dropout.threshold, k + i);
            dx[i] = backward(act, in, gradient, keep, all_count, s, c);
          } else {
            dx[i] = backward(act, in, gradient, Always{}, Always{}, s, c);
          }
        }
        x[j].set(k, dx);
      }
    }
    store(tile, static_cast<E*>(task.out), x);
  }
}

template <class E>
cudaError_t backward_of(const Problem& problem, const Launch& launch, const RandomState& random,
                        const void* dpenalty, bool dy_is_scalar) {
  const bool is_aligned =
      are_aligned({problem.x, problem.out, dy_is_scalar ? nullptr : problem.dy});
  return dispatch(problem, [&](auto act, auto drops) {
    return run(backward_kernel<decltype(drops)::value, E, decltype(act)>, tiles_of<E>(launch.n),
               launch, act, static_cast<const Task&>(problem), launch.n, is_aligned, random,
               static_cast<const typename NumberOf<E>::Sum*>(dpenalty), dy_is_scalar);
  });
}

}  // namespace cuda
}  // namespace actreg
