// Backward: one launch reads x and dy and writes dx. Layer: cuda.
#pragma once

#include "core/operator.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace actreg {
namespace cuda {

// What a block needs beside the tile.
template <class E>
struct Gradient {
  using T = typename NumberOf<E>::type;
  const E* dy;  // null for zeros
  bool dy_is_scalar;
  Slopes<T, bool> slopes;
  bool dropped_count;

  // The thread's vectors `at`, `at` + 1, ... of dy, of the same element everywhere, or of zeros.
  template <bool kWhole, int kCount>
  __device__ void load_dy(const Tile<E>& tile, int at, Vector<E> (&to)[kCount]) const {
    if (dy && !dy_is_scalar) return load<kWhole>(tile, dy, at, to);
    Vector<E> same;
    fill(same, dy ? *dy : E{});
#pragma unroll
    for (Vector<E>& vector : to) vector = same;
  }
};

// The thread's vectors `at`, `at` + 1, ... of a tile.
template <bool kDrops, bool kWhole, class E, class Act>
__device__ void backward_vectors(const Act& act, const Task& task, const Dropout& dropout,
                                 const Gradient<E>& gradient, const Tile<E>& tile, int at) {
  using T = typename NumberOf<E>::type;
  constexpr int kCount = kVectorsAtOnce<E, kWhole>;
  const T s(dropout.scale);
  Vector<E> x[kCount], dy[kCount];
  load<kWhole>(tile, static_cast<const E*>(task.x), at, x);
  gradient.template load_dy<kWhole>(tile, at, dy);
  RandomBits<E> random[kCount];
  if constexpr (kDrops) draw(tile, dropout, at, random);
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int k = 0; k < Vector<E>::kElements; k += 2) {
      T dx[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const T in = x[j].get(k + i), dy_i = dy[j].get(k + i);
        if constexpr (kDrops) {
          const bool keep = random[j].is_below(dropout.threshold, k + i);
          dx[i] = backward(act, in, dy_i, keep, gradient.dropped_count, s, gradient.slopes);
        } else {
          dx[i] = backward(act, in, dy_i, Always{}, Always{}, s, gradient.slopes);
        }
      }
      x[j].set(k, dx);
    }
  }
  store<kWhole>(tile, static_cast<E*>(task.out), at, x);
}

template <class E>
__device__ Gradient<E> gradient_of(const Task& task, const typename NumberOf<E>::Sum* dpenalty,
                                   bool dy_is_scalar) {
  using T = typename NumberOf<E>::type;
  const PenaltySums<double> c = task.penalty.slopes(dpenalty);
  return {static_cast<const E*>(task.dy),
          dy_is_scalar,
          {T(c.l1), T(2 * c.l2), c.l2 != 0},
          task.counted == kKeepAll};
}

template <bool kDrops, class E, class Act>
__global__ void __launch_bounds__(kThreads, kMinBlocks<E, false>)
    backward_kernel(const Act act, const Task task, const int64_t n, const bool is_aligned,
                    const RandomState random, const typename NumberOf<E>::Sum* dpenalty,
                    const bool dy_is_scalar) {
  const Dropout dropout = drawn(task.dropout, random);
  const Gradient<E> gradient = gradient_of<E>(task, dpenalty, dy_is_scalar);
  const int64_t tiles = tiles_of<E>(n);
#pragma unroll 1
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile<E> tile(index, n, is_aligned);
    for_each_step(tile, [&](auto whole, int at) {
      backward_vectors<kDrops, decltype(whole)::value>(act, task, dropout, gradient, tile, at);
    });
  }
}

template <class E>
cudaError_t backward_of(const Problem& problem, const Launch& launch, const RandomState& random,
                        const void* dpenalty, bool dy_is_scalar) {
  const bool is_aligned =
      are_aligned({problem.x, problem.out, dy_is_scalar ? nullptr : problem.dy});
  cudaError_t error = cudaSuccess;
  visit_of_x(
      [&](auto act) {
        error = dispatch<decltype(act), E>(problem, [&](auto drops) {
          return run(backward_kernel<decltype(drops)::value, E, decltype(act)>,
                     tiles_of<E>(launch.n), launch, act, static_cast<const Task&>(problem),
                     launch.n, is_aligned, random,
                     static_cast<const typename NumberOf<E>::Sum*>(dpenalty), dy_is_scalar);
        });
      },
      problem);
  return error;
}

}  // namespace cuda
}  // namespace actreg
