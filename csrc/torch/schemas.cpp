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
  if (make_problem(x, attributes).drops()) check_rng_state(rng_state, x);
  return {like(x), at::empty(penalty_shape(attributes), x.options().dtype(accumulation_type(x)))};
}

std::tuple<Tensor, Tensor, Tensor> forward_random_meta(const Tensor& x, ACTREG_ATTRIBUTES) {
  Tensor rng_state = at::empty({2}, x.options().dtype(at::kLong));
  auto [y, penalty] = forward_meta(x, rng_state, ACTREG_ATTRIBUTE_NAMES);
  return {y, penalty, rng_state};
}

Tensor bits_meta(const Tensor& x) {
  return at::empty_symint({(x.sym_numel() + 7) / 8}, x.options().dtype(at::kByte));
}

std::tuple<Tensor, Tensor, Tensor> forward_bits_meta(const Tensor& x,
                                                     const OptionalTensor& rng_state,
                                                     ACTREG_ATTRIBUTES) {
  auto [y, penalty] = forward_meta(x, rng_state, ACTREG_ATTRIBUTE_NAMES);
  return {y, penalty, bits_meta(x)};
}

std::tuple<Tensor, Tensor> forward_in_place_meta(const Tensor& x, const OptionalTensor& rng_state,
                                                 ACTREG_ATTRIBUTES, bool with_bits) {
  auto [y, penalty] = forward_meta(x, rng_state, ACTREG_ATTRIBUTE_NAMES);
  return {penalty, with_bits ? bits_meta(x) : at::empty({0}, x.options().dtype(at::kByte))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_random_bits_meta(const Tensor& x,
                                                                    ACTREG_ATTRIBUTES) {
  auto [y, penalty, rng_state] = forward_random_meta(x, ACTREG_ATTRIBUTE_NAMES);
  return {y, penalty, rng_state, bits_meta(x)};
}

Tensor backward_meta(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                     const OptionalTensor& rng_state, ACTREG_ATTRIBUTES) {
  const Attributes attributes{ACTREG_ATTRIBUTE_NAMES};
  if (make_problem(x, attributes).drops()) check_rng_state(rng_state, x);
  check_devices(dy, dpenalty, x);  // but no shapes: compiled autograd traces with made-up ones
  return like(x);
}

Tensor backward_bits_meta(const Tensor& dy, const OptionalTensor& dpenalty, const OptionalTensor&,
                          const OptionalTensor& rng_state, c10::SymIntArrayRef strides,
                          ACTREG_ATTRIBUTES) {
  const Attributes attributes{ACTREG_ATTRIBUTE_NAMES};
  Problem problem = make_problem(dy, attributes);
  bits_state(problem, attributes);
  if (draws_again(problem)) check_rng_state(rng_state, dy);
  check_devices(dy, dpenalty, dy);
  return at::empty_strided_symint(dy.sym_sizes(), strides, dy.options());
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
  m.def("backward(Tensor? dy, Tensor? dpenalty, Tensor x, Tensor? rng_state, " ATTRIBUTES
        ") -> Tensor",
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
      "backward_bits(Tensor dy, Tensor? dpenalty, Tensor? bits, Tensor? rng_state, "
      "SymInt[] strides, " ATTRIBUTES ") -> Tensor",
      pure);
  // d(dx)/dx of backward, element by element.
  m.def("curvature(Tensor? dy, Tensor? dpenalty, Tensor x, Tensor? rng_state, " ATTRIBUTES
        ") -> Tensor",
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
