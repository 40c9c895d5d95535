// Adds the sums for the penalty: over the threads of a block, then over the parts. Layer: cuda.
// See Note [The penalty's bits].
#pragma once

#include "cuda/tile.cuh"

namespace actreg {
namespace cuda {

// Sums over the threads of the block, in a fixed order. Only thread 0 gets the result. Meanwhile
// the other threads may begin the next call: before its first barrier, which waits for thread 0,
// they do not write sums[0][0] and sums[1][0].
__device__ inline PenaltySums<double> block_sum(PenaltySums<double> mine) {
  __shared__ double sums[2][kThreads];
  const int thread = threadIdx.x, warp = thread / kLanes, lane = thread % kLanes;
  sums[0][thread] = mine.l1;
  sums[1][thread] = mine.l2;
  __syncthreads();
  if (warp < 2) {
    double sum = 0;
#pragma unroll
    for (int i = lane; i < kThreads; i += kLanes) sum += sums[warp][i];
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      sum += __shfl_down_sync(kAllLanes, sum, step);
    }
    if (lane == 0) sums[warp][0] = sum;
  }
  __syncthreads();
  if (thread == 0) mine = {sums[0][0], sums[1][0]};
  return mine;
}

// Atomically adds 1 to *at, or sets it to 0 if it was `last`; returns the old value. Threads that
// call this later see everything that this thread wrote before its call, and this thread sees
// everything that earlier callers wrote before theirs.
__device__ inline unsigned count_in_order(unsigned* at, unsigned last) {
#if defined(__CUDA_ARCH__)  // one instruction; two fences would do more than is needed
  unsigned old;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(__cvta_generic_to_global(at)), "r"(last)
               : "memory");
#else
  __threadfence();
  const unsigned old = atomicInc(at, last);
  __threadfence();
#endif
  return old;
}

// Whether this block is the last of the grid to call this. The last block sees everything that
// thread 0 of each block wrote before its call. *finished is 0 before the first call and after the
// last call.
__device__ inline bool is_last_block(unsigned* finished) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) is_last = count_in_order(finished, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();  // now the whole block sees what thread 0 sees
  return is_last;
}

// Sums all parts, by one block. Each thread issues kAtOnce loads before it waits for the first.
__device__ inline PenaltySums<double> sum_of_parts(const Workspace& workspace, int parts) {
  constexpr int kAtOnce = 4;
  PenaltySums<double> mine{0, 0};
#pragma unroll 1
  for (int first = threadIdx.x; first < parts; first += kAtOnce * kThreads) {
    double2 sums[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int part = first + i * kThreads;
      sums[i] = double2{0, 0};
      if (part < parts) {
        sums[i] = __ldcg(reinterpret_cast<const double2*>(&workspace.part[part]));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) mine.l1 += sums[i].x, mine.l2 += sums[i].y;
  }
  return block_sum(mine);
}

}  // namespace cuda
}  // namespace actreg
