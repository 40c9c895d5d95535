// The penalty's sums, from threads to blocks to the tensor. Layer: cuda.
// See Note [The penalty's bits].
#pragma once

#include "cuda/tile.cuh"

namespace actreg {
namespace cuda {

// Over the threads of the block, in a fixed order. The result is thread 0's alone: the others may
// go on, and begin the next sum, before it has read it.
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

// Whether this block is the last of the grid to come here; it then sees all that thread 0 of each
// block has written before. The counter is left as it was found, at 0.
__device__ inline bool is_last_block(unsigned* finished) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();  // for the whole block, by the barrier
  }
  __syncthreads();
  return is_last;
}

// Over the parts, by one block.
__device__ inline PenaltySums<double> sum_of_parts(const Workspace& workspace, int parts) {
  PenaltySums<double> mine{0, 0};
#pragma unroll 8
  for (int part = threadIdx.x; part < parts; part += kThreads) {
    const double2 sums = __ldcg(reinterpret_cast<const double2*>(&workspace.part[part]));
    mine.l1 += sums.x;
    mine.l2 += sums.y;
  }
  return block_sum(mine);
}

}  // namespace cuda
}  // namespace actreg
