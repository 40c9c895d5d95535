// Forward: one launch reads x, writes y and leaves the finished penalty. Layer: cuda.
#pragma once

#include "core/kept.h"
#include "core/operator.h"
#include "cuda/launch.cuh"
#include "cuda/reduction.cuh"

namespace actreg {
namespace cuda {

// The thread's vectors `at`, `at` + 1, ... of a tile; kAllCount: dropped elements count too.
template <bool kDrops, bool kWhole, bool kAllCount, class E, class Act, class T>
__device__ void forward_vectors(const Act& act, const Task& task, const Dropout& dropout,
                                const Tile<E>& tile, int at, PenaltySums<T>& sums) {
  constexpr int kCount = kVectorsAtOnce<E, kWhole>;
  const T s(dropout.scale);
  Vector<E> x[kCount];
  load<kWhole>(tile, static_cast<const E*>(task.x), at, x);
  RandomBits<E> random[kCount];
  if constexpr (kDrops) draw(tile, dropout, at, random);
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const int valid = kWhole ? Vector<E>::kElements : tile.valid(at + j);
    if constexpr (kHasTwoSlopes<Act>) {
      if (task.bits) {
        const bool all = !kDrops || task.marked == kKeepAll;
        unsigned on = 0;
#pragma unroll
        for (int k = 0; k < Vector<E>::kElements; ++k) {
          const bool is_marked = all || random[j].is_below(dropout.threshold, k);
          on |= unsigned{k < valid && is_marked && is_on(act, T(x[j].get(k)))} << k;
        }
        store_bits(tile, task.bits, at + j, on);
      }
    }
#pragma unroll
    for (int k = 0; k < Vector<E>::kElements; k += 2) {
      T y[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const T in = x[j].get(k + i);
        const bool is_valid = k + i < valid;
        if constexpr (!kDrops) {
          y[i] = forward(act, in, Always{}, is_valid, s, sums);
        } else {
          const bool keep = random[j].is_below(dropout.threshold, k + i);
          y[i] = forward(act, in, keep, is_valid && (kAllCount || keep), s, sums);
        }
      }
      x[j].set(k, y);
    }
  }
  store<kWhole>(tile, static_cast<E*>(task.out), at, x);
}

template <bool kDrops, bool kAllCount, class E, class Act>
__device__ PenaltySums<double> forward_tile(const Act& act, const Task& task,
                                            const Dropout& dropout, const Tile<E>& tile) {
  using T = typename NumberOf<E>::type;
  PenaltySums<T> sums{T(0), T(0)};
  for_each_step(tile, [&](auto whole, int at) {
    forward_vectors<kDrops, decltype(whole)::value, kAllCount>(act, task, dropout, tile, at, sums);
  });
  return {to_double(sums.l1), to_double(sums.l2)};
}

template <bool kDrops, class E, class Act>
__global__ void __launch_bounds__(kThreads, kMinBlocks<E, !kDrops>)
    forward_kernel(const Act act, const Task task, const int64_t n, const bool is_aligned,
                   const RandomState random, void* penalty, Workspace* workspace) {
  const Dropout dropout = drawn(task.dropout, random);
  if (random.drawn && blockIdx.x == 0 && threadIdx.x == 0) {
    random.drawn[0] = static_cast<int64_t>(dropout.seed);
    random.drawn[1] = static_cast<int64_t>(dropout.offset);
  }
  const int parts = parts_of<E>(n);
  const int64_t tiles = tiles_of<E>(n);
  for (int part = blockIdx.x; part < parts; part += gridDim.x) {
    PenaltySums<double> mine{0, 0};
#pragma unroll 1
    for (int64_t index = part; index < tiles; index += parts) {
      const Tile<E> tile(index, n, is_aligned);
      const PenaltySums<double> sums = !kDrops || task.counted == kKeepAll
                                           ? forward_tile<kDrops, true>(act, task, dropout, tile)
                                           : forward_tile<kDrops, false>(act, task, dropout, tile);
      mine.l1 += sums.l1;
      mine.l2 += sums.l2;
    }
    mine = block_sum(mine);
    if (threadIdx.x == 0) workspace->part[part] = mine;
  }
  if (!is_last_block(&workspace->finished)) return;
  const PenaltySums<double> total = sum_of_parts(*workspace, parts);
  if (threadIdx.x == 0) {
    task.penalty.finish(total, static_cast<typename NumberOf<E>::Sum*>(penalty));
  }
}

template <class E>
cudaError_t forward_of(const Problem& problem, const Launch& launch, const RandomState& random,
                       void* penalty, Workspace* workspace) {
  const bool is_aligned = are_aligned({problem.x, problem.out});
  cudaError_t error = cudaSuccess;
  visit(
      [&](auto act) {
        error = dispatch<decltype(act), E>(problem, [&](auto drops) {
          return run(forward_kernel<decltype(drops)::value, E, decltype(act)>,
                     parts_of<E>(launch.n), launch, act, static_cast<const Task&>(problem),
                     launch.n, is_aligned, random, penalty, workspace);
        });
      },
      problem.activation);
  return error;
}

}  // namespace cuda
}  // namespace actreg
