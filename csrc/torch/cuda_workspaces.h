// Where the CUDA kernels' sums are put together. Layer: torch.
#pragma once

#include <c10/core/Device.h>

#include "cuda/kernels.h"

namespace actreg {

// For a launch on the current device and that stream. See Note [Workspaces].
cuda::Workspace* workspace_of(c10::DeviceIndex device, cudaStream_t stream);

}  // namespace actreg
