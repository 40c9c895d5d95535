// The nodes that keep x or the output of forward, and formulas that all nodes use. Layer: torch.
// See Note [Hand-written nodes] and Note [What is kept for backward].
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "torch/node.h"

namespace actreg {

// An absent tensor is an undefined Tensor in the graph, and std::nullopt as an argument of an
// operator.
inline OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}
inline Tensor tensor_or_none(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

// For forward mode: the tangent of a tensor (undefined if it has none), and the tensor without its
// tangent.
inline Tensor tangent(const OptionalTensor& tensor) {
  return tensor && torch::autograd::isFwGradDefined(*tensor) ? tensor->_fw_grad(0) : Tensor();
}
inline OptionalTensor primal(const OptionalTensor& tensor) {
  return tensor && torch::autograd::isFwGradDefined(*tensor) ? tensor->_fw_primal(0) : tensor;
}

// The derivative of the penalty in the direction v: sum(v * dx), with dx = backward(dpenalty = 1).
// Without coefficients: the derivatives of the sums, which are 0 for N. backward has to compute in
// `type`, because 1 / D may underflow in float16.
template <class F>
Tensor penalty_direction(const Tensor& v, at::ScalarType type, const Attributes& a, F backward) {
  const Tensor wide = v.to(type);
  const auto options = v.options().dtype(type);
  const auto shape = penalty_shape(a, v.sym_sizes());
  if (a.coefficients) return (wide * backward(at::ones({}, options))).sum();
  // Row k of the sums has the gradient 1, and the other rows 0.
  const auto along = [&](int64_t k) {
    std::vector<Tensor> of_row;
    for (int64_t row = 0; row < (a.channel_dim ? 3 : 2); ++row) {
      of_row.push_back(at::full_symint(c10::SymIntArrayRef(shape).slice(1), row == k, options));
    }
    const Tensor product = wide * backward(at::stack(of_row));
    if (!a.channel_dim) return product.sum();
    if (*a.channel_dim < 0) return product.sum().view({1});
    return product.movedim(*a.channel_dim, 0).unsqueeze(-1).flatten(1).sum(1);
  };
  std::vector<Tensor> sums{along(0), along(1)};
  if (a.channel_dim) sums.push_back(at::zeros_like(sums[0]));
  return at::stack(sums);
}
inline Tensor penalty_direction(const Tensor& v, const Tensor& x, const OptionalTensor& row_weight,
                                const OptionalTensor& rng_state, const Attributes& a,
                                bool x_is_output) {
  const auto type = accumulation_type(x);
  const Tensor wide = x.to(type);
  return penalty_direction(v, type, a, [&](const Tensor& dpenalty) {
    return Backward::call(std::nullopt, dpenalty, wide, rng_state, a, x_is_output, row_weight);
  });
}

// What the nodes of the forward operators share.
struct ForwardNode {
  Run run;

  virtual ~ForwardNode() = default;

 protected:
  // The gradient of the penalty: what the graph gives, plus what is injected. Nothing is injected
  // if the output has no gradient.
  Tensor with_injected(const Tensor& dy, const Tensor& dpenalty, at::ScalarType x_type) {
    if (!run.scale.defined() || !dy.defined()) return dpenalty;
    TORCH_CHECK(!run.has_injected,
                "ActReg(inject=True): a second backward through the same forward would add the "
                "gradient of the penalty again. Use inject=False and collect_penalty.");
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "ActReg(inject=True): a backward with create_graph=True would differentiate the "
                "injected gradient too. Use inject=False and collect_penalty.");
    const c10::DispatchKeySet batched(
        {c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched});
    TORCH_CHECK(
        !dy.key_set().has_any(batched),
        "ActReg(inject=True): a backward of several gradients at once would add the gradient "
        "of the penalty to each. Use inject=False and collect_penalty.");
    run.has_injected = true;
    const auto type = x_type == at::kDouble ? at::kDouble : at::kFloat;
    Tensor injected = run.scale.to(dy.options().dtype(type), /*non_blocking=*/true);
    if (run.divisor != 1) injected = injected / run.divisor;
    return dpenalty.defined() ? dpenalty + injected : injected;
  }
};

struct ActRegBackward final : public ActRegNode<ActRegBackward>, public ForwardNode {
  static constexpr char kName[] = "ActRegBackward";
  Saved x, row_weight, rng_state;  // x may be the output: see keep_output
  OwnedAttributes attributes;

