// The backward operators' Autograd kernels, for second derivatives; forward mode. Layer: torch.
// See Note [Hand-written nodes].
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "torch/nodes_of_bits.h"

namespace actreg {
namespace {

Tensor backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& dy,
                         const OptionalTensor& dpenalty, const Tensor& x,
                         const OptionalTensor& rng_state, ACTREG_ATTRIBUTES, bool x_is_output) {
  const Attributes a{ACTREG_ATTRIBUTE_NAMES};
  Tensor dx;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    dx = backward_operator().redispatch(keys & c10::after_autograd_keyset, dy, dpenalty, x,
                                        rng_state, ACTREG_ATTRIBUTE_NAMES, x_is_output);
  }
  const Tensor dy_or_none = tensor_or_none(dy), dpenalty_or_none = tensor_or_none(dpenalty);
  if (torch::autograd::compute_requires_grad(dy_or_none, dpenalty_or_none, x)) {
    auto node = make_node<ActRegBackwardBackward>(
        torch::autograd::collect_next_edges(dy_or_none, dpenalty_or_none, x), a, x_is_output,
        std::array<Tensor, 4>{dy_or_none, dpenalty_or_none, x, tensor_or_none(rng_state)});
    torch::autograd::set_history(dx, node);
  }
  const Tensor dy_t = tangent(dy), dpenalty_t = tangent(dpenalty), x_t = tangent(x);
  if (dy_t.defined() || dpenalty_t.defined() || x_t.defined()) {
    const Tensor at = *primal(x);
    Tensor total;
    if (dy_t.defined() || dpenalty_t.defined()) {
      total = call(backward_operator(), optional(dy_t), optional(dpenalty_t), at, rng_state, a,
                   x_is_output);
    }
    if (x_t.defined()) {
      const auto curved =
          call(curvature_operator(), primal(dy), primal(dpenalty), at, rng_state, a, x_is_output);
      total = plus(total, curved * x_t);
    }
    dx._set_fw_grad(total, 0, false);
  }
  return dx;
}

Tensor backward_bits_autograd(c10::DispatchKeySet keys, const OptionalTensor& dy,
                              const OptionalTensor& dpenalty, const OptionalTensor& bits,
                              const OptionalTensor& rng_state, const OptionalTensor& anchor,
                              c10::SymIntArrayRef sizes, at::ScalarType dtype, ACTREG_ATTRIBUTES) {
  const Attributes a{ACTREG_ATTRIBUTE_NAMES};
  Tensor dx;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    dx = backward_bits_operator().redispatch(keys & c10::after_autograd_keyset, dy, dpenalty, bits,
                                             rng_state, anchor, sizes, dtype,
                                             ACTREG_ATTRIBUTE_NAMES);
  }
  const Shape shape(sizes, dtype);
  const Tensor dy_or_none = tensor_or_none(dy), dpenalty_or_none = tensor_or_none(dpenalty),
               anchor_or_none = tensor_or_none(anchor);
  if (torch::autograd::compute_requires_grad(dy_or_none, dpenalty_or_none, anchor_or_none)) {
    auto edges = torch::autograd::collect_next_edges(dy_or_none, dpenalty_or_none, anchor_or_none);
    const Two kept{tensor_or_none(bits), tensor_or_none(rng_state)};
    torch::autograd::set_history(
        dx, make_node<ActRegBitsBackwardBackward>(std::move(edges), a, kept, shape));
  }
  const Tensor dy_t = tangent(dy), dpenalty_t = tangent(dpenalty);
  if (dy_t.defined() || dpenalty_t.defined()) {
    dx._set_fw_grad(
        call_bits(optional(dy_t), optional(dpenalty_t), bits, rng_state, std::nullopt, shape, a), 0,
        false);
  }
  return dx;
}

// Third derivatives: refused, where something asks for them.
Tensor curvature_autograd(c10::DispatchKeySet keys, const OptionalTensor& dy,
                          const OptionalTensor& dpenalty, const Tensor& x,
                          const OptionalTensor& rng_state, ACTREG_ATTRIBUTES, bool x_is_output) {
  for (const OptionalTensor& tensor : {dy, dpenalty, OptionalTensor(x)}) {
    TORCH_CHECK_NOT_IMPLEMENTED(!tangent(tensor).defined(),
                                "actreg: the third derivative is not implemented; "
                                "actreg_ext.reference.act_reg has derivatives of any order");
  }
  Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    result = curvature_operator().redispatch(keys & c10::after_autograd_keyset, dy, dpenalty, x,
                                             rng_state, ACTREG_ATTRIBUTE_NAMES, x_is_output);
  }
  const Tensor dy_or_none = tensor_or_none(dy), dpenalty_or_none = tensor_or_none(dpenalty);
  if (torch::autograd::compute_requires_grad(dy_or_none, dpenalty_or_none, x)) {
    auto node = make_node<torch::autograd::NotImplemented>(
        "actreg::curvature (the third derivative; actreg_ext.reference.act_reg has it)",
        torch::autograd::collect_next_edges(dy_or_none, dpenalty_or_none, x));
    torch::autograd::set_history(result, node);
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(actreg, Autograd, m) {
  m.impl("backward", TORCH_FN(backward_autograd));
  m.impl("backward_bits", TORCH_FN(backward_bits_autograd));
  m.impl("curvature", TORCH_FN(curvature_autograd));
}

}  // namespace actreg
