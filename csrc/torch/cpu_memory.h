// The memory of new tensors on the CPU. Layer: torch.
#pragma once

#include <ATen/core/Tensor.h>

namespace actreg {

// A tensor of that dense layout, all of which is going to be written.
at::Tensor new_dense(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type);

}  // namespace actreg
