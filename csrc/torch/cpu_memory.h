// The memory of new tensors on the CPU. Layer: torch.
#pragma once

#include <ATen/core/Tensor.h>

namespace actreg {

// A new dense tensor. The caller has to write every element.
at::Tensor new_dense(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type);

}  // namespace actreg
