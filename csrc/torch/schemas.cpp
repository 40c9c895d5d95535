// The operators' registration, and the Meta kernels: shapes without data. Layer: torch.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "torch/dispatch.h"
#include "torch/rows.h"

namespace actreg {
namespace {

void check_bits(const Attributes& attributes) {
  Problem problem = problem_of(attributes);
  bits_state(problem, attributes);
}

Tensor bits_of(const Tensor& x) {
  return at::empty_symint({bytes_of_bits(x.sym_numel())}, x.options().dtype(at::kByte));
}

Results forward_meta(const Tensor& x, const OptionalTensor& row_weight,
                     const OptionalTensor* rng_state, const Attributes& attributes,
                     bool with_bits) {
  if (with_bits) check_bits(attributes);
  const Problem problem = make_problem(x, attributes);
  check_general(attributes, row_weight, x.dim());
  if (problem.drops() && rng_state) {
    check_rng_state(*rng_state, x.device(), problem.reads_threshold);
  }
  check_order(attributes.order, x.dim());
  Results results;
  results.y = empty_in_order(x.sym_sizes(), attributes.order, x.options());
  results.penalty = at::empty_symint(penalty_shape(attributes, x.sym_sizes()),
                                     x.options().dtype(penalty_type(x, attributes)));
  if (!rng_state) results.rng_state = at::empty({2}, x.options().dtype(at::kLong));
  if (with_bits) results.bits = bits_of(x);
  return results;
}

std::tuple<Tensor, Tensor> forward_in_place_meta(const Tensor& x, const OptionalTensor& rng_state,
                                                 const Attributes& attributes, bool with_bits,
                                                 const OptionalTensor& row_weight) {
  check_order(attributes.order, x.dim());
  writable(x, attributes.order);
  Results results = forward_meta(x, row_weight, &rng_state, attributes, with_bits);
  if (!with_bits) results.bits = at::empty({0}, x.options().dtype(at::kByte));
  return {results.penalty, results.bits};
}

void check_all_meta(std::initializer_list<OptionalTensor> tensors) {
  for (const OptionalTensor& tensor : tensors) {
    TORCH_CHECK_VALUE(!tensor || !tensor->defined() || tensor->device().is_meta(),
                      "actreg: tensors are on meta and on ", tensor->device());
  }
}

// Compiled autograd traces backward with placeholders, whose shapes, dtypes and devices are others.
// So the Meta kernels of backward check neither the shape nor the dtype of a tensor.
Tensor backward_meta(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                     const OptionalTensor& rng_state, const Attributes& attributes,
                     bool x_is_output, const OptionalTensor& row_weight) {
  check_all_meta({dy, dpenalty, x, row_weight, rng_state});
  make_problem(x, attributes, x_is_output);
  return empty_in_order(x.sym_sizes(), attributes.order, x.options());
}

Tensor backward_bits_meta(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                          const OptionalTensor& bits, const OptionalTensor& rng_state,
                          const OptionalTensor& anchor, c10::SymIntArrayRef sizes,
                          at::ScalarType dtype, const Attributes& attributes) {
  check_all_meta({dy, dpenalty, bits, rng_state, anchor});
  check_bits(attributes);
  return empty_in_order(sizes, attributes.order, options_of_dx(dy, dpenalty, dtype));
}

// The operator rng_state makes a tensor {seed, offset} on the device of x: a copy of `state`, or
// {seed, 0} without one. With p, a 0-d tensor, it makes {seed, offset, threshold}.
void check_state(const OptionalTensor& state) {
  if (state && state->defined()) check_rng_state(state, state->device());
}
Tensor rng_state_meta(const Tensor& x, const OptionalTensor& state, c10::SymInt,
                      const OptionalTensor& p) {
  check_state(state);
  return at::empty({p ? 3 : 2}, x.options().dtype(at::kLong));
}
// A compiled program cannot see into this operator, for two reasons. Inductor drops a visible copy
// and reads the original later, when the caller may have increased its offset. And Inductor's own
// kernels take integers below 2^63 only.
Tensor rng_state_copied(const Tensor& x, const OptionalTensor& state, c10::SymInt seed,
                        const OptionalTensor& p) {
  check_state(state);
  const Tensor made = at::empty({p ? 3 : 2}, x.options().dtype(at::kLong));
  if (state && state->defined()) {
    made.narrow(0, 0, 2).copy_(*state);
  } else {
    made.select(0, 0).fill_(seed.guard_int(__FILE__, __LINE__));
    made.select(0, 1).zero_();
  }
  if (p) made.select(0, 2).copy_(at::rsub(p->to(at::kDouble), 1).mul(double{kKeepAll}).round());
  return made;
}

// Op's schema, with the attributes written out.
template <class Op>
void define(torch::Library& library, const std::vector<at::Tag>& tags) {
  static constexpr c10::string_view kPlace = "ATTRIBUTES";
  std::string schema = std::string(Op::kName) + Op::kSchema;
  schema.replace(schema.find(kPlace), kPlace.size(), schema_of_attributes());
  library.def(schema.c_str(), tags);
}

}  // namespace

TORCH_LIBRARY(actreg, m) {
  // needs_exact_strides: results do not depend on strides, but a kernel copies a tensor that is not
  // laid out as `order` says.
  const std::vector<at::Tag> pure = {at::Tag::needs_exact_strides, at::Tag::pt2_compliant_tag};
  const std::vector<at::Tag> random = {at::Tag::needs_exact_strides, at::Tag::pt2_compliant_tag,
                                       at::Tag::nondeterministic_seeded};
  define<Forward>(m, pure);
  define<ForwardRandom>(m, random);
  define<ForwardBits>(m, pure);
  define<ForwardRandomBits>(m, random);
  define<ForwardInPlace>(m, pure);
  define<Backward>(m, pure);
  define<BackwardBits>(m, pure);
  define<Curvature>(m, pure);
  m.def("rng_state(Tensor x, Tensor? state, SymInt seed, Tensor? p=None) -> Tensor", pure);
}

TORCH_LIBRARY_IMPL(actreg, Meta, m) {
  implement_forward<&forward_meta>(m);
  implement<ForwardInPlace, &forward_in_place_meta>(m);
  implement<Backward, &backward_meta>(m);
  implement<BackwardBits, &backward_bits_meta>(m);
  implement<Curvature, &backward_meta>(m);
  m.impl("rng_state", &rng_state_meta);
}

TORCH_LIBRARY_IMPL(actreg, CompositeExplicitAutograd, m) { m.impl("rng_state", &rng_state_copied); }
TORCH_LIBRARY_IMPL(actreg, Autograd, m) {
  m.impl("rng_state", torch::CppFunction::makeFallthrough());
}

}  // namespace actreg
