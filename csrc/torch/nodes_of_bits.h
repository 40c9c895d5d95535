// The nodes of the autograd graph that keep bits instead of x. Layer: torch.
// See Note [What is kept for backward]. Such a gradient is linear in dy and dpenalty and, but at
// the kinks, constant in x.
#pragma once

#include "torch/nodes.h"

namespace actreg {

// penalty_direction with bits: the sum of v * backward_bits(dpenalty = 1).
inline Tensor penalty_direction(const Tensor& v, const OptionalTensor& bits,
                                const OptionalTensor& rng_state, Shape shape, const Attributes& a) {
  shape.dtype = accumulation_type(v);
  const Tensor one = at::ones({}, v.options().dtype(shape.dtype));
  return (v.to(shape.dtype) * call_bits(std::nullopt, one, bits, rng_state, std::nullopt, shape, a))
      .sum();
}

struct BitsNode : public ActRegNode<2> {  // saved: bits, rng_state; each undefined if not needed
  Shape shape;

  BitsNode(edge_list&& edges, const Attributes& a, const Two& tensors, Shape shape)
      : ActRegNode(std::move(edges), a, tensors), shape(std::move(shape)) {}

  OptionalTensor bits() { return optional(saved[0].unpack()); }
  OptionalTensor rng_state() { return optional(saved[1].unpack()); }

  void compiled_args(CompiledNodeArgs& args) const override {
    ActRegNode::compiled_args(args);
    shape.collect(args);
  }
  variable_list apply_with_saved(const variable_list& inputs, SwapSavedVariables& swap) override {
    return shape.swapped(swap, [&] { return ActRegNode::apply_with_saved(inputs, swap); });
  }
};

// Of the anchor, a zero that depends on x as a gradient from bits does: its derivative by x is 0,
// but it is there, as it is of the gradients of activations of torch.
struct ActRegAnchor final : public Node {
  Shape shape;

  ActRegAnchor(edge_list&& edges, Shape shape) : Node(std::move(edges)), shape(std::move(shape)) {}
  std::string name() const override { return "ActRegAnchor"; }
  variable_list apply(variable_list&& gradients) override {
    if (!gradients[0].defined()) return {Tensor()};
    return {at::zeros_symint(shape.sizes, gradients[0].options().dtype(shape.dtype))};
  }
  void compiled_args(CompiledNodeArgs& args) const override { shape.collect(args); }
  variable_list apply_with_saved(const variable_list& inputs, SwapSavedVariables& swap) override {
    return shape.swapped(swap, [&] { return this->apply(variable_list(inputs)); });
  }
};

struct ActRegBitsBackwardBackward final : public BitsNode {  // of dy, dpenalty and the anchor
  using BitsNode::BitsNode;
  std::string name() const override { return "ActRegBitsBackwardBackward"; }

  variable_list apply_with_saved(const variable_list& inputs, SwapSavedVariables& swap) override {
    return BitsNode::apply_with_saved({shaped(inputs[0], shape)}, swap);
  }
  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor& v = gradients[0];
    variable_list result(3);
    if (!v.defined()) return result;
    const Attributes a = attributes.view();
    if (task_should_compute_output(0)) {
      result[0] = call_bits(v, std::nullopt, bits(), rng_state(), std::nullopt, shape, a);
    }
    if (task_should_compute_output(1)) {
      result[1] = penalty_direction(v, bits(), rng_state(), shape, a);
    }
    if (task_should_compute_output(2)) result[2] = at::zeros({}, v.options());
    return result;
  }
};

struct ActRegBitsBackward final : public BitsNode {
  using BitsNode::BitsNode;
  std::string name() const override { return "ActRegBitsBackward"; }

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor &dy = gradients[0], &dpenalty = gradients[1];
    if (!task_should_compute_output(0) || (!dy.defined() && !dpenalty.defined())) {
      return {Tensor()};
    }
    const OptionalTensor marks = bits(), state = rng_state();
    OptionalTensor anchor;
    if (at::GradMode::is_enabled()) {
      anchor = make_anchor(marks ? *marks : state ? *state : dy.defined() ? dy : dpenalty);
    }
    return {call_bits(optional(dy), optional(dpenalty), marks, state, anchor, shape,
                      attributes.view())};
  }

 private:
  // Best like what was kept: under is_grads_batched dy belongs to a transform that will be over,
  // and only the operator sees through it to a dx that stays.
  Tensor make_anchor(const Tensor& like) {
    const Tensor anchor = like.new_zeros({}, like.options().dtype(at::kFloat));
    torch::autograd::set_history(anchor, make_node<ActRegAnchor>(edge_list{next_edge(0)}, shape));
    return anchor;
  }
};

}  // namespace actreg
