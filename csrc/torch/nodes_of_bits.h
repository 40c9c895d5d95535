// The nodes of the autograd graph that keep bits instead of x. Layer: torch.
// See Note [What is kept for backward]. Such a gradient is linear in dy and dpenalty and, but at
// the kinks, constant in x.
#pragma once

#include "torch/nodes.h"

namespace actreg {

// x as the kernels walk it, which the order of the bits and of the mask depends on.
struct Shape {
  std::vector<c10::SymInt> sizes, strides;
  at::ScalarType dtype;

  explicit Shape(const Tensor& x)
      : sizes(x.sym_sizes().vec()), strides(x.sym_strides().vec()), dtype(x.scalar_type()) {
    if (x.is_non_overlapping_and_dense()) return;
    c10::SymInt stride = 1;  // of a contiguous copy
    for (int64_t dim = x.dim() - 1; dim >= 0; --dim) {
      strides[dim] = stride;
      stride = stride * sizes[dim].max(1);
    }
  }
  Shape(c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides, at::ScalarType dtype)
      : sizes(sizes.vec()), strides(strides.vec()), dtype(dtype) {}
};

inline Tensor call_bits(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                        const OptionalTensor& bits, const OptionalTensor& rng_state,
                        const Shape& shape, const Attributes& a) {
  return backward_bits_operator().call(dy, dpenalty, bits, rng_state, shape.sizes, shape.strides,
                                       shape.dtype, a.activation, a.parameters, a.p, a.on_output,
                                       a.coefficients);
}

// penalty_direction with bits: the sum of v * backward_bits(dpenalty = 1).
inline Tensor penalty_direction(const Tensor& v, const OptionalTensor& bits,
                                const OptionalTensor& rng_state, Shape shape, const Attributes& a) {
  shape.dtype = accumulation_type(v);
  const Tensor one = at::ones({}, v.options().dtype(shape.dtype));
  return (v.to(shape.dtype) * call_bits(std::nullopt, one, bits, rng_state, shape, a)).sum();
}

struct BitsNode : public ActRegNode<2> {  // saved: bits, rng_state; each undefined if not needed
  Shape shape;

  BitsNode(edge_list&& edges, const Attributes& a, const Two& tensors, Shape shape)
      : ActRegNode(std::move(edges), a, tensors), shape(std::move(shape)) {}

  OptionalTensor bits() { return contiguous(saved[0].unpack()); }
  OptionalTensor rng_state() { return contiguous(saved[1].unpack()); }

  void compiled_args(CompiledNodeArgs& args) const override {
    ActRegNode::compiled_args(args);
    args.collect(shape.sizes);
    args.collect(shape.strides);
    args.collect(shape.dtype);
  }
  variable_list apply_with_saved(const variable_list& inputs, SwapSavedVariables& swap) override {
    const auto all = [&](auto swapped) {
      for (auto* numbers : {&shape.sizes, &shape.strides}) {
        for (c10::SymInt& number : *numbers) swapped(number);
      }
    };
    all([&](c10::SymInt& number) { swap.before(number); });
    variable_list result = ActRegNode::apply_with_saved(inputs, swap);
    all([&](c10::SymInt& number) { swap.after(number); });
    return result;
  }
};

struct ActRegBitsBackwardBackward final : public BitsNode {  // of dy, dpenalty and x
  using BitsNode::BitsNode;
  std::string name() const override { return "ActRegBitsBackwardBackward"; }

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor& v = gradients[0];
    variable_list result(3);
    if (!v.defined()) return result;
    const Attributes a = attributes.view();
    if (task_should_compute_output(0)) {
      result[0] = call_bits(v, std::nullopt, bits(), rng_state(), shape, a);
    }
    if (task_should_compute_output(1)) {
      result[1] = penalty_direction(v, bits(), rng_state(), shape, a);
    }
    if (task_should_compute_output(2)) result[2] = at::zeros_like(v);
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
    const Tensor dx =
        call_bits(optional(dy), optional(dpenalty), bits(), rng_state(), shape, attributes.view());
    if (at::GradMode::is_enabled()) connect(dx);
    return {dx};
  }

 private:
  // The second derivative by x is 0, but it is there: as of torch's own activations.
  void connect(const Tensor& dx) {
    if (!dx.requires_grad()) {
      const Two kept{tensor_or_none(bits()), tensor_or_none(rng_state())};
      torch::autograd::set_history(
          dx, make_node<ActRegBitsBackwardBackward>(edge_list{{}, {}, next_edge(0)},
                                                    attributes.view(), kept, shape));
    } else if (auto* node = dynamic_cast<ActRegBitsBackwardBackward*>(dx.grad_fn().get())) {
      node->set_next_edge(2, next_edge(0));
    }
  }
};

}  // namespace actreg
