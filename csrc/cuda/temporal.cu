// The temporal penalty: one launch reads h and writes the sum, one reads h and writes dh.
// Layer: cuda.
#include "core/registry.h"
#include "cuda/launch.cuh"
#include "cuda/reduction.cuh"
#include "cuda/temporal.cuh"
#include "cuda/temporal.h"

namespace actreg {
namespace cuda {
namespace {

// How many vectors of h a thread loads before it waits for the first of them: the largest numbers
// without spills.
template <class E, bool kIsForward, bool kWide>
constexpr int kAtOnce = kWide && (kIsForward || sizeof(E) > 2) ? kSteps : kSteps / 2;

template <bool kWide, class E>
__device__ Real<E> add_vectors(const Tiles<E>& tiles, const Vectors<E>& vectors, int begin,
                               Real<E> sum) {
  constexpr int kCount = kAtOnce<E, true, kWide>;
  const Temporal& task = tiles.task;
  Vector<E> h[kCount], next[kCount];
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const int64_t i = vectors.at(begin + r);
    const int valid = vectors.template valid<kWide>(task, begin + r);
    load_vector(task, tiles.is_aligned, i, valid, h[r]);
    if (!kWide || r + 1 == kCount) {
      load_vector(task, tiles.pairs_are_aligned, i + task.inner, valid, next[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    Real<E> weight[kWidth<E>];
    if (vectors.is_plain) {
#pragma unroll
      for (Real<E>& one : weight) one = 1;
    } else {
      load_weights<E>(task, vectors.at(begin + r), vectors.template valid<kWide>(task, begin + r),
                      weight);
    }
    const Vector<E>& partner = kWide && r + 1 < kCount ? h[(r + 1) % kCount] : next[r];
#pragma unroll
    for (int k = 0; k < kWidth<E>; ++k) {
      sum = add_temporal(sum, weight[k], number<E>(h[r], k), number<E>(partner, k));
    }
  }
  return sum;
}

template <class E>
__global__ void __launch_bounds__(kThreads, 2)
    temporal_kernel(const Tiles<E> tiles, const int parts, void* sum, Workspace* workspace) {
#pragma unroll 1
  for (int part = blockIdx.x; part < parts; part += gridDim.x) {
    double mine = 0;
#pragma unroll 1
    for (int64_t tile = part; tile < tiles.count; tile += parts) {
      const Vectors<E> vectors(tiles, tile);
      Real<E> of_tile = 0;
      if (tiles.is_wide) {
        of_tile = add_vectors<true>(tiles, vectors, 0, of_tile);
      } else {
#pragma unroll 1
        for (int at = 0; at < kSteps; at += kAtOnce<E, true, false>) {
          of_tile = add_vectors<false>(tiles, vectors, at, of_tile);
        }
      }
      mine += of_tile;
    }
    const PenaltySums<double> all = block_sum({0, mine});
    if (threadIdx.x == 0) workspace->part[part] = all;
  }
  if (!is_last_block(&workspace->finished)) return;
  const PenaltySums<double> total = sum_of_parts(*workspace, parts);
  if (threadIdx.x == 0) *static_cast<Real<E>*>(sum) = static_cast<Real<E>>(total.l2);
}

template <bool kWide, class E>
__device__ void write_vectors(const Tiles<E>& tiles, const Vectors<E>& vectors, int begin,
                              Real<E> slope) {
  constexpr int kCount = kAtOnce<E, false, kWide>;
  const Temporal& task = tiles.task;
  Vector<E> h[kCount], previous[kCount], next[kCount];
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const int64_t i = vectors.at(begin + r);
    const int valid = vectors.template valid<kWide>(task, begin + r);
    if (!kWide || r == 0) {
      load_vector(task, tiles.pairs_are_aligned, i - task.inner, valid, previous[r]);
    }
    load_vector(task, tiles.is_aligned, i, valid, h[r]);
    if (!kWide || r + 1 == kCount) {
      load_vector(task, tiles.pairs_are_aligned, i + task.inner, valid, next[r]);
    }
  }
  Real<E> before[kWidth<E>], after[kWidth<E>];
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const int64_t i = vectors.at(begin + r);
    const int valid = vectors.template valid<kWide>(task, begin + r);
    if (!kWide || r == 0) load_weights<E>(task, i - task.inner, valid, before);
    load_weights<E>(task, i, valid, after);
    const Vector<E>& earlier = kWide && r > 0 ? h[(r + kCount - 1) % kCount] : previous[r];
    const Vector<E>& later = kWide && r + 1 < kCount ? h[(r + 1) % kCount] : next[r];
    Vector<E> dh;
#pragma unroll
    for (int k = 0; k < kWidth<E>; k += 2) {
      using T = typename NumberOf<E>::type;
      const auto at = [&](int k) {
        return T(temporal_gradient(slope, before[k], number<E>(earlier, k), number<E>(h[r], k),
                                   after[k], number<E>(later, k)));
      };
      const T pair[2] = {at(k), at(k + 1)};
      dh.set(k, pair);
    }
    store_vector(task, tiles.is_aligned, i, valid, dh);
#pragma unroll
    for (int k = 0; k < kWidth<E>; ++k) before[k] = after[k];
  }
}

template <class E>
__global__ void __launch_bounds__(kThreads, 2)
    temporal_backward_kernel(const Tiles<E> tiles, const Real<E>* dsum) {
  const Real<E> slope = 2 * *dsum;
#pragma unroll 1
  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const Vectors<E> vectors(tiles, tile);
    if (tiles.is_wide) {
#pragma unroll 1
      for (int at = 0; at < kSteps; at += kAtOnce<E, false, true>) {
        write_vectors<true>(tiles, vectors, at, slope);
      }
    } else {
#pragma unroll 1
      for (int at = 0; at < kSteps; at += kAtOnce<E, false, false>) {
        write_vectors<false>(tiles, vectors, at, slope);
      }
    }
  }
}

// Returns launch(element), with the element type of the task.
template <class F>
cudaError_t dispatch(const Temporal& task, F launch) {
  cudaError_t error = cudaSuccess;
  visit([&](auto element) { error = launch(element); }, task.element);
  return error;
}

}  // namespace

cudaError_t temporal(const Temporal& task, const Launch& launch, void* sum, Workspace* workspace) {
  return dispatch(task, [&](auto element) {
    using E = typename decltype(element)::type;
    const Tiles<E> tiles(task);
    const int parts = static_cast<int>(std::min<int64_t>(tiles.count, kMaxParts));
    return run<temporal_kernel<E>>(parts, launch, tiles, parts, sum, workspace);
  });
}

cudaError_t temporal_backward(const Temporal& task, const Launch& launch, const void* dsum) {
  return dispatch(task, [&](auto element) {
    using E = typename decltype(element)::type;
    const Tiles<E> tiles(task);
    return run<temporal_backward_kernel<E>>(tiles.count, launch, tiles,
                                            static_cast<const Real<E>*>(dsum));
  });
}

}  // namespace cuda
}  // namespace actreg
