// The tiles of the temporal penalty: which elements a thread works on, their loads, stores and
// weights. Layer: cuda.
#pragma once

#include "core/temporal.h"
#include "cuda/launch.cuh"

namespace actreg {
namespace cuda {

constexpr int kSteps = 8;  // vectors of a thread in one tile; not tuned on a GPU

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

}  // namespace cuda
}  // namespace actreg
