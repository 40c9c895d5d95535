// From the arguments of an operator to a Problem, and the checks of these arguments.
// Layer: torch, shared by the CPU, CUDA, Meta and Autograd kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <type_traits>

#include "core/kept.h"
#include "core/operator.h"
#include "core/problem.h"
#include "torch/attributes.h"
#include "torch/order.h"

namespace actreg {

// The element type that the kernels know for a dtype. Throws if they have none.
Element element_of(at::ScalarType type);
// The Problem, as far as the attributes tell. Throws if an attribute is out of its range, or if no
// activation has that name and that number of parameters.
Problem problem_of(const Attributes& attributes);
// The same, with the type of x's elements; the penalty is not yet divided by D. Throws also if no
// kernel takes x, or if x_is_output and the output does not tell what backward needs.
Problem make_problem(const Tensor& x, const Attributes& attributes, bool x_is_output = false);
// make_problem for kernels that run forward: the penalty is divided by D. Throws also if `order`
// does not fit x.
Problem forward_problem(const Tensor& x, const Attributes& attributes);
// The same for kernels that run backward or curvature. Throws also if dy or dpenalty has a wrong
// shape or device.
Problem backward_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                         const Attributes& attributes, bool x_is_output);
// Throws unless rng_state is an int64 tensor {seed, offset}, or {seed, offset, threshold}, on
// `device`. Reads no element.
void check_rng_state(const OptionalTensor& rng_state, at::Device device,
                     bool has_threshold = false);

// What forward leaves for a backward that reads bits; sets problem.marked. Throws if bits are not
// enough for the gradient.
State bits_state(Problem& problem, const Attributes& attributes);
// The dtype and the device of dx. Throws if there is neither dy nor dpenalty.
at::TensorOptions options_of_dx(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                                at::ScalarType dtype);
// What the operator backward_bits has to compute.
struct BitsProblem {
  Problem problem;
  TwoSlopes slopes;
  at::TensorOptions dx;
};
// Throws if the arguments do not fit together.
BitsProblem bits_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                         const OptionalTensor& bits, at::IntArrayRef sizes, at::ScalarType dtype,
                         const Attributes& attributes);

// Bits are stored in bytes, eight in each.
template <class Integer>
Integer bytes_of_bits(Integer elements) {
  return (elements + 7) / 8;
}
// The dtype in which the kernels add up: float64 for float64, float32 for all others.
at::ScalarType accumulation_type(const Tensor& x);
// The dtype of the penalty or the sums: as above, but float64 for the sums of channels.
at::ScalarType penalty_type(const Tensor& x, const Attributes& attributes);
// The shape of the penalty: [] with coefficients. Without them there are sums: [3, channels] with
// channel_dim, else [2].
template <class Sizes>
auto penalty_shape(const Attributes& attributes, const Sizes& sizes) {
  c10::SmallVector<std::decay_t<decltype(sizes[0])>, 2> shape;
  if (attributes.coefficients) return shape;
  if (!attributes.channel_dim) {
    shape.push_back(2);
  } else {
    shape.push_back(3);
    if (*attributes.channel_dim < 0) {
      shape.push_back(1);
    } else {
      shape.push_back(sizes[*attributes.channel_dim]);
    }
  }
  return shape;
}

}  // namespace actreg
