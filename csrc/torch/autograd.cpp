// The Autograd kernels: they run the kernels below and hang the nodes on the results; forward mode.
// Layer: torch. See Note [Hand-written nodes].
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "torch/nodes.h"

namespace actreg {
namespace {

Tensor tangent(const OptionalTensor& tensor) {
  return tensor && torch::autograd::isFwGradDefined(*tensor) ? tensor->_fw_grad(0) : Tensor();
}
OptionalTensor primal(const OptionalTensor& tensor) {
  return tensor && torch::autograd::isFwGradDefined(*tensor) ? tensor->_fw_primal(0) : tensor;
}

// The forward operators' derivatives; `output` and `penalty` come from the kernels.
void differentiate_forward(const Tensor& x, const OptionalTensor& rng_state, Tensor& output,
                           Tensor& penalty, const Attributes& a) {
  if (torch::autograd::compute_requires_grad(x)) {
    auto node = make_node<ActRegBackward>(torch::autograd::collect_next_edges(x), a,
                                          std::array<Tensor, 2>{x, tensor_or_none(rng_state)});
    torch::autograd::set_history(output, node);
    torch::autograd::set_history(penalty, node);
  }
  if (const Tensor dx = tangent(x); dx.defined()) {
    const Tensor at = *primal(x);
    output._set_fw_grad(call(backward_operator(), dx, std::nullopt, at, rng_state, a), 0, false);
    penalty._set_fw_grad(penalty_direction(dx, at, rng_state, a), 0, false);
  }
}

std::tuple<Tensor, Tensor> forward_autograd(c10::DispatchKeySet keys, const Tensor& x,
                                            const OptionalTensor& rng_state, ACTREG_ATTRIBUTES) {
  std::tuple<Tensor, Tensor> result;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    result = forward_operator().redispatch(keys & c10::after_autograd_keyset, x, rng_state,
                                           ACTREG_ATTRIBUTE_NAMES);
  }
  auto& [output, penalty] = result;
  differentiate_forward(x, rng_state, output, penalty, {ACTREG_ATTRIBUTE_NAMES});
  return result;
}

std::tuple<Tensor, Tensor, Tensor> forward_random_autograd(c10::DispatchKeySet keys,
                                                           const Tensor& x, ACTREG_ATTRIBUTES) {
  std::tuple<Tensor, Tensor, Tensor> result;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    result = forward_random_operator().redispatch(keys & c10::after_autograd_keyset, x,
                                                  ACTREG_ATTRIBUTE_NAMES);
  }
  auto& [output, penalty, rng_state] = result;
  differentiate_forward(x, rng_state, output, penalty, {ACTREG_ATTRIBUTE_NAMES});
  return result;
}

Tensor backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& dy,
                         const OptionalTensor& dpenalty, const Tensor& x,
                         const OptionalTensor& rng_state, ACTREG_ATTRIBUTES) {
  const Attributes a{ACTREG_ATTRIBUTE_NAMES};
  Tensor dx;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    dx = backward_operator().redispatch(keys & c10::after_autograd_keyset, dy, dpenalty, x,
                                        rng_state, ACTREG_ATTRIBUTE_NAMES);
  }
  const Tensor dy_or_none = tensor_or_none(dy), dpenalty_or_none = tensor_or_none(dpenalty);
  if (torch::autograd::compute_requires_grad(dy_or_none, dpenalty_or_none, x)) {
    auto node = make_node<ActRegBackwardBackward>(
        torch::autograd::collect_next_edges(dy_or_none, dpenalty_or_none, x), a,
        std::array<Tensor, 4>{dy_or_none, dpenalty_or_none, x, tensor_or_none(rng_state)});
    torch::autograd::set_history(dx, node);
  }
  const Tensor dy_t = tangent(dy), dpenalty_t = tangent(dpenalty), x_t = tangent(x);
  if (dy_t.defined() || dpenalty_t.defined() || x_t.defined()) {
    const Tensor at = *primal(x);
    Tensor total;
    if (dy_t.defined() || dpenalty_t.defined()) {
      total = call(backward_operator(), optional(dy_t), optional(dpenalty_t), at, rng_state, a);
    }
    if (x_t.defined()) {
      const auto curved =
          call(curvature_operator(), primal(dy), primal(dpenalty), at, rng_state, a);
      total = plus(total, curved * x_t);
    }
    dx._set_fw_grad(total, 0, false);
  }
  return dx;
}

// Third derivatives: refused, where something asks for them.
Tensor curvature_autograd(c10::DispatchKeySet keys, const OptionalTensor& dy,
                          const OptionalTensor& dpenalty, const Tensor& x,
                          const OptionalTensor& rng_state, ACTREG_ATTRIBUTES) {
  for (const OptionalTensor& tensor : {dy, dpenalty, OptionalTensor(x)}) {
    TORCH_CHECK_NOT_IMPLEMENTED(!tangent(tensor).defined(),
                                "actreg: the third derivative is not implemented; "
                                "actreg_ext.reference.act_reg has derivatives of any order");
  }
  Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    result = curvature_operator().redispatch(keys & c10::after_autograd_keyset, dy, dpenalty, x,
                                             rng_state, ACTREG_ATTRIBUTE_NAMES);
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
  m.impl("forward", TORCH_FN(forward_autograd));
  m.impl("forward_random", TORCH_FN(forward_random_autograd));
  m.impl("backward", TORCH_FN(backward_autograd));
  m.impl("curvature", TORCH_FN(curvature_autograd));
}

}  // namespace actreg
