// The nodes of the autograd graph: what backward runs, and what it keeps for it. Layer: torch.
//
// Note [Hand-written nodes]
// The nodes are hung on the outputs as generated code of PyTorch does it. torch::autograd::Function
// and Python formulas are slower, and do not work under torch.func or are wrong in the second
// order. backward is linear in dy and dpenalty, and elementwise in x: its derivatives are itself
// again, and `curvature` times the direction. nodes_of_bits.h has those that do without x.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/util/ScopeExit.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "torch/shape.h"

namespace actreg {

using torch::autograd::edge_list;
using torch::autograd::Node;
using torch::autograd::SavedVariable;

// torch 2.13 moved nodes from shared_ptr to intrusive_ptr.
template <class N, class... Arguments>
auto make_node(Arguments&&... arguments) {
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 13)
  return c10::make_intrusive<N>(std::forward<Arguments>(arguments)...);
#else
  return std::shared_ptr<N>(new N(std::forward<Arguments>(arguments)...),
                            torch::autograd::deleteNode);
#endif
}

// Attributes that a node may keep.
struct OwnedAttributes {
  std::string activation;
  std::vector<double> parameters;
  double p;
  bool on_output;
  std::optional<std::vector<double>> coefficients;
  std::string reduction;
  std::vector<int64_t> order;

  explicit OwnedAttributes(const Attributes& a)
      : activation(a.activation.data(), a.activation.size()),
        parameters(a.parameters.vec()),
        p(a.p),
        on_output(a.on_output),
        reduction(a.reduction.data(), a.reduction.size()),
        order(a.order.vec()) {
    if (a.coefficients) coefficients = a.coefficients->vec();
  }
  Attributes view() const {
    Attributes a{activation, parameters, p, on_output, std::nullopt, reduction, order};
    if (coefficients) a.coefficients = *coefficients;
    return a;
  }
  void collect(CompiledNodeArgs& args) const {
    args.collect(activation);
    args.collect(parameters);
    args.collect(p);
    args.collect(on_output);
    args.collect(coefficients);
    args.collect(reduction);
    args.collect(order);
  }
};

inline Tensor call(const c10::TypedOperatorHandle<Backward>& op, const OptionalTensor& dy,
                   const OptionalTensor& dpenalty, const Tensor& x, const OptionalTensor& rng_state,
                   const Attributes& a, bool x_is_output) {
  return op.call(dy, dpenalty, x, rng_state, a.activation, a.parameters, a.p, a.on_output,
                 a.coefficients, a.reduction, a.order, x_is_output);
}

// A node that is alive, as SavedVariable::unpack takes it.
inline auto pointer_to(Node* node) {
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 13)
  return c10::intrusive_ptr<Node>::reclaim_copy(node);
#else
  return node->shared_from_this();
#endif
}

inline OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}
using Two = std::array<Tensor, 2>;
inline Tensor tangent(const OptionalTensor& tensor) {
  return tensor && torch::autograd::isFwGradDefined(*tensor) ? tensor->_fw_grad(0) : Tensor();
}
inline OptionalTensor primal(const OptionalTensor& tensor) {
  return tensor && torch::autograd::isFwGradDefined(*tensor) ? tensor->_fw_primal(0) : tensor;
}
inline Tensor tensor_or_none(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }
inline Tensor plus(const Tensor& a, const Tensor& b) {
  return !a.defined() ? b : !b.defined() ? a : a + b;
}

// d(penalty)/dx in the direction v: sum of v * backward(dpenalty = 1), for each raw sum if there
// are no coefficients.
inline Tensor penalty_direction(const Tensor& v, const Tensor& x, const OptionalTensor& rng_state,
                                const Attributes& a, bool x_is_output) {
  const auto type = accumulation_type(x);  // in which 1 / D does not underflow
  const Tensor wide_x = x.to(type), wide_v = v.to(type);
  const auto options = x.options().dtype(type);
  const auto along = [&](const Tensor& dpenalty) {
    return (wide_v *
            call(backward_operator(), std::nullopt, dpenalty, wide_x, rng_state, a, x_is_output))
        .sum();
  };
  if (a.coefficients) return along(at::ones({}, options));
  const Tensor unit = at::eye(2, options);
  return at::stack(std::vector<Tensor>{along(unit[0]), along(unit[1])});
}

