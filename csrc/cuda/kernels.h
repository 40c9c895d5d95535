// The interface of the CUDA kernels: raw pointers and a stream. Layer: cuda; must not know torch.
// Each function launches one kernel and nothing else. It does not allocate and does not wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/problem.h"

namespace actreg {
namespace cuda {

constexpr int kThreads = 256;  // per block

// The seed and offset of a mask. The seed is *seed_at, or `seed` if seed_at is null. The offset is
// `offset`, plus *offset_at if offset_at is not null. The pointers are to device memory: a CUDA
// graph can be replayed with other numbers in it.
struct RandomState {
  const int64_t* seed_at = nullptr;
  const int64_t* offset_at = nullptr;
  uint64_t seed = 0, offset = 0;
  int64_t* drawn = nullptr;  // if not null, forward writes {seed, offset} here
};

// Note [The penalty's bits]
// One build gives the penalty the same bits for any grid and on all GPUs of one compute capability:
// - The order of the additions is fixed. The size of the tensor alone decides how the tensor is cut
//   into parts. One block sums a part, and the block that finishes last adds the parts in their
//   order. There are no floating-point atomics.
// - Whole tiles and other tiles run different code. Both call add_square, which fuses square and
//   addition explicitly. So both round the sum of squares in the same way.
// Another compute capability or another nvcc may give other last bits, because nvcc decides where
// to fuse a multiplication and an addition of an activation.
// A thread sums a tile in float, and everything beyond a tile is summed in double, as on the CPU.
constexpr int kMaxParts = 4096;  // the last block's threads add 16 parts each; not tuned on a GPU
struct Workspace {
  PenaltySums<double> part[kMaxParts];
  // The number of blocks that have finished. It is 0 before and after a launch, so launches with
  // the same workspace must not overlap.
  unsigned finished;
};

struct Launch {
  int64_t n;            // number of elements
  int device;           // number of the current device
  int multiprocessors;  // of this device
  cudaStream_t stream;
};

// penalty: one number if Penalty::is_weighted, else two; double for float64 elements, else float.
cudaError_t forward(const Problem&, const Launch&, const RandomState&, void* penalty, Workspace*);
// dpenalty: the gradient of `penalty`, in device memory; null means 0. Problem::dy: null means 0;
// if dy_is_scalar, one element that stands for all.
cudaError_t backward(const Problem&, const Launch&, const RandomState&, const void* dpenalty,
                     bool dy_is_scalar);
// Like backward, but from Problem::bits instead of x; if they are null, every bit is taken as 1.
cudaError_t backward_bits(const Problem&, const TwoSlopes&, const Launch&, const RandomState&,
                          const void* dpenalty, bool dy_is_scalar);
// Writes d(dx)/dx; float64 only.
cudaError_t curvature(const Problem&, const Launch&, const RandomState&, const void* dpenalty,
                      bool dy_is_scalar);

// The functions above for one element type. forward.cuh, backward.cuh and backward_bits.cuh define
// them; float32.cu, float64.cu, float16.cu and bfloat16.cu each instantiate all of them.
template <class E>
struct KernelsOf {
  static cudaError_t forward(const Problem&, const Launch&, const RandomState&, void* penalty,
                             Workspace*);
  static cudaError_t backward(const Problem&, const Launch&, const RandomState&,
                              const void* dpenalty, bool dy_is_scalar);
  static cudaError_t backward_bits(const Problem&, const TwoSlopes&, const Launch&,
                                   const RandomState&, const void* dpenalty, bool dy_is_scalar);
};

}  // namespace cuda
}  // namespace actreg
