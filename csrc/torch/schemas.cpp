// The operators' schemas, and the Meta kernels: shapes without data. Layer: torch.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <vector>

#include "torch/operators.h"

namespace actreg {
namespace {

// See Note [Positions]. Where sizes are not known yet, nothing may be asked of them. And compiled
// autograd traces backward with tensors that are placeholders, of other shapes, types and devices:
// the Meta kernels of backward take x, bits and rng_state as they come.
Tensor empty(c10::SymIntArrayRef sizes, at::IntArrayRef order, const at::TensorOptions& options) {
  if (order.size() != sizes.size()) return at::empty_symint(sizes, options);
  check_order(order, sizes.size());
  std::vector<c10::SymInt> permuted;
  std::vector<int64_t> places(order.size());
  for (const int64_t dim : order) {
    places[dim] = static_cast<int64_t>(permuted.size());
    permuted.push_back(sizes[dim]);
  }
  return at::empty_symint(permuted, options).permute(places);
}

std::tuple<Tensor, Tensor> forward_meta(const Tensor& x, const OptionalTensor& rng_state,
                                        ACTREG_ATTRIBUTES) {
  const Attributes attributes{ACTREG_ATTRIBUTE_NAMES};
  if (make_problem(x, attributes).drops()) check_rng_state(rng_state, x.device());
  check_order(order, x.dim());
  return {empty(x.sym_sizes(), order, x.options()),
          at::empty(penalty_shape(attributes), x.options().dtype(accumulation_type(x)))};
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
  check_order(order, x.dim());
  writable(x, order);
  auto [y, penalty] = forward_meta(x, rng_state, ACTREG_ATTRIBUTE_NAMES);
  return {penalty, with_bits ? bits_meta(x) : at::empty({0}, x.options().dtype(at::kByte))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_random_bits_meta(const Tensor& x,
                                                                    ACTREG_ATTRIBUTES) {
  check_bits(ACTREG_ATTRIBUTE_NAMES);
  auto [y, penalty, rng_state] = forward_random_meta(x, ACTREG_ATTRIBUTE_NAMES);
  return {y, penalty, rng_state, bits_meta(x)};
}

// A tensor with data beside one without.
void check_all_meta(std::initializer_list<OptionalTensor> tensors) {
  for (const OptionalTensor& tensor : tensors) {
    TORCH_CHECK_VALUE(!tensor || !tensor->defined() || tensor->device().is_meta(),
                      "actreg: tensors are on meta and on ", tensor->device());
  }
}

Tensor backward_meta(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                     const OptionalTensor& rng_state, ACTREG_ATTRIBUTES, bool x_is_output) {
  check_all_meta({dy, dpenalty, x, rng_state});
  make_problem(x, {ACTREG_ATTRIBUTE_NAMES}, x_is_output);
  return empty(x.sym_sizes(), order, x.options());
}

Tensor backward_bits_meta(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                          const OptionalTensor& bits, const OptionalTensor& rng_state,
                          const OptionalTensor& anchor, c10::SymIntArrayRef sizes,
                          at::ScalarType dtype, ACTREG_ATTRIBUTES) {
  check_all_meta({dy, dpenalty, bits, rng_state, anchor});
  check_bits(ACTREG_ATTRIBUTE_NAMES);
  return empty(sizes, order, options_of_dx(dy, dpenalty, dtype));
}

void check_state(const OptionalTensor& state) {
  if (state && state->defined()) check_rng_state(state, state->device());
}

Tensor rng_state_meta(const Tensor& x, const OptionalTensor& state, c10::SymInt) {
  check_state(state);
  return at::empty({2}, x.options().dtype(at::kLong));
}

// In a compiled program an opaque operator, because Inductor drops a copy and reads the original
// later, when the caller may have counted its offset up; and with a seed of the wrapper's own
// integers, because those of Inductor's kernels end at 2^63.
Tensor rng_state_copied(const Tensor& x, const OptionalTensor& state, c10::SymInt seed) {
  check_state(state);
  const Tensor made = at::empty({2}, x.options().dtype(at::kLong));
  if (state && state->defined()) return made.copy_(*state);
  made.narrow(0, 0, 1).fill_(seed.guard_int(__FILE__, __LINE__));
  made.narrow(0, 1, 1).zero_();
  return made;
}

}  // namespace

TORCH_LIBRARY(actreg, m) {
#define ATTRIBUTES                                                                       \
  "str activation, float[] parameters, float p, bool on_output, float[]? coefficients, " \
  "str reduction, int[] order"
  // No number depends on strides, but a kernel copies what is not laid out as `order` says.
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
      "Tensor? anchor, SymInt[] sizes, ScalarType dtype, " ATTRIBUTES ") -> Tensor",
      pure);
  // d(dx)/dx of backward, element by element.
  m.def("curvature(Tensor? dy, Tensor? dpenalty, Tensor x, Tensor? rng_state, " ATTRIBUTES
        ", bool x_is_output=False) -> Tensor",
        pure);
#undef ATTRIBUTES
  m.def("rng_state(Tensor x, Tensor? state, SymInt seed) -> Tensor", pure);
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
  m.impl("rng_state", &rng_state_meta);
}

TORCH_LIBRARY_IMPL(actreg, CompositeExplicitAutograd, m) { m.impl("rng_state", &rng_state_copied); }
TORCH_LIBRARY_IMPL(actreg, Autograd, m) {
  m.impl("rng_state", torch::CppFunction::makeFallthrough());
}

}  // namespace actreg
