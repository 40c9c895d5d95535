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

namespace actreg {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What all operators take after their tensors, in the schemas' order.
struct Attributes {
  c10::string_view activation;
  at::ArrayRef<double> parameters;
  double p;
  bool on_output;  // the penalty is on y, not on a
  // {l1 / D, l2 / D} for the weighted penalty; nothing for the two raw sums.
  std::optional<at::ArrayRef<double>> coefficients;
};
#define ACTREG_ATTRIBUTES                                                                 \
  c10::string_view activation, at::ArrayRef<double> parameters, double p, bool on_output, \
      std::optional<at::ArrayRef<double>> coefficients
#define ACTREG_ATTRIBUTE_NAMES activation, parameters, p, on_output, coefficients

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
// dx has these sizes and strides and this type, which are x's; one of the gradients may miss.
using BackwardBits = Tensor(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                            const OptionalTensor& bits, const OptionalTensor& rng_state,
                            c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides,
                            at::ScalarType dtype, ACTREG_ATTRIBUTES);

// The type of elements. Throws if the kernels have none for it.
Element element_of(at::ScalarType type);
// The problem without its tensors and their type, seed and gradients. Throws unless the activation
// is one, with its parameters, and the numbers are in their ranges.
Problem problem_of(const Attributes& attributes);
// The problem without its pointers, seed and gradients. Throws unless every kernel can take the
// arguments: dtype, layout, ranges, the activation with its parameters; and, if the output is in
// the place of x, unless it tells what backward needs.
Problem make_problem(const Tensor& x, const Attributes& attributes, bool x_is_output = false);
// Throws unless it is int64 {seed, offset} on x's device. Reads no data.
void check_rng_state(const OptionalTensor& rng_state, at::Device device);
void check_devices(const OptionalTensor& dy, const OptionalTensor& dpenalty, at::Device device);
// The same for backward and curvature. Throws also unless dy and dpenalty have their shapes and are
// on x's device.
Problem backward_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                         const Attributes& attributes, bool x_is_output);

// For the operators with bits. Throws also unless backward needs no more than these.
State bits_state(Problem& problem, const Attributes& attributes);
// What backward_bits computes, into dx; made and checked.
struct BitsProblem {
  Problem problem;
  TwoSlopes slopes;
  at::TensorOptions dx;
};
BitsProblem bits_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                         const OptionalTensor& bits, const OptionalTensor& rng_state,
                         at::ScalarType dtype, const Attributes& attributes);
// Throws also unless shapes and bits fit together, and dx is dense.
BitsProblem bits_problem_of_shapes(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                                   const OptionalTensor& bits, const OptionalTensor& rng_state,
                                   at::IntArrayRef sizes, at::IntArrayRef strides,
                                   at::ScalarType dtype, const Attributes& attributes);

// For a Task that only reads them; null where there are none.
inline uint8_t* address_of(const OptionalTensor& bits) {
  if (!bits || !bits->defined()) return nullptr;
  return const_cast<uint8_t*>(bits->const_data_ptr<uint8_t>());
}

// x itself if its elements fill a block of memory, in whatever order; else a contiguous copy.
Tensor dense(const Tensor& x);
// x itself if kernels can write where they read, nothing if not. Throws if x overlaps itself.
Tensor writable(const Tensor& x);
// Of a bit for each element.
template <class Integer>
Integer bytes_of_bits(Integer elements) {
  return (elements + 7) / 8;
}
// A tensor of x's layout holding dy (itself if it has that layout already), zeros for no dy.
Tensor with_layout_of(const Tensor& x, const OptionalTensor& dy);

// float32, or float64 for float64.
at::ScalarType accumulation_type(const Tensor& x);
// Of the penalty: 0-d, or two numbers without coefficients.
at::IntArrayRef penalty_shape(const Attributes& attributes);

// A kernel of curvature for float64, `run(problem, dy, x)`, on tensors of any dtype.
template <class Run>
Tensor in_double(Run run, const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                 const Attributes& attributes, bool x_is_output) {
  backward_problem(dy, dpenalty, x, attributes, x_is_output);  // throws, before anything is made
  OptionalTensor wide_dy;
  if (dy) wide_dy = dy->to(at::kDouble);
  Attributes rounded = attributes;
  std::vector<double> parameters = attributes.parameters.vec();
  if (x.scalar_type() != at::kDouble) {  // as the kernels have them: a kink stays where it is
    for (double& parameter : parameters) parameter = static_cast<float>(parameter);
  }
  rounded.parameters = parameters;
  Problem problem = problem_of(rounded);
  problem.element = ElementType<double>{};
  problem.x_is_output = x_is_output;
  // dense first: to() gives a tensor that is not dense another order in memory, so another mask.
  return run(problem, wide_dy, dense(x).to(at::kDouble)).to(x.scalar_type());
}

}  // namespace actreg