// What the nodes share: the saved tensors, the lock, compiled autograd.
template <int kSaved>
struct ActRegNode : public Node {
  SavedVariable saved[kSaved];
  OwnedAttributes attributes;
  bool keeps_output = false;  // saved[0] is an output of this node

  ActRegNode(edge_list&& edges, const Attributes& a, const std::array<Tensor, kSaved>& tensors)
      : Node(std::move(edges)), attributes(a) {
    for (int i = 0; i < kSaved; ++i) saved[i] = SavedVariable(tensors[i], false);
  }
  Tensor unpack(int i) {
    return keeps_output && i == 0 ? saved[i].unpack(pointer_to(this)) : saved[i].unpack();
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }
  void compiled_args(CompiledNodeArgs& args) const override {
    for (const auto& variable : saved) {
      args.collect(variable, keeps_output && &variable == saved);
    }
    args.collect(keeps_output);
    attributes.collect(args);
  }
  variable_list apply_with_saved(const variable_list& inputs, SwapSavedVariables& swap) override {
    for (auto& variable : saved) swap.before(variable);
    variable_list result = this->apply(variable_list(inputs));
    for (auto& variable : saved) swap.after(variable);
    return result;
  }
};

struct ActRegBackward final : public ActRegNode<2> {  // saved: x (or the output), rng_state
  using ActRegNode::ActRegNode;
  std::string name() const override { return "ActRegBackward"; }

  // In the place of x, once this node is the history of `output`. With dropout that is s * a where
  // it is kept, and backward, which multiplies a by s^2 for the penalty on it, needs one s less.
  void keep_output(const Tensor& output, double s) {
    keeps_output = true;
    saved[0] = SavedVariable(output, true);
    if (attributes.coefficients) {
      double& l2 = (*attributes.coefficients)[1];  // not off, however small
      if (l2 != 0) l2 = std::max(l2 / s, std::numeric_limits<double>::denorm_min());
    }
  }
  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor &dy = gradients[0], &dpenalty = gradients[1];
    if (!task_should_compute_output(0) || (!dy.defined() && !dpenalty.defined())) {
      return {Tensor()};
    }
    return {call(backward_operator(), optional(dy), optional(dpenalty), unpack(0),
                 optional(unpack(1)), attributes.view(), keeps_output)};
  }
};

struct ActRegBackwardBackward final : public ActRegNode<4> {  // saved: dy, dpenalty, x, rng_state
  bool x_is_output, is_compiled = false;

  ActRegBackwardBackward(edge_list&& edges, const Attributes& a, bool x_is_output,
                         const std::array<Tensor, 4>& tensors)
      : ActRegNode(std::move(edges), a, tensors), x_is_output(x_is_output) {}
  std::string name() const override { return "ActRegBackwardBackward"; }
  void compiled_args(CompiledNodeArgs& args) const override {
    ActRegNode::compiled_args(args);
    args.collect(x_is_output);
  }
  variable_list apply_with_saved(const variable_list& inputs, SwapSavedVariables& swap) override {
    is_compiled = true;
    const auto reset = c10::make_scope_exit([&] { is_compiled = false; });
    return ActRegNode::apply_with_saved(inputs, swap);
  }

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!gradients[0].defined()) return {Tensor(), Tensor(), Tensor()};
    const auto dy = optional(saved[0].unpack()), dpenalty = optional(saved[1].unpack());
    const Tensor x = saved[2].unpack();
    const Tensor v = is_compiled ? shaped(gradients[0], Shape(x)) : gradients[0];
    const auto rng_state = optional(saved[3].unpack());
    const Attributes a = attributes.view();
    variable_list result(3);
    if (dy && task_should_compute_output(0)) {
      result[0] = call(backward_operator(), v, std::nullopt, x, rng_state, a, x_is_output);
    }
    if (dpenalty && task_should_compute_output(1)) {
      result[1] = penalty_direction(v, x, rng_state, a, x_is_output).to(dpenalty->scalar_type());
    }
    if (task_should_compute_output(2)) {
      result[2] = v * call(curvature_operator(), dy, dpenalty, x, rng_state, a, x_is_output);
    }
    return result;
  }
};

}  // namespace actreg
