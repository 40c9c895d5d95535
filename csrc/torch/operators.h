// The operators' common ground: their signatures, the checks, and the way from tensors to a
// Problem. Layer: torch, shared by the CPU, CUDA, Meta and Autograd kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/string_view.h>

#include <cstdint>
#include <optional>
#include <tuple>

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
                        const OptionalTensor& rng_state, ACTREG_ATTRIBUTES);

// The problem without its pointers, seed and gradients. Throws unless every kernel can take the
// arguments: dtype, layout, ranges, the activation with its parameters.
Problem make_problem(const Tensor& x, const Attributes& attributes);
// Throws unless it is int64 {seed, offset} on x's device. Reads no data.
void check_rng_state(const OptionalTensor& rng_state, const Tensor& x);
// Of dy and dpenalty: their shapes; and that they are on x's device.
void check_shapes(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                  const Attributes& attributes);
void check_devices(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x);

// x itself if its elements fill a block of memory, in whatever order; else a contiguous copy.
Tensor dense(const Tensor& x);
// A tensor of x's layout holding dy (itself if it has that layout already), zeros for no dy.
Tensor with_layout_of(const Tensor& x, const OptionalTensor& dy);

// float32, or float64 for float64.
at::ScalarType accumulation_type(const Tensor& x);
// Of the penalty: 0-d, or two numbers without coefficients.
at::IntArrayRef penalty_shape(const Attributes& attributes);

// coefficient * value, where a coefficient of 0 is off: 0 * inf would be NaN.
double weighted(double coefficient, double value);
// The factor s that the kernels leave out of t.
PenaltySums<double> scaled(PenaltySums<double> sums, const Problem& problem);
// Puts what multiplies sign(a) and a into the problem; dpenalty is {d/dl1 sum, d/dl2 sum}.
void set_slopes(Problem& problem, double dl1_sum, double dl2_sum);

}  // namespace actreg