  template <class Self>
  static auto kept(Self& node) {
    return std::tie(node.x, node.row_weight, node.rng_state, node.attributes, node.run);
  }
  ActRegBackward(edge_list&& edges, const Attributes& a, const Tensor& x, const Tensor& row_weight,
                 const Tensor& rng_state)
      : ActRegNode(std::move(edges)),
        x(x),
        row_weight(row_weight),
        rng_state(rng_state),
        attributes(owned(a)) {}

  // Keeps the output instead of x. Call this when the node is the history of `output` already.
  // The l2 term of dx is 2 * l2 * s^2 * a. With dropout, a kept element of the output is s * a, and
  // backward takes it for a. So it computes 2 * l2 * s^2 * (s * a). Dividing l2 by s corrects this.
  void keep_output(const Tensor& output, double s) {
    x = Saved(output, true);
    if (attributes.coefficients) {
      double& l2 = (*attributes.coefficients)[1];
      // A coefficient other than 0 must not become 0, which would turn the penalty off.
      if (l2 != 0) l2 = std::max(l2 / s, std::numeric_limits<double>::denorm_min());
    }
  }
  variable_list differentiate(const variable_list& gradients) {
    const Tensor& dy = gradients[0];
    if (!task_should_compute_output(0) || (!dy.defined() && !gradients[1].defined())) {
      return {Tensor()};
    }
    const Tensor at = unpack_x();
    const Tensor dpenalty = with_injected(dy, gradients[1], at.scalar_type());
    return {Backward::call(optional(dy), optional(dpenalty), at, optional(unpack(rng_state)),
                           view(attributes), x.is_output, optional(unpack(row_weight)))};
  }

 private:
  // An error of torch says which tensor is missing, but not who needs it.
  Tensor unpack_x() {
    try {
      return unpack(x);
    } catch (const c10::Error& error) {
      const char* advice =
          run.is_freed ? "If collect_penalty was called after backward, call it before."
          : x.is_output
              ? "Its backward needs its output. Pass keep=\"input\" to ActReg, or do not modify "
                "the output in place."
              : "Its backward needs its input. Do not modify the input in place.";
      TORCH_CHECK(false, error.what_without_backtrace(), "\nThis is the backward of ActReg(\"",
                  attributes.activation, "\"). ", advice);
    }
  }
};

struct ActRegBackwardBackward final : public ActRegNode<ActRegBackwardBackward> {
  static constexpr char kName[] = "ActRegBackwardBackward";
  Saved dy, dpenalty, x, row_weight, rng_state;
  OwnedAttributes attributes;
  bool x_is_output;

  template <class Self>
  static auto kept(Self& node) {
    return std::tie(node.dy, node.dpenalty, node.x, node.row_weight, node.rng_state,
                    node.attributes, node.x_is_output);
  }
  ActRegBackwardBackward(edge_list&& edges, const Attributes& a, const Tensor& dy,
                         const Tensor& dpenalty, const Tensor& x, const Tensor& row_weight,
                         const Tensor& rng_state, bool x_is_output)
      : ActRegNode(std::move(edges)),
        dy(dy),
        dpenalty(dpenalty),
        x(x),
        row_weight(row_weight),
        rng_state(rng_state),
        attributes(owned(a)),
        x_is_output(x_is_output) {}

  variable_list differentiate(const variable_list& gradients) {  // of dy, dpenalty and x
    variable_list result(3);
    if (!gradients[0].defined()) return result;
    const auto given_dy = optional(unpack(dy)), given_dpenalty = optional(unpack(dpenalty));
    const Tensor at = unpack(x);
    const auto weight = optional(unpack(row_weight)), state = optional(unpack(rng_state));
    const Tensor v = is_compiled ? shaped(gradients[0], Shape(at)) : gradients[0];
    const Attributes a = view(attributes);
    if (given_dy && task_should_compute_output(0)) {
      result[0] = Backward::call(v, std::nullopt, at, state, a, x_is_output, weight);
    }
    if (given_dpenalty && task_should_compute_output(1)) {
      result[1] =
          penalty_direction(v, at, weight, state, a, x_is_output).to(given_dpenalty->scalar_type());
    }
    if (task_should_compute_output(2)) {
      result[2] = v * Curvature::call(given_dy, given_dpenalty, at, state, a, x_is_output, weight);
    }
    return result;
  }
};

}  // namespace actreg
