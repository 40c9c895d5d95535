// The memory in which CUDA kernels add up their sums. Layer: torch.
#pragma once

#include <c10/core/Device.h>

#include "cuda/kernels.h"

namespace actreg {

// The workspace for a launch on `device`, which is the current one, and `stream`. See
// Note [Workspaces].
cuda::Workspace* workspace_of(c10::DeviceIndex device, cudaStream_t stream);

}  // namespace actreg
