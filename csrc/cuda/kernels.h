// The CUDA kernels' interface: raw pointers and a stream. Layer: cuda; must not know torch.
// Each call launches one kernel and nothing else, allocates nothing and waits for nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/problem.h"

namespace actreg {
namespace cuda {

constexpr int kThreads = 256;  // of a block

// Where a mask's seed and offset come from: memory of the device where there is a pointer, which
// a graph may replay with other numbers in it; else the values. `offset` is added in both cases.
struct RandomState {
  const int64_t* seed_at = nullptr;
  const int64_t* offset_at = nullptr;
  uint64_t seed = 0, offset = 0;
  int64_t* drawn = nullptr;  // where forward leaves {seed, offset}, if anywhere
};

// Note [The penalty's bits]
// The size of a tensor alone decides how it is cut into parts. One block sums a part, and the block
// that finishes last adds the parts in their order; nothing is added by floating-point atomics. So
// the order of all additions depends neither on the grid nor on the GPU. Thread sums are float
// within a tile and double beyond, as on the CPU.
// The bits are the same on all GPUs of one compute capability, from one build. Another capability
// or another nvcc may give other last bits: nvcc fuses the multiplications and additions of an
// activation as it likes. The sum of squares is fused explicitly (add_square), so that every way
// through a tile adds alike.
constexpr int kMaxParts = 4096;  // 16 for each thread of the last block to add; not tuned on a GPU
struct Workspace {
  PenaltySums<double> part[kMaxParts];
  unsigned finished;  // blocks; 0 before and after each launch, which therefore must not overlap
};

struct Launch {
  int64_t n;            // elements
  int device;           // the current one
  int multiprocessors;  // that it has
  cudaStream_t stream;
};

// penalty: one or two numbers, double for double elements, float for the others.
cudaError_t forward(const Problem&, const Launch&, const RandomState&, void* penalty, Workspace*);
// dpenalty: as penalty, on the device, or null. dy: null for zeros; of one element for all if
// dy_is_scalar.
cudaError_t backward(const Problem&, const Launch&, const RandomState&, const void* dpenalty,
                     bool dy_is_scalar);
// The same from problem.bits, or from none, in the place of x.
cudaError_t backward_bits(const Problem&, const TwoSlopes&, const Launch&, const RandomState&,
                          const void* dpenalty, bool dy_is_scalar);
// d(dx)/dx for each element, of double only.
cudaError_t curvature(const Problem&, const Launch&, const RandomState&, const void* dpenalty,
                      bool dy_is_scalar);

}  // namespace cuda
}  // namespace actreg
