// The nodes that keep bits instead of x, or nothing. Layer: torch.
// See Note [Hand-written nodes] and Note [What is kept for backward]. A gradient from bits is
// linear in dy and dpenalty. Its derivative by x is 0 everywhere but at the kinks.
#pragma once

#include "torch/nodes.h"

namespace actreg {

inline Tensor call_bits(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                        const OptionalTensor& bits, const OptionalTensor& rng_state,
                        const OptionalTensor& anchor, const Shape& shape, const Attributes& a) {
  return BackwardBits::call(dy, dpenalty, bits, rng_state, anchor, shape.sizes, shape.dtype, a);
}

// What a gradient from bits is computed from. Bits and rng_state are undefined where not needed.
template <class N>
struct BitsNode : public ActRegNode<N> {
  Saved bits, rng_state;
  OwnedAttributes attributes;
  Shape shape;  // of x

  template <class Self>
  static auto kept(Self& node) {
    return std::tie(node.bits, node.rng_state, node.attributes, node.shape);
  }
  BitsNode(edge_list&& edges, const Attributes& a, const Tensor& bits, const Tensor& rng_state,
           Shape shape)
      : ActRegNode<N>(std::move(edges)),
        bits(bits),
        rng_state(rng_state),
        attributes(owned(a)),
        shape(std::move(shape)) {}
};

// The node of the anchor. The anchor is a scalar 0 that goes into backward_bits, so that dx depends
// on x in the graph. The derivative of dx by x, which is 0, then exists, as it does for the
// activations of torch.
struct ActRegAnchor final : public ActRegNode<ActRegAnchor> {
  static constexpr char kName[] = "ActRegAnchor";
  Shape shape;  // of x

  template <class Self>
  static auto kept(Self& node) {
    return std::tie(node.shape);
  }
  ActRegAnchor(edge_list&& edges, Shape shape)
      : ActRegNode(std::move(edges)), shape(std::move(shape)) {}

  variable_list differentiate(const variable_list& gradients) {
    if (!gradients[0].defined()) return {Tensor()};
    return {at::zeros_symint(shape.sizes, gradients[0].options().dtype(shape.dtype))};
  }
};

struct ActRegBitsBackwardBackward final : public BitsNode<ActRegBitsBackwardBackward> {
  static constexpr char kName[] = "ActRegBitsBackwardBackward";
  using BitsNode::BitsNode;

  variable_list differentiate(const variable_list& gradients) {  // of dy, dpenalty and the anchor
    variable_list result(3);
    if (!gradients[0].defined()) return result;
    const Tensor v = is_compiled ? shaped(gradients[0], shape) : gradients[0];
    const OptionalTensor marks = optional(unpack(bits)), state = optional(unpack(rng_state));
    const Attributes a = view(attributes);
    if (task_should_compute_output(0)) {
      result[0] = call_bits(v, std::nullopt, marks, state, std::nullopt, shape, a);
    }
    if (task_should_compute_output(1)) {
      Shape wide = shape;
      wide.dtype = accumulation_type(v);
      result[1] = penalty_direction(v, wide.dtype, a, [&](const Tensor& dpenalty) {
        return call_bits(std::nullopt, dpenalty, marks, state, std::nullopt, wide, a);
      });
    }
    if (task_should_compute_output(2)) result[2] = at::zeros({}, v.options());
    return result;
  }
};

struct ActRegBitsBackward final : public BitsNode<ActRegBitsBackward>, public ForwardNode {
  static constexpr char kName[] = "ActRegBitsBackward";
  using BitsNode::BitsNode;

  template <class Self>
  static auto kept(Self& node) {
    return std::tuple_cat(BitsNode::kept(node), std::tie(node.run));
  }

  variable_list differentiate(const variable_list& gradients) {
    const Tensor& dy = gradients[0];
    if (!task_should_compute_output(0) || (!dy.defined() && !gradients[1].defined())) {
      return {Tensor()};
    }
    const Tensor marks = unpack(bits), state = unpack(rng_state);
    const Tensor dpenalty = with_injected(dy, gradients[1], shape.dtype);
    OptionalTensor anchor;
    if (at::GradMode::is_enabled()) {
      // The anchor is made from a kept tensor, if there is one. Under is_grads_batched dy belongs
      // to a transform that ends earlier than dx, and so would an anchor made from dy.
      anchor = make_anchor(marks.defined()   ? marks
                           : state.defined() ? state
                           : dy.defined()    ? dy
                                             : dpenalty);
    }
    return {call_bits(optional(dy), optional(dpenalty), optional(marks), optional(state), anchor,
                      shape, view(attributes))};
  }

 private:
  Tensor make_anchor(const Tensor& like) {
    const Tensor anchor = like.new_zeros({}, like.options().dtype(at::kFloat));
    torch::autograd::set_history(anchor, make_node<ActRegAnchor>(edge_list{next_edge(0)}, shape));
    return anchor;
  }
};

}  // namespace actreg
