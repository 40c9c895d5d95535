// The nodes of the autograd graph that keep bits instead of x. Layer: torch.
// See Note [What is kept for backward]. Such a gradient is linear in dy and dpenalty and, but at
// the kinks, constant in x.
#pragma once

#include "torch/nodes.h"

namespace actreg {

// x's strides as the kernels walk it: the bits and the mask are in this order.
inline std::vector<c10::SymInt> strides_of(const Tensor& x) {
  if (x.is_non_overlapping_and_dense()) return x.sym_strides().vec();
  std::vector<c10::SymInt> strides(x.dim(), 1);
  for (int64_t dim = x.dim() - 1; dim > 0; --dim) {
    strides[dim - 1] = strides[dim] * x.sym_size(dim).max(1);
  }
  return strides;
}

// Zeros of that shape, of one number.
inline Tensor zeros_of(c10::SymIntArrayRef shape, const at::TensorOptions& options) {
  return at::zeros({}, options).expand_symint(shape);
}

inline Tensor call_bits(const Tensor& dy, const OptionalTensor& dpenalty,
                        const OptionalTensor& bits, const OptionalTensor& rng_state,
                        c10::SymIntArrayRef strides, const Attributes& a) {
  return backward_bits_operator().call(dy, dpenalty, bits, rng_state, strides, a.activation,
                                       a.parameters, a.p, a.on_output, a.coefficients);
}

// penalty_direction with bits: the sum of v * backward_bits(dpenalty = 1).
inline Tensor penalty_direction(const Tensor& v, const OptionalTensor& bits,
                                const OptionalTensor& rng_state, c10::SymIntArrayRef strides,
                                const Attributes& a) {
  const auto options = v.options().dtype(accumulation_type(v));
  const Tensor slope = call_bits(zeros_of(v.sym_sizes(), options), at::ones({}, options), bits,
                                 rng_state, strides, a);
  return (v.to(options.dtype()) * slope).sum();
}

struct BitsNode : public ActRegNode<2> {  // saved: bits, rng_state; each undefined if not needed
  std::vector<c10::SymInt> strides;

  BitsNode(edge_list&& edges, const Attributes& a, const std::array<Tensor, 2>& tensors,
           std::vector<c10::SymInt> strides)
      : ActRegNode(std::move(edges), a, tensors), strides(std::move(strides)) {}

  void compiled_args(CompiledNodeArgs& args) const override {
    ActRegNode::compiled_args(args);
    args.collect(strides);
  }
  variable_list apply_with_saved(const variable_list& inputs, SwapSavedVariables& swap) override {
    for (auto& stride : strides) swap.before(stride);
    variable_list result = ActRegNode::apply_with_saved(inputs, swap);
    for (auto& stride : strides) swap.after(stride);
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
    const auto bits = optional(unpack(0)), rng_state = optional(unpack(1));
    const Attributes a = attributes.view();
    if (task_should_compute_output(0)) {
      result[0] = call_bits(v, std::nullopt, bits, rng_state, strides, a);
    }
    if (task_should_compute_output(1)) {
      result[1] = penalty_direction(v, bits, rng_state, strides, a);
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
    const Tensor& dpenalty = gradients[1];
    if (!task_should_compute_output(0) || (!gradients[0].defined() && !dpenalty.defined())) {
      return {Tensor()};
    }
    const auto& output = input_metadata(0);
    const Tensor dy = gradients[0].defined()
                          ? gradients[0]
                          : zeros_of(output.shape_as_dim_vector(), output.options());
    const Tensor bits = unpack(0), rng_state = unpack(1);
    const Attributes a = attributes.view();
    const Tensor dx =
        call_bits(dy, optional(dpenalty), optional(bits), optional(rng_state), strides, a);
    if (at::GradMode::is_enabled()) connect(dx, bits, rng_state, a);
    return {dx};
  }

 private:
  // The second derivative by x is 0, but it is there: as of torch's own activations.
  void connect(const Tensor& dx, const Tensor& bits, const Tensor& rng_state,
               const Attributes& a) const {
    if (!dx.requires_grad()) {
      torch::autograd::set_history(dx, make_node<ActRegBitsBackwardBackward>(
                                           edge_list{{}, {}, next_edge(0)}, a,
                                           std::array<Tensor, 2>{bits, rng_state}, strides));
    } else if (auto* node = dynamic_cast<ActRegBitsBackwardBackward*>(dx.grad_fn().get())) {
      node->set_next_edge(2, next_edge(0));
    }
  }
};

}  // namespace actreg
