// The operators' common ground: their signatures, the checks, and the way from tensors to a
// Problem. Layer: torch, shared by the CPU, CUDA, Meta and Autograd kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/string_view.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "core/kept.h"
#include "core/operator.h"
#include "core/problem.h"
#include "torch/order.h"

namespace actreg {

// What all operators take after their tensors, in the schemas' order.
struct Attributes {
  c10::string_view activation;
  at::ArrayRef<double> parameters;
  double p;
  bool on_output;  // the penalty is on y, not on a
  // {l1, l2} for the weighted penalty; nothing for the two sums.
  std::optional<at::ArrayRef<double>> coefficients;
  c10::string_view reduction;  // names D, which divides the penalty or the sums
  at::IntArrayRef order;       // see Note [Positions]
};
#define ACTREG_ATTRIBUTES                                                                 \
  c10::string_view activation, at::ArrayRef<double> parameters, double p, bool on_output, \
      std::optional<at::ArrayRef<double>> coefficients, c10::string_view reduction,       \
      at::IntArrayRef order
#define ACTREG_ATTRIBUTE_NAMES activation, parameters, p, on_output, coefficients, reduction, order

using Forward = std::tuple<Tensor, Tensor>(const Tensor& x, const OptionalTensor& rng_state,
                                           ACTREG_ATTRIBUTES);
using ForwardRandom = std::tuple<Tensor, Tensor, Tensor>(const Tensor& x, ACTREG_ATTRIBUTES);
// Of backward and of curvature.
using Backward = Tensor(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                        const OptionalTensor& rng_state, ACTREG_ATTRIBUTES, bool x_is_output);

// Those that leave bits or read them: see Note [What is kept for backward].
using ForwardBits = std::tuple<Tensor, Tensor, Tensor>(const Tensor& x,
                                                       const OptionalTensor& rng_state,
                                                       ACTREG_ATTRIBUTES);
using ForwardRandomBits = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor& x,
                                                                     ACTREG_ATTRIBUTES);
// {penalty, bits: none unless asked for}
using ForwardInPlace = std::tuple<Tensor, Tensor>(const Tensor& x, const OptionalTensor& rng_state,
                                                  ACTREG_ATTRIBUTES, bool with_bits);
// dx has these sizes and this type, which are those of x; one of the gradients may be missing.
// Without a value of its own, `anchor` connects dx to x in the graph: see ActRegAnchor.
using BackwardBits = Tensor(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                            const OptionalTensor& bits, const OptionalTensor& rng_state,
                            const OptionalTensor& anchor, c10::SymIntArrayRef sizes,
                            at::ScalarType dtype, ACTREG_ATTRIBUTES);
// A new tensor {seed, offset} on the device of x: a copy of `state`, or else {seed, 0}.
using RngState = Tensor(const Tensor& x, const OptionalTensor& state, c10::SymInt seed);

// The type of elements. Throws if the kernels have none for it.
Element element_of(at::ScalarType type);
// The problem without its tensors and their type, seed and gradients. Throws unless the activation
// is one, with its parameters, and the numbers are in their ranges.
Problem problem_of(const Attributes& attributes);
// The problem without its pointers, seed and gradients, and before its penalty is divided by D.
// Throws unless every kernel can take the arguments: dtype, layout, ranges, the activation with its
// parameters; and, if the output is in the place of x, unless the output tells what backward needs.
Problem make_problem(const Tensor& x, const Attributes& attributes, bool x_is_output = false);
// The same for the kernels that compute forward, with D. Throws also unless the order fits x.
Problem forward_problem(const Tensor& x, const Attributes& attributes);
// Throws unless it is int64 {seed, offset} on x's device. Reads no data.
void check_rng_state(const OptionalTensor& rng_state, at::Device device);
void check_devices(const OptionalTensor& dy, const OptionalTensor& dpenalty, at::Device device);
// forward_problem for backward and curvature. Throws also unless dy and dpenalty have their shapes
// and are on the device of x.
Problem backward_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                         const Attributes& attributes, bool x_is_output);

// For the operators with bits. Throws also unless backward needs no more than these.
State bits_state(Problem& problem, const Attributes& attributes);
// The type and device of dx. Throws unless there is dy or dpenalty.
at::TensorOptions options_of_dx(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                                at::ScalarType dtype);
// What backward_bits computes. Throws unless all arguments fit together.
struct BitsProblem {
  Problem problem;
  TwoSlopes slopes;
  at::TensorOptions dx;
};
BitsProblem bits_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                         const OptionalTensor& bits, const OptionalTensor& rng_state,
                         at::IntArrayRef sizes, at::ScalarType dtype, const Attributes& attributes);

// What was kept for backward may come back with other strides; an undefined tensor is none.
inline OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor && tensor->defined() ? OptionalTensor(tensor->contiguous()) : std::nullopt;
}
// For a Task that only reads the contiguous bits; null where there are none.
inline uint8_t* address_of(const OptionalTensor& bits) {
  return bits ? const_cast<uint8_t*>(bits->const_data_ptr<uint8_t>()) : nullptr;
}

// Of a bit for each element.
template <class Integer>
Integer bytes_of_bits(Integer elements) {
  return (elements + 7) / 8;
}
// float32, or float64 for float64.
at::ScalarType accumulation_type(const Tensor& x);
// Of the penalty: 0-d, or two numbers without coefficients.
at::IntArrayRef penalty_shape(const Attributes& attributes);

// A kernel of curvature for float64, `run(problem, dy, x)`, on tensors of any dtype.
template <class Run>
Tensor in_double(Run run, const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                 const Attributes& attributes, bool x_is_output) {
  Problem problem = backward_problem(dy, dpenalty, x, attributes, x_is_output);
  OptionalTensor wide_dy;
  if (dy) wide_dy = dy->to(at::kDouble);
  Attributes rounded = attributes;
  std::vector<double> parameters = attributes.parameters.vec();
  if (x.scalar_type() != at::kDouble) {  // as the kernels have them: a kink stays where it is
    for (double& parameter : parameters) parameter = static_cast<float>(parameter);
  }
  rounded.parameters = parameters;
  problem.activation = problem_of(rounded).activation;
  problem.element = ElementType<double>{};
  return run(problem, wide_dy, x.to(at::kDouble)).to(x.scalar_type());
}

}  // namespace actreg
