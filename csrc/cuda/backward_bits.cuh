// Backward from bits: one launch reads dy and one bit per element and writes dx. Layer: cuda.
// See Note [What is kept for backward].
#pragma once

#include "cuda/backward.cuh"

namespace actreg {
namespace cuda {

// Replaces dy by dx. on[j] has the bits of vector j.
template <bool kDrops, class E, int kCount, class Counts>
__device__ void to_dx_from_bits(const TwoSlopes& slopes, const Gradient<E>& gradient,
                                Counts dropped_count, const RandomBits<E> (&random)[kCount],
                                const unsigned (&on)[kCount], Vector<E> (&dy)[kCount]) {
  using T = typename NumberOf<E>::type;
  const T s(gradient.dropout.scale), c1 = gradient.c1;
  transform(dy, [&](int j, int k, T dy_k) {
    const auto keep = random[j].template keep<kDrops>(gradient.dropout, k);
    const bool is_on = on[j] >> k & 1;
    return backward_from_bit(is_on, slopes, dy_k, keep, bool{dropped_count}, s, c1);
  });
}

// kDrops: the mask must be redrawn (Task::draws_again).
template <bool kDrops, class E>
__global__ void __launch_bounds__(kThreads, kMinBlocks<E, false, kDrops>)
    backward_bits_kernel(const TwoSlopes slopes, const Task task, const int64_t n,
                         const bool is_aligned, const RandomState random,
                         const typename NumberOf<E>::Sum* dpenalty, const bool dy_is_scalar) {
  Gradient<E> gradient(task, dy_is_scalar);
  const int64_t elements = Tile<E>::elements_of(n);
#pragma unroll 1
  for (int64_t begin = blockIdx.x * elements; begin < n; begin += gridDim.x * elements) {
    const Tile<E> tile(begin, n, is_aligned);
    for_each_step<false>(tile, [&](auto whole, int at) {
      constexpr bool kWhole = decltype(whole)::value;
      constexpr int kCount = kVectorsAtOnce<E, false, kWhole>;
      Vector<E> dy[kCount];
      unsigned on[kCount];
      gradient.template load_dy<kWhole>(tile, at, dy);
#pragma unroll
      for (int j = 0; j < kCount; ++j) on[j] = load_bits(tile, task.bits, at + j);
      gradient.template read<kDrops>(task, random, dpenalty);
      RandomBits<E> bits[kCount];
      if constexpr (kDrops) draw(tile, gradient.dropout, at, bits);
      with_flag<kWhole && kDrops>(gradient.dropped_count, [&](auto dropped_count) {
        to_dx_from_bits<kDrops>(slopes, gradient, dropped_count, bits, on, dy);
        store<kWhole>(tile, static_cast<E*>(task.out), at, dy);
      });
    });
  }
}

template <class E>
cudaError_t KernelsOf<E>::backward_bits(const Problem& problem, const TwoSlopes& slopes,
                                        const Launch& launch, const RandomState& random,
                                        const void* dpenalty, bool dy_is_scalar) {
  const bool is_aligned = are_aligned({problem.out, dy_is_scalar ? nullptr : problem.dy});
  const auto launch_kernel = [&](auto draws) {
    return run<backward_bits_kernel<decltype(draws)::value, E>>(
        tiles_of<E>(launch.n), launch, slopes, static_cast<const Task&>(problem), launch.n,
        is_aligned, random, static_cast<const typename NumberOf<E>::Sum*>(dpenalty), dy_is_scalar);
  };
  return problem.draws_again() ? launch_kernel(std::true_type{}) : launch_kernel(std::false_type{});
}

}  // namespace cuda
}  // namespace actreg
