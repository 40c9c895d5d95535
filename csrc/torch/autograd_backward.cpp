// The backward operators' Autograd kernels: second derivatives, and tangents in forward mode.
// Layer: torch. See Note [Hand-written nodes].
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "torch/nodes_of_bits.h"

namespace actreg {
namespace {

template <class Op, class... Arguments>
Tensor run_below(c10::DispatchKeySet keys, const Arguments&... arguments) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return Op::redispatch(keys & c10::after_autograd_keyset, arguments...);
}

// Makes `make(edges to the inputs)` the history of `result`, if an input requires a gradient.
template <class Make, class... Inputs>
void set_history(const Tensor& result, Make make, const Inputs&... inputs) {
  if (!torch::autograd::compute_requires_grad(inputs...)) return;
  torch::autograd::set_history(result, make(torch::autograd::collect_next_edges(inputs...)));
}

Tensor plus(const Tensor& a, const Tensor& b) {
  return !a.defined() ? b : !b.defined() ? a : a + b;
}

Tensor backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& dy,
                         const OptionalTensor& dpenalty, const Tensor& x,
                         const OptionalTensor& rng_state, const Attributes& a, bool x_is_output,
                         const OptionalTensor& row_weight) {
  Tensor dx = run_below<Backward>(keys, dy, dpenalty, x, rng_state, a, x_is_output, row_weight);
  const Tensor dy_or_none = tensor_or_none(dy), dpenalty_or_none = tensor_or_none(dpenalty);
  const auto make = [&](edge_list&& edges) {
    return make_node<ActRegBackwardBackward>(std::move(edges), a, dy_or_none, dpenalty_or_none, x,
                                             tensor_or_none(row_weight), tensor_or_none(rng_state),
                                             x_is_output);
  };
  set_history(dx, make, dy_or_none, dpenalty_or_none, x);
  const Tensor dy_t = tangent(dy), dpenalty_t = tangent(dpenalty), x_t = tangent(x);
  if (dy_t.defined() || dpenalty_t.defined() || x_t.defined()) {
    const Tensor at = *primal(x);
    Tensor total;
    if (dy_t.defined() || dpenalty_t.defined()) {
      total = Backward::call(optional(dy_t), optional(dpenalty_t), at, rng_state, a, x_is_output,
                             row_weight);
    }
    if (x_t.defined()) {
      const Tensor curved =
          Curvature::call(primal(dy), primal(dpenalty), at, rng_state, a, x_is_output, row_weight);
      total = plus(total, curved * x_t);
    }
    dx._set_fw_grad(total, 0, false);
  }
  return dx;
}

Tensor backward_bits_autograd(c10::DispatchKeySet keys, const OptionalTensor& dy,
                              const OptionalTensor& dpenalty, const OptionalTensor& bits,
                              const OptionalTensor& rng_state, const OptionalTensor& anchor,
                              c10::SymIntArrayRef sizes, at::ScalarType dtype,
                              const Attributes& a) {
  Tensor dx = run_below<BackwardBits>(keys, dy, dpenalty, bits, rng_state, anchor, sizes, dtype, a);
  const auto make = [&](edge_list&& edges) {
    return make_node<ActRegBitsBackwardBackward>(std::move(edges), a, tensor_or_none(bits),
                                                 tensor_or_none(rng_state), Shape(sizes, dtype));
  };
  set_history(dx, make, tensor_or_none(dy), tensor_or_none(dpenalty), tensor_or_none(anchor));
  const Tensor dy_t = tangent(dy), dpenalty_t = tangent(dpenalty);
  if (dy_t.defined() || dpenalty_t.defined()) {
    dx._set_fw_grad(call_bits(optional(dy_t), optional(dpenalty_t), bits, rng_state, std::nullopt,
                              Shape(sizes, dtype), a),
                    0, false);
  }
  return dx;
}

// curvature has no derivative. Asking for it raises: at once in forward mode, and in backward when
// the node runs.
Tensor curvature_autograd(c10::DispatchKeySet keys, const OptionalTensor& dy,
                          const OptionalTensor& dpenalty, const Tensor& x,
                          const OptionalTensor& rng_state, const Attributes& a, bool x_is_output,
                          const OptionalTensor& row_weight) {
  for (const OptionalTensor& tensor : {dy, dpenalty, OptionalTensor(x)}) {
    TORCH_CHECK_NOT_IMPLEMENTED(!tangent(tensor).defined(),
                                "actreg: the third derivative is not implemented; "
                                "actreg_ext.reference.act_reg has derivatives of any order");
  }
  Tensor result =
      run_below<Curvature>(keys, dy, dpenalty, x, rng_state, a, x_is_output, row_weight);
  const auto make = [&](edge_list&& edges) {
    return make_node<torch::autograd::NotImplemented>(
        "actreg::curvature (the third derivative; actreg_ext.reference.act_reg has it)",
        std::move(edges));
  };
  set_history(result, make, tensor_or_none(dy), tensor_or_none(dpenalty), x);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(actreg, Autograd, m) {
  implement<Backward, &backward_autograd>(m);
  implement<BackwardBits, &backward_bits_autograd>(m);
  implement<Curvature, &curvature_autograd>(m);
}

}  // namespace actreg
