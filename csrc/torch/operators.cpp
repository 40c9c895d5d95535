// From the arguments of an operator to a Problem, and the checks of these arguments. Layer: torch.
#include "torch/operators.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "core/registry.h"

namespace actreg {
namespace {

// D, which divides the penalty. At least 1, so that the penalty of an empty tensor is 0.
double denominator(c10::string_view reduction, at::IntArrayRef sizes) {
  const auto product = [](at::IntArrayRef of) {
    return static_cast<double>(std::max<int64_t>(c10::multiply_integers(of), 1));
  };
  if (reduction == "mean") return product(sizes);
  if (reduction == "batch") return product(sizes.slice(0, sizes.empty() ? 0 : 1));
  if (reduction == "token") return product(sizes.slice(0, sizes.empty() ? 0 : sizes.size() - 1));
  return 1;
}

bool is_a_reduction(c10::string_view name) {
  return name == "mean" || name == "batch" || name == "token" || name == "sum";
}

// Both gradients may be absent.
void check_gradients(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                     const Attributes& attributes, at::IntArrayRef sizes, at::Device device) {
  for (const OptionalTensor& tensor : {dy, dpenalty}) {
    TORCH_CHECK_VALUE(!tensor || !tensor->defined() || tensor->device() == device,
                      "actreg: a gradient is on ", tensor->device(), " and input on ", device);
  }
  TORCH_CHECK_VALUE(!dy || !dy->defined() || dy->sizes() == sizes, "actreg: dy has shape ",
                    dy->sizes(), ", but input has shape ", sizes);
  if (!dpenalty || !dpenalty->defined()) return;
  const auto shape = penalty_shape(attributes, sizes);
  TORCH_CHECK_VALUE(dpenalty->sizes() == at::IntArrayRef(shape), "actreg: dpenalty has the shape ",
                    at::IntArrayRef(shape), " of the penalty or the sums, but got shape ",
                    dpenalty->sizes());
}

}  // namespace

Element element_of(at::ScalarType type) {
  switch (type) {  // the only place that translates torch's dtypes into our list of types
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
  const double p = attributes.p.value_or(0.5);  // absent: any value that says that there is dropout
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "dropout probability has to be between 0 and 1, but got ", p);
  TORCH_CHECK_VALUE(!attributes.alpha || !attributes.on_output,
                    "actreg: alpha dropout takes no penalty on the output");
  TORCH_CHECK_VALUE(!attributes.coefficients || attributes.coefficients->size() == 2,
                    "actreg: coefficients are {l1, l2}, but got ", attributes.coefficients->size(),
                    " numbers");
  TORCH_CHECK_VALUE(is_a_reduction(attributes.reduction),
                    "actreg: reduction is mean, sum, batch or token, but got '",
                    attributes.reduction, "'");
  const auto& parameters = attributes.parameters;
  const auto activation =
      make_activation({attributes.activation.data(), attributes.activation.size()},
                      parameters.data(), parameters.size());
  TORCH_CHECK_VALUE(activation, "actreg: there is no activation '", attributes.activation,
                    "' with ", parameters.size(), " parameters");

  Problem problem;
  problem.activation = *activation;
  problem.dropout = Dropout(p);
  if (attributes.alpha) problem.dropout = Dropout(problem.dropout.threshold, true);
  problem.is_alpha = attributes.alpha;
  problem.reads_threshold = !attributes.p;
  problem.is_general = attributes.alpha || !attributes.p || attributes.channel_dim ||
                       !attributes.shared_dims.empty() || !attributes.global_shape.empty();
  problem.keeps_input = attributes.keep_input;
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

Problem forward_problem(const Tensor& x, const Attributes& attributes) {
  Problem problem = make_problem(x, attributes);
  check_order(attributes.order, x.sizes().size());
  problem.penalty.divide_by(denominator(attributes.reduction, x.sizes()));
  return problem;
}

void check_rng_state(const OptionalTensor& rng_state, at::Device device, bool has_threshold) {
  const char* form = has_threshold ? "{seed, offset, threshold}" : "{seed, offset}";
  TORCH_CHECK_VALUE(rng_state.has_value() && rng_state->defined(),
                    "actreg: dropout needs rng_state, an int64 tensor ", form);
  const int64_t length = has_threshold ? 3 : 2;
  TORCH_CHECK_VALUE(rng_state->scalar_type() == at::kLong && rng_state->dim() == 1 &&
                        rng_state->sym_size(0) == length,
                    "actreg: rng_state is an int64 tensor ", form, " of shape [", length,
                    "], but got ", rng_state->scalar_type(), " of shape ", rng_state->sym_sizes());
  TORCH_CHECK_VALUE(rng_state->device() == device, "actreg: rng_state is on ", rng_state->device(),
                    " and input on ", device);
}

Problem backward_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                         const Attributes& attributes, bool x_is_output) {
  Problem problem = make_problem(x, attributes, x_is_output);
  check_order(attributes.order, x.sizes().size());
  check_gradients(dy, dpenalty, attributes, x.sizes(), x.device());
  problem.penalty.divide_by(denominator(attributes.reduction, x.sizes()));
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

at::TensorOptions options_of_dx(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                                at::ScalarType dtype) {
  const bool has_dy = dy && dy->defined();
  TORCH_CHECK_VALUE(has_dy || (dpenalty && dpenalty->defined()),
                    "actreg: backward_bits needs dy or dpenalty");
  return (has_dy ? dy : dpenalty)->options().dtype(dtype);
}

BitsProblem bits_problem(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                         const OptionalTensor& bits, at::IntArrayRef sizes, at::ScalarType dtype,
                         const Attributes& attributes) {
  BitsProblem made{problem_of(attributes), {}, options_of_dx(dy, dpenalty, dtype)};
  made.problem.element = element_of(dtype);
  const State state = bits_state(made.problem, attributes);
  made.slopes = state.slopes;
  check_order(attributes.order, sizes.size());
  const at::Device device = made.dx.device();
  check_gradients(dy, dpenalty, attributes, sizes, device);
  const bool has_bits = bits && bits->defined();
  TORCH_CHECK_VALUE(has_bits || state.kept == Kept::kNothing,
                    "actreg: there are no bits, which the gradient of '", attributes.activation,
                    "' needs");
  if (has_bits) {
    const int64_t bytes = bytes_of_bits(c10::multiply_integers(sizes));
    TORCH_CHECK_VALUE(
        bits->scalar_type() == at::kByte && bits->dim() == 1 && bits->device() == device,
        "actreg: bits are a uint8 tensor of one dimension on ", device, ", but got ",
        bits->scalar_type(), " of ", bits->dim(), " dimensions on ", bits->device());
    TORCH_CHECK_VALUE(bits->numel() == bytes, "actreg: the bits of an input of shape ", sizes,
                      " have shape [", bytes, "], but got ", bits->sizes());
  }
  made.problem.penalty.divide_by(denominator(attributes.reduction, sizes));
  return made;
}

at::ScalarType accumulation_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::ScalarType penalty_type(const Tensor& x, const Attributes& attributes) {
  const bool are_sums_of_channels = attributes.channel_dim && !attributes.coefficients;
  return are_sums_of_channels ? at::kDouble : accumulation_type(x);
}

}  // namespace actreg
