// The checks, and the way from tensors to a Problem. Layer: torch.
#include "torch/operators.h"

#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>

#include <cmath>
#include <vector>

#include "core/registry.h"

namespace actreg {
namespace {

void check_dpenalty(const OptionalTensor& dpenalty, const Attributes& attributes) {
  TORCH_CHECK_VALUE(
      !dpenalty || !dpenalty->defined() || dpenalty->sizes() == penalty_shape(attributes),
      "actreg: dpenalty is a scalar, or two numbers without coefficients; but got "
      "shape ",
      dpenalty->sizes());
}

}  // namespace

Element element_of(at::ScalarType type) {
  switch (type) {  // the border between torch's enumeration and our list of types
    case at::kFloat:
      return ElementType<float>{};
    case at::kDouble:
      return ElementType<double>{};
    case at::kHalf:
      return ElementType<Half>{};
    case at::kBFloat16:
      return ElementType<BFloat16>{};
    default:
      TORCH_CHECK_TYPE(false, "actreg: input has dtype ", type,
                       "; accepted are float32, float64, float16 and bfloat16");
  }
}

Problem problem_of(const Attributes& attributes) {
  TORCH_CHECK_VALUE(attributes.p >= 0 && attributes.p <= 1,
                    "dropout probability has to be between 0 and 1, but got ", attributes.p);
  TORCH_CHECK_VALUE(!attributes.coefficients || attributes.coefficients->size() == 2,
                    "actreg: coefficients are {l1 / D, l2 / D}, but got ",
                    attributes.coefficients->size(), " numbers");
  const auto& parameters = attributes.parameters;
  const auto activation =
      make_activation({attributes.activation.data(), attributes.activation.size()},
                      parameters.data(), parameters.size());
  TORCH_CHECK_VALUE(activation, "actreg: there is no activation '", attributes.activation,
                    "' with ", parameters.size(), " parameters");

  Problem problem;
  problem.activation = *activation;
  problem.dropout = Dropout(attributes.p);
  if (attributes.on_output) problem.counted = problem.dropout.threshold;
  Penalty& penalty = problem.penalty;
  penalty.s = problem.counted == kKeepAll ? 1 : problem.dropout.scale;
  if (const auto& coefficients = attributes.coefficients) {
    penalty.is_weighted = true;
    penalty.l1 = (*coefficients)[0];
    penalty.l2 = (*coefficients)[1];
  }
  return problem;
}

Problem make_problem(const Tensor& x, const Attributes& attributes, bool x_is_output) {
  const Element element = element_of(x.scalar_type());
  TORCH_CHECK_VALUE(x.layout() == at::kStrided, "actreg: input has layout ", x.layout(),
                    "; accepted are strided tensors");
  Problem problem = problem_of(attributes);
  problem.element = element;
  problem.x_is_output = x_is_output;
  TORCH_CHECK_VALUE(!x_is_output || state_of(problem).kept == Kept::kOutput,
                    "actreg: the output is not enough for the gradient of '", attributes.activation,
                    "' in ", x.scalar_type(), " with these parameters and penalties");
  return problem;
}

void check_rng_state(const OptionalTensor& rng_state, at::Device device) {
  TORCH_CHECK_VALUE(rng_state.has_value() && rng_state->defined(),
                    "actreg: dropout needs rng_state, an int64 tensor {seed, offset}");
  TORCH_CHECK_VALUE(rng_state->scalar_type() == at::kLong && rng_state->dim() == 1 &&
                        rng_state->sym_size(0) == 2 && rng_state->is_contiguous(),
                    "actreg: rng_state is a contiguous int64 tensor {seed, offset} of shape [2], "
                    "but got ",
                    rng_state->scalar_type(), " of shape ", rng_state->sym_sizes());
  TORCH_CHECK_VALUE(rng_state->device() == device, "actreg: rng_state is on ", rng_state->device(),
                    " and input on ", device);
}

void check_devices(const OptionalTensor& dy, const OptionalTensor& dpenalty, at::Device device) {
  for (const OptionalTensor& tensor : {dy, dpenalty}) {
    TORCH_CHECK_VALUE(!tensor || !tensor->defined() || tensor->device() == device,
                      "actreg: a gradient is on ", tensor->device(), " and input on ", device);
  }
}

Problem backward_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                         const Attributes& attributes, bool x_is_output) {
  Problem problem = make_problem(x, attributes, x_is_output);
  check_devices(dy, dpenalty, x.device());
  TORCH_CHECK_VALUE(!dy || !dy->defined() || dy->sizes() == x.sizes(), "actreg: dy has shape ",
                    dy->sizes(), ", but input has shape ", x.sizes());
  check_dpenalty(dpenalty, attributes);
  return problem;
}

