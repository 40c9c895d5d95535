// Forward: one launch reads x and writes y and the finished penalty. Layer: cuda.
#pragma once

#include "core/kept.h"
#include "core/operator.h"
#include "cuda/launch.cuh"
#include "cuda/reduction.cuh"

namespace actreg {
namespace cuda {

// One thread's sums of one tile, for the penalty. See Note [The penalty's bits].
template <class T>
struct TileSums {
  T l1{0}, l2{0};

  __device__ void add(T t) {
    l1 += abs(t);
    l2 = add_square(t, l2);
  }
};

// Replaces x by y. counts(keep) tells whether an element counts towards the penalty.
template <bool kDrops, bool kWhole, class E, class Act, int kCount, class Counts, class Sums>
__device__ void to_y(const Act& act, const Dropout& dropout, const Tile<E>& tile, int at,
                     Counts counts, const RandomBits<E> (&random)[kCount], Vector<E> (&x)[kCount],
                     Sums& sums) {
  using T = typename NumberOf<E>::type;
  const T s(dropout.scale);
  transform(x, [&](int j, int k, T in) {
    const bool is_valid = kWhole || k < tile.valid(at + j);
    if constexpr (!kDrops) {
      return forward(act, in, Always{}, is_valid, s, sums);
    } else {
      const bool keep = random[j].is_below(dropout.threshold, k);
      return forward(act, in, keep, is_valid && counts(keep), s, sums);
    }
  });
}

// Writes the bits (Task::bits) of the thread's vectors.
template <bool kDrops, bool kWhole, class E, class Act, int kCount>
__device__ void mark(const Act& act, const Task& task, const Tile<E>& tile, int at,
                     const RandomBits<E> (&random)[kCount], const Vector<E> (&x)[kCount]) {
  using T = typename NumberOf<E>::type;
  const bool all = !kDrops || task.marked == kKeepAll;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const int valid = kWhole ? Vector<E>::kElements : tile.valid(at + j);
    unsigned on = 0;
#pragma unroll
    for (int k = 0; k < Vector<E>::kElements; ++k) {
      const bool is_marked = all || random[j].is_below(task.dropout.threshold, k);
      on |= unsigned{k < valid && is_marked && is_on(act, T(x[j].get(k)))} << k;
    }
    store_bits(tile, task.bits, at + j, on);
  }
}

// Calls ready() after the loads of a step have been issued. ready() sets `dropout`, which is read
// only afterwards.
template <bool kDrops, class E, class Act, class Ready>
__device__ PenaltySums<double> forward_tile(const Act& act, const Task& task,
                                            const Dropout& dropout, bool has_sums,
                                            const Tile<E>& tile, Ready ready) {
  TileSums<typename NumberOf<E>::type> sums;
  const bool all_count = !kDrops || task.counted == kKeepAll;
  for_each_step<true>(tile, [&](auto whole, int at) {
    constexpr bool kWhole = decltype(whole)::value;
    constexpr int kCount = kVectorsAtOnce<E, true, kWhole>;
    Vector<E> x[kCount];
    load<kWhole>(tile, static_cast<const E*>(task.x), at, x);
    ready();
    RandomBits<E> random[kCount];
    if constexpr (kDrops) draw(tile, dropout, at, random);
    if constexpr (kHasTwoSlopes<Act>) {
      if (task.bits) mark<kDrops, kWhole>(act, task, tile, at, random, x);
    }
    if (kWhole && !has_sums) {
      NoSums none;
      to_y<kDrops, kWhole>(act, dropout, tile, at, [](bool) { return false; }, random, x, none);
      store<kWhole>(tile, static_cast<E*>(task.out), at, x);
    } else {
      with_flag<kWhole && kDrops>(all_count, [&](auto all) {
        to_y<kDrops, kWhole>(
            act, dropout, tile, at, [&](bool keep) { return all || keep; }, random, x, sums);
        store<kWhole>(tile, static_cast<E*>(task.out), at, x);
      });
    }
  });
  return {to_double(sums.l1), to_double(sums.l2)};
}

template <bool kDrops, class E, class Act>
__global__ void __launch_bounds__(kThreads, kMinBlocks<E, true, kDrops>)
    forward_kernel(const Act act, const Task task, const int64_t n, const bool is_aligned,
                   const RandomState random, const int parts, const bool has_sums, void* penalty,
                   Workspace* workspace) {
  const bool is_first_thread = blockIdx.x == 0 && threadIdx.x == 0;
  Dropout dropout = task.dropout;
  bool is_read = false;
  const auto ready = [&] {  // see Gradient::read
    if (!kDrops || is_read) return;
    is_read = true;
    dropout = drawn(task.dropout, random);
  };
  const int64_t elements = Tile<E>::elements_of(n);
#pragma unroll 1
  for (int part = blockIdx.x; part < parts; part += gridDim.x) {
    PenaltySums<double> mine{0, 0};
#pragma unroll 1
    for (int64_t begin = part * elements; begin < n; begin += parts * elements) {
      const Tile<E> tile(begin, n, is_aligned);
      const auto sums = forward_tile<kDrops>(act, task, dropout, has_sums, tile, ready);
      mine.l1 += sums.l1;
      mine.l2 += sums.l2;
    }
    if (!has_sums) continue;
    mine = block_sum(mine);
    if (threadIdx.x == 0) workspace->part[part] = mine;
  }
  if (random.drawn && is_first_thread) {
    dropout = drawn(task.dropout, random);
    random.drawn[0] = static_cast<int64_t>(dropout.seed);
    random.drawn[1] = static_cast<int64_t>(dropout.offset);
  }
  PenaltySums<double> total{0, 0};
  if (has_sums) {
    if (!is_last_block(&workspace->finished)) return;
    total = sum_of_parts(*workspace, parts);
  }
  if (has_sums ? threadIdx.x == 0 : is_first_thread) {
    task.penalty.finish(total, static_cast<typename NumberOf<E>::Sum*>(penalty));
  }
}

template <class E>
cudaError_t KernelsOf<E>::forward(const Problem& problem, const Launch& launch,
                                  const RandomState& random, void* penalty, Workspace* workspace) {
  const bool is_aligned = are_aligned({problem.x, problem.out});
  const int parts = parts_of<E>(launch.n);
  cudaError_t error = cudaSuccess;
  visit(
      [&](auto act) {
        error = dispatch<decltype(act), E>(problem, [&](auto drops) {
          return run<forward_kernel<decltype(drops)::value, E, decltype(act)>>(
              parts, launch, act, static_cast<const Task&>(problem), launch.n, is_aligned, random,
              parts, !problem.penalty.is_off(), penalty, workspace);
        });
      },
      problem.activation);
  return error;
}

}  // namespace cuda
}  // namespace actreg
