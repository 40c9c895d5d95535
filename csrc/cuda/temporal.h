// The interface of the CUDA kernels of the temporal penalty. Layer: cuda; must not know torch.
// Each function launches one kernel and nothing else.
#pragma once

#include "core/temporal.h"
#include "cuda/kernels.h"

namespace actreg {
namespace cuda {

// sum: one number in device memory; double for float64 elements, else float. For the order of the
// additions see Note [The penalty's bits].
cudaError_t temporal(const Temporal&, const Launch&, void* sum, Workspace*);
// dsum: the gradient of that sum, of the same type.
cudaError_t temporal_backward(const Temporal&, const Launch&, const void* dsum);

}  // namespace cuda
}  // namespace actreg
