// The operators' schemas, and the Meta kernels: shapes without data. Layer: torch.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <vector>

#include "torch/operators.h"

namespace actreg {
namespace {

Tensor like(const Tensor& x) {
  return x.is_non_overlapping_and_dense() ? at::empty_like(x)
                                          : at::empty_like(x, at::MemoryFormat::Contiguous);
}

std::tuple<Tensor, Tensor> forward_meta(const Tensor& x, const OptionalTensor& rng_state,
                                        ACTREG_ATTRIBUTES) {
  const Attributes attributes{ACTREG_ATTRIBUTE_NAMES};
  if (make_problem(x, attributes).drops()) check_rng_state(rng_state, x.device());
  return {like(x), at::empty(penalty_shape(attributes), x.options().dtype(accumulation_type(x)))};
}

std::tuple<Tensor, Tensor, Tensor> forward_random_meta(const Tensor& x, ACTREG_ATTRIBUTES) {
  Tensor rng_state = at::empty({2}, x.options().dtype(at::kLong));
  auto [y, penalty] = forward_meta(x, rng_state, ACTREG_ATTRIBUTE_NAMES);
  return {y, penalty, rng_state};
}

void check_bits(ACTREG_ATTRIBUTES) {
  const Attributes attributes{ACTREG_ATTRIBUTE_NAMES};
  Problem problem = problem_of(attributes);
  bits_state(problem, attributes);
}

Tensor bits_meta(const Tensor& x) {
  return at::empty_symint({bytes_of_bits(x.sym_numel())}, x.options().dtype(at::kByte));
}

std::tuple<Tensor, Tensor, Tensor> forward_bits_meta(const Tensor& x,
                                                     const OptionalTensor& rng_state,
                                                     ACTREG_ATTRIBUTES) {
  check_bits(ACTREG_ATTRIBUTE_NAMES);
  auto [y, penalty] = forward_meta(x, rng_state, ACTREG_ATTRIBUTE_NAMES);
  return {y, penalty, bits_meta(x)};
}

std::tuple<Tensor, Tensor> forward_in_place_meta(const Tensor& x, const OptionalTensor& rng_state,
                                                 ACTREG_ATTRIBUTES, bool with_bits) {
  if (with_bits) check_bits(ACTREG_ATTRIBUTE_NAMES);
  writable(x);
  auto [y, penalty] = forward_meta(x, rng_state, ACTREG_ATTRIBUTE_NAMES);
  return {penalty, with_bits ? bits_meta(x) : at::empty({0}, x.options().dtype(at::kByte))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_random_bits_meta(const Tensor& x,
                                                                    ACTREG_ATTRIBUTES) {
  check_bits(ACTREG_ATTRIBUTE_NAMES);
  auto [y, penalty, rng_state] = forward_random_meta(x, ACTREG_ATTRIBUTE_NAMES);
  return {y, penalty, rng_state, bits_meta(x)};
}

Tensor backward_meta(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                     const OptionalTensor& rng_state, ACTREG_ATTRIBUTES, bool x_is_output) {
  const Problem problem = make_problem(x, {ACTREG_ATTRIBUTE_NAMES}, x_is_output);
  if (problem.drops()) check_rng_state(rng_state, x.device());
  // But no shapes: compiled autograd traces with made-up ones.
  check_devices(dy, dpenalty, x.device());
  return like(x);
}

Tensor backward_bits_meta(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                          const OptionalTensor& bits, const OptionalTensor& rng_state,
                          c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides,
                          at::ScalarType dtype, ACTREG_ATTRIBUTES) {
  const auto made = bits_problem(dy, dpenalty, bits, rng_state, dtype, {ACTREG_ATTRIBUTE_NAMES});
  return at::empty_strided_symint(sizes, strides, made.dx);
}

}  // namespace

TORCH_LIBRARY(actreg, m) {
#define ATTRIBUTES \
  "str activation, float[] parameters, float p, bool on_output, float[]? coefficients"
  // The mask follows the strides, so a compiler must leave those of x alone.
  const std::vector<at::Tag> pure = {at::Tag::needs_exact_strides, at::Tag::pt2_compliant_tag};
  const std::vector<at::Tag> random = {at::Tag::needs_exact_strides, at::Tag::pt2_compliant_tag,
                                       at::Tag::nondeterministic_seeded};
  m.def("forward(Tensor x, Tensor? rng_state, " ATTRIBUTES ") -> (Tensor output, Tensor penalty)",
        pure);
  // Draws rng_state from the default generator of x's device.
  m.def("forward_random(Tensor x, " ATTRIBUTES
        ") -> (Tensor output, Tensor penalty, Tensor rng_state)",
        random);
  // The output may be in the place of x, where it tells what backward needs.
  m.def("backward(Tensor? dy, Tensor? dpenalty, Tensor x, Tensor? rng_state, " ATTRIBUTES
        ", bool x_is_output=False) -> Tensor",
        pure);
  // The same, if a bit for each element is all that backward needs of x.
  m.def("forward_bits(Tensor x, Tensor? rng_state, " ATTRIBUTES
        ") -> (Tensor output, Tensor penalty, Tensor bits)",
        pure);
  m.def("forward_random_bits(Tensor x, " ATTRIBUTES
        ") -> (Tensor output, Tensor penalty, Tensor rng_state, Tensor bits)",
        random);
  // y into x; leaves bits if asked for.
  m.def("forward_(Tensor(a!) x, Tensor? rng_state, " ATTRIBUTES
        ", bool with_bits) -> (Tensor penalty, Tensor bits)",
        pure);
  m.def(
      "backward_bits(Tensor? dy, Tensor? dpenalty, Tensor? bits, Tensor? rng_state, "
      "SymInt[] sizes, SymInt[] strides, ScalarType dtype, " ATTRIBUTES ") -> Tensor",
      pure);
  // d(dx)/dx of backward, element by element.
  m.def("curvature(Tensor? dy, Tensor? dpenalty, Tensor x, Tensor? rng_state, " ATTRIBUTES
        ", bool x_is_output=False) -> Tensor",
        pure);
#undef ATTRIBUTES
}

TORCH_LIBRARY_IMPL(actreg, Meta, m) {
  m.impl("forward", &forward_meta);
  m.impl("forward_random", &forward_random_meta);
  m.impl("backward", &backward_meta);
  m.impl("forward_bits", &forward_bits_meta);
  m.impl("forward_random_bits", &forward_random_bits_meta);
  m.impl("forward_", &forward_in_place_meta);
  m.impl("backward_bits", &backward_bits_meta);
  m.impl("curvature", &backward_meta);
}

}  // namespace actreg