State bits_state(Problem& problem, const Attributes& attributes) {
  const State state = state_of(problem);
  TORCH_CHECK_VALUE(state.kept == Kept::kBits || state.kept == Kept::kNothing,
                    "actreg: a bit for each element is not enough for the gradient of '",
                    attributes.activation, "' with these parameters and penalties");
  problem.marked = state.marked;
  return state;
}

BitsProblem bits_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                         const OptionalTensor& bits, const OptionalTensor& rng_state,
                         at::ScalarType dtype, const Attributes& attributes) {
  const bool has_dy = dy && dy->defined();
  TORCH_CHECK_VALUE(has_dy || (dpenalty && dpenalty->defined()),
                    "actreg: backward_bits needs dy or dpenalty");
  BitsProblem made;
  made.problem = problem_of(attributes);
  made.problem.element = element_of(dtype);
  made.dx = (has_dy ? dy : dpenalty)->options().dtype(dtype);
  const State state = bits_state(made.problem, attributes);
  made.slopes = state.slopes;
  const at::Device device = made.dx.device();
  if (made.problem.draws_again()) check_rng_state(rng_state, device);
  check_devices(dy, dpenalty, device);
  const bool has_bits = bits && bits->defined();
  TORCH_CHECK_VALUE(has_bits || state.kept == Kept::kNothing, "actreg: there are no bits");
  TORCH_CHECK_VALUE(!has_bits || (bits->scalar_type() == at::kByte && bits->dim() == 1 &&
                                  bits->is_contiguous() && bits->device() == device),
                    "actreg: bits are a contiguous uint8 tensor on ", device);
  return made;
}

BitsProblem bits_problem_of_shapes(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                                   const OptionalTensor& bits, const OptionalTensor& rng_state,
                                   at::IntArrayRef sizes, at::IntArrayRef strides,
                                   at::ScalarType dtype, const Attributes& attributes) {
  BitsProblem made = bits_problem(dy, dpenalty, bits, rng_state, dtype, attributes);
  TORCH_CHECK_VALUE(!dy || !dy->defined() || dy->sizes() == sizes, "actreg: dy has shape ",
                    dy->sizes(), ", but input has shape ", sizes);
  check_dpenalty(dpenalty, attributes);
  const bool is_dense =
      dy && dy->defined() && dy->strides() == strides  // as almost always: nothing to be made
          ? dy->is_non_overlapping_and_dense()
          : sizes.size() == strides.size() &&
                at::empty_strided(sizes, strides, made.dx.device(at::kMeta))
                    .is_non_overlapping_and_dense();
  TORCH_CHECK_VALUE(is_dense, "actreg: strides ", strides, " do not make shape ", sizes, " dense");
  if (bits && bits->defined()) {
    const int64_t bytes = bytes_of_bits(c10::multiply_integers(sizes));
    TORCH_CHECK_VALUE(bits->numel() == bytes, "actreg: bits of shape ", sizes, " have shape [",
                      bytes, "], but got ", bits->sizes());
  }
  return made;
}

Tensor dense(const Tensor& x) { return x.is_non_overlapping_and_dense() ? x : x.contiguous(); }

Tensor writable(const Tensor& x) {
  at::assert_no_internal_overlap(x);
  return x.is_non_overlapping_and_dense() ? x : Tensor();
}

Tensor with_layout_of(const Tensor& x, const OptionalTensor& dy) {
  if (!dy || !dy->defined()) return at::zeros_like(x);
  if (dy->scalar_type() == x.scalar_type() && dy->strides() == x.strides()) return *dy;
  return at::empty_like(x).copy_(*dy);
}

at::ScalarType accumulation_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::IntArrayRef penalty_shape(const Attributes& attributes) {
  static constexpr int64_t kTwo[] = {2};
  return attributes.coefficients ? at::IntArrayRef() : at::IntArrayRef(kTwo);
}

}  // namespace actreg
