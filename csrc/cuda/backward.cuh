// Backward: one launch reads x and dy and writes dx. Layer: cuda.
#pragma once

#include "core/operator.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace actreg {
namespace cuda {

// The inputs of backward other than x.
template <class E>
struct Gradient {
  using T = typename NumberOf<E>::type;
  const E* dy;  // null for zeros
  bool dy_is_scalar;
  bool dropped_count;  // whether dropped elements count towards the penalty
  // The members below are 0 until read() loads them from device memory.
  Dropout dropout;
  T c1, c2_twice;
  bool l2_is_on;
  bool is_read;

  __device__ Gradient(const Task& task, bool dy_is_scalar)
      : dy(static_cast<const E*>(task.dy)),
        dy_is_scalar(dy_is_scalar),
        dropped_count(task.counted == kKeepAll),
        dropout(task.dropout),
        c1(0),
        c2_twice(0),
        l2_is_on(false),
        is_read(false) {}

  // Call this after the loads of a step have been issued: then the thread waits for all of them at
  // once. Only the first call reads.
  template <bool kDraws>
  __device__ void read(const Task& task, const RandomState& random,
                       const typename NumberOf<E>::Sum* dpenalty) {
    if (is_read) return;
    is_read = true;
    if constexpr (kDraws) dropout = drawn(task.dropout, random);
    const PenaltySums<double> c = task.penalty.slopes(dpenalty);
    c1 = T(c.l1), c2_twice = T(2 * c.l2), l2_is_on = c.l2 != 0;
  }

  // Loads the thread's vectors `at`, `at` + 1, ... of dy. All elements are *dy if dy_is_scalar, and
  // 0 if dy is null.
  template <bool kWhole, int kCount>
  __device__ void load_dy(const Tile<E>& tile, int at, Vector<E> (&to)[kCount]) const {
    if (dy && !dy_is_scalar) return load<kWhole>(tile, dy, at, to);
    Vector<E> same;
    fill(same, dy ? *dy : E{});
#pragma unroll
    for (Vector<E>& vector : to) vector = same;
  }
};

// Replaces x by dx.
template <bool kDrops, class E, class Act, int kCount, class IsOn, class Counts>
__device__ void to_dx(const Act& act, const Gradient<E>& gradient, IsOn l2_is_on,
                      Counts dropped_count, const RandomBits<E> (&random)[kCount],
                      const Vector<E> (&dy)[kCount], Vector<E> (&x)[kCount]) {
  using T = typename NumberOf<E>::type;
  const T s(gradient.dropout.scale);
  const Slopes<T, bool> slopes{gradient.c1, gradient.c2_twice, l2_is_on};
  transform(x, [&](int j, int k, T in) {
    const T dy_k = dy[j].get(k);
    const auto keep = random[j].template keep<kDrops>(gradient.dropout, k);
    return backward(act, in, dy_k, keep, bool{dropped_count}, s, slopes);
  });
}

template <bool kDrops, class E, class Act>
__global__ void __launch_bounds__(kThreads, kMinBlocks<E, false, kDrops>)
    backward_kernel(const Act act, const Task task, const int64_t n, const bool is_aligned,
                    const RandomState random, const typename NumberOf<E>::Sum* dpenalty,
                    const bool dy_is_scalar) {
  Gradient<E> gradient(task, dy_is_scalar);
  const int64_t elements = Tile<E>::elements_of(n);
#pragma unroll 1
  for (int64_t begin = blockIdx.x * elements; begin < n; begin += gridDim.x * elements) {
    const Tile<E> tile(begin, n, is_aligned);
    for_each_step<false>(tile, [&](auto whole, int at) {
      constexpr bool kWhole = decltype(whole)::value;
      constexpr int kCount = kVectorsAtOnce<E, false, kWhole>;
      Vector<E> x[kCount], dy[kCount];
      load<kWhole>(tile, static_cast<const E*>(task.x), at, x);
      gradient.template load_dy<kWhole>(tile, at, dy);
      gradient.template read<kDrops>(task, random, dpenalty);
      RandomBits<E> bits[kCount];
      if constexpr (kDrops) draw(tile, gradient.dropout, at, bits);
      with_flag<kWhole>(gradient.l2_is_on, [&](auto l2_is_on) {
        with_flag<kWhole && kDrops>(gradient.dropped_count, [&](auto dropped_count) {
          to_dx<kDrops>(act, gradient, l2_is_on, dropped_count, bits, dy, x);
          store<kWhole>(tile, static_cast<E*>(task.out), at, x);
        });
      });
    });
  }
}

template <class E>
cudaError_t KernelsOf<E>::backward(const Problem& problem, const Launch& launch,
                                   const RandomState& random, const void* dpenalty,
                                   bool dy_is_scalar) {
  const bool is_aligned =
      are_aligned({problem.x, problem.out, dy_is_scalar ? nullptr : problem.dy});
  cudaError_t error = cudaSuccess;
  visit_of_x(
      [&](auto act) {
        error = dispatch<decltype(act), E>(problem, [&](auto drops) {
          return run<backward_kernel<decltype(drops)::value, E, decltype(act)>>(
              tiles_of<E>(launch.n), launch, act, static_cast<const Task&>(problem), launch.n,
              is_aligned, random, static_cast<const typename NumberOf<E>::Sum*>(dpenalty),
              dy_is_scalar);
        });
      },
      problem);
  return error;
}

}  // namespace cuda
}  // namespace actreg
