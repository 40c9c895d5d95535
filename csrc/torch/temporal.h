// The operators of the temporal penalty: how they are called, and their arguments as plain data.
// Layer: torch. The CPU and CUDA kernels are in cpu_temporal.cpp and cuda_temporal.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/temporal.h"
#include "torch/order.h"

namespace actreg {

// What the operators take besides tensors. Time is the dimension `dim`, which is not negative. For
// `order` see Note [Positions].
struct TimeAxis {
  int64_t dim;
  std::vector<int64_t> order;
};

// The sum over all pairs of weight * (h[t + 1] - h[t])^2: a 0-d tensor.
Tensor temporal(const Tensor& h, const OptionalTensor& weight, const TimeAxis& axis);
// The gradient of h, from the gradient of that sum.
Tensor temporal_backward(const Tensor& dsum, const Tensor& h, const OptionalTensor& weight,
                         const TimeAxis& axis);

// What the kernels of a device read. The tensors own the memory that the task points to.
struct TemporalInputs {
  Tensor h, weight;
  Temporal task;
};
// Throws if the arguments do not fit together.
TemporalInputs temporal_inputs(const Tensor& h, const OptionalTensor& weight, int64_t dim,
                               at::IntArrayRef order);

}  // namespace actreg
