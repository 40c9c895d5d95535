// The temporal penalty: one launch reads h and writes the sum, one reads h and writes dh.
// Layer: cuda.
#include "core/registry.h"
#include "cuda/launch.cuh"
#include "cuda/reduction.cuh"
#include "cuda/temporal.h"

namespace actreg {
namespace cuda {
namespace {

constexpr int kSteps = 8;  // vectors of a thread in one tile

template <class E>
constexpr int kWidth = Vector<E>::kElements;
template <class E>
using Real = typename NumberOf<E>::Sum;

// Note [Wide steps on CUDA]
// If a time step has at least as many elements as the vectors of a block, it is wide. Then a thread
// takes vectors of kSteps consecutive time steps, so that both elements of most pairs are in its
// registers. A tile is kSteps steps of such vectors. Tiles with consecutive numbers are consecutive
// in time, so they run at about the same time, and what two of them read comes from the cache.
// If a time step is not wide, a tile is consecutive in memory, and most pairs are inside of a tile.
template <class E>
struct Tiles {
  static constexpr int64_t kSpan = int64_t{kThreads} * kWidth<E>;
  Temporal task;
  bool is_wide, is_aligned, pairs_are_aligned;
  int64_t blocks, panels, count;

  explicit Tiles(const Temporal& given) : task(given), is_wide(given.inner >= kSpan) {
    const bool steps_are_aligned = task.inner % kWidth<E> == 0;
    is_aligned = are_aligned({task.h, task.dh}) && (!is_wide || steps_are_aligned);
    pairs_are_aligned = is_aligned && steps_are_aligned;
    blocks = (task.time + kSteps - 1) / kSteps;
    panels = (task.inner + kSpan - 1) / kSpan;
    count = is_wide ? task.outer * blocks * panels
                    : (task.size() + kSteps * kSpan - 1) / (kSteps * kSpan);
  }
};

// The vectors of one thread in one tile: vector r begins at element first + r * step.
template <class E>
struct Vectors {
  int64_t first, step;
  int64_t steps = 0;       // a wide tile ends after this many time steps
  int64_t wide_valid = 0;  // in a wide tile, the elements of a vector that belong to the time step
  bool is_plain;           // all pairs that begin in this tile exist and have weight 1

  __device__ Vectors(const Tiles<E>& tiles, int64_t tile) {
    const Temporal& task = tiles.task;
    const int64_t mine = int64_t{threadIdx.x} * kWidth<E>;
    if (tiles.is_wide) {
      const int64_t outer = tile / tiles.blocks / tiles.panels;
      const int64_t time = tile % tiles.blocks * kSteps;
      const int64_t column = tile / tiles.blocks % tiles.panels * Tiles<E>::kSpan + mine;
      first = (outer * task.time + time) * task.inner + column;
      step = task.inner;
      steps = task.time - time;
      wide_valid = task.inner - column;
      is_plain = !task.weight && steps > kSteps && wide_valid >= kWidth<E>;
    } else {
      const int64_t begin = tile * kSteps * Tiles<E>::kSpan;
      first = begin + mine;
      step = Tiles<E>::kSpan;
      is_plain = !task.weight && begin % task.row() + kSteps * step <= task.pairs();
    }
  }

  // How many elements of vector r belong to the tile.
  template <bool kWide>
  __device__ int valid(const Temporal& task, int r) const {
    const int64_t left = !kWide ? task.size() - at(r) : r < steps ? wide_valid : 0;
    return left < 0 ? 0 : left < kWidth<E> ? static_cast<int>(left) : kWidth<E>;
  }
  __device__ int64_t at(int r) const { return first + r * step; }
};

// Loads `valid` elements of h, from element i on. The elements behind these, and those outside of
// h, are 0.
template <class E>
__device__ void load_vector(const Temporal& task, bool is_aligned, int64_t i, int valid,
                            Vector<E>& to) {
  const E* from = static_cast<const E*>(task.h) + i;
  const int64_t left = task.size() - i;
  if (is_aligned && valid == kWidth<E> && i >= 0 && left >= kWidth<E>) {
    to = *reinterpret_cast<const Vector<E>*>(from);
    return;
  }
  E element[kWidth<E>];
#pragma unroll
  for (int k = 0; k < kWidth<E>; ++k) {
    element[k] = k < valid && i + k >= 0 && k < left ? from[k] : E{};
  }
  memcpy(static_cast<void*>(&to), element, sizeof to);
}
template <class E>
__device__ void store_vector(const Temporal& task, bool is_aligned, int64_t i, int valid,
                             const Vector<E>& from) {
  E* to = static_cast<E*>(task.dh) + i;
  if (is_aligned && valid == kWidth<E>) {
    store_at_once(to, from);
    return;
  }
  E element[kWidth<E>];
  memcpy(element, &from, sizeof from);
#pragma unroll
  for (int k = 0; k < kWidth<E>; ++k) {
    if (k < valid) to[k] = element[k];
  }
}

// The weights of `valid` pairs, from pair i >= -inner on; 0 where there is no pair.
template <class E>
__device__ void load_weights(const Temporal& task, int64_t i, int valid, Real<E> (&to)[kWidth<E>]) {
  // The pairs of a vector have one weight if a run of equal weights is a multiple of a vector.
  const bool is_one = (task.weight ? task.channels : task.inner) % kWidth<E> == 0;
  const int64_t middle = task.inner / task.channels, row = task.row();
  int64_t outer = (i + row) / row - 1, at = (i + row) % row;
#pragma unroll
  for (int k = 0; k < kWidth<E>; ++k, ++at) {
    if (at == row) at = 0, ++outer;
    if (k > 0 && is_one) {
      to[k] = k < valid ? to[0] : 0;
      continue;
    }
    to[k] = k < valid && at < task.pairs();
    if (task.weight && to[k] != 0) {
      const Real<E>* weight = static_cast<const Real<E>*>(task.weight) +
                              outer / task.repeat * task.time * middle + at / task.channels;
      to[k] = weight[0] * weight[middle];
    }
  }
}

template <class E>
__device__ Real<E> number(const Vector<E>& vector, int k) {
  if constexpr (kIsHalf<E>) {
    return vector.get(k).value;
  } else {
    return vector.get(k);
  }
}

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
