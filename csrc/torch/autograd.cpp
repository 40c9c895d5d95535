// The Autograd kernels: they run the kernels below and hang the nodes on the results; forward mode.
// Layer: torch. See Note [Hand-written nodes].
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "torch/nodes_of_bits.h"

namespace actreg {
namespace {

Tensor tangent(const OptionalTensor& tensor) {
  return tensor && torch::autograd::isFwGradDefined(*tensor) ? tensor->_fw_grad(0) : Tensor();
}
OptionalTensor primal(const OptionalTensor& tensor) {
  return tensor && torch::autograd::isFwGradDefined(*tensor) ? tensor->_fw_primal(0) : tensor;
}

using Two = std::array<Tensor, 2>;

// What the forward operators give, or some of it.
struct Results {
  Tensor output, penalty, rng_state, bits;
};

// The kernels below, with bits or without, for that rng_state or for one that they draw.
Results run(c10::DispatchKeySet keys, const Tensor& x, const OptionalTensor& rng_state,
            const Attributes& a, bool with_bits) {
  const at::AutoDispatchBelowADInplaceOrView below;
  keys = keys & c10::after_autograd_keyset;
  const auto call = [&](const auto& op) {
    return op.redispatch(keys, x, rng_state, a.activation, a.parameters, a.p, a.on_output,
                         a.coefficients);
  };
  const Tensor given = tensor_or_none(rng_state);
  if (with_bits) {
    auto [output, penalty, bits] = call(forward_bits_operator());
    return {output, penalty, given, bits};
  }
  auto [output, penalty] = call(forward_operator());
  return {output, penalty, given, Tensor()};
}
Results run_random(c10::DispatchKeySet keys, const Tensor& x, const Attributes& a, bool with_bits) {
  const at::AutoDispatchBelowADInplaceOrView below;
  keys = keys & c10::after_autograd_keyset;
  const auto call = [&](const auto& op) {
    return op.redispatch(keys, x, a.activation, a.parameters, a.p, a.on_output, a.coefficients);
  };
  if (with_bits) {
    auto [output, penalty, rng_state, bits] = call(forward_random_bits_operator());
    return {output, penalty, rng_state, bits};
  }
  auto [output, penalty, rng_state] = call(forward_random_operator());
  return {output, penalty, rng_state, Tensor()};
}

// Hangs the node on the results that keeps the least.
void set_history(const Tensor& x, Results& results, const Attributes& a, const Problem& problem,
                 const State& state) {
  auto edges = torch::autograd::collect_next_edges(x);
  const auto hang = [&](const auto& node) {
    torch::autograd::set_history(results.output, node);
    torch::autograd::set_history(results.penalty, node);
  };
  if (state.kept == Kept::kBits || state.kept == Kept::kNothing) {
    const Two kept{results.bits, draws_again(problem) ? results.rng_state : Tensor()};
    hang(make_node<ActRegBitsBackward>(std::move(edges), a, kept, strides_of(x)));
  } else if (state.kept == Kept::kOutput) {
    auto node = make_node<ActRegBackward>(std::move(edges), a, Two{Tensor(), results.rng_state});
    hang(node);
    node->keep_output(results.output, problem.penalty.s);
  } else {
    hang(make_node<ActRegBackward>(std::move(edges), a, Two{x, results.rng_state}));
  }
}

// The forward operators' derivatives. `kernels(with_bits)` computes the results.
template <class Kernels>
Results differentiable(const Tensor& x, const Attributes& a, bool wants_bits, Kernels kernels) {
  const bool requires_grad = torch::autograd::compute_requires_grad(x);
  Problem problem;
  State state;
  if (requires_grad) {
    problem = problem_of(a);
    state = state_of(problem);
    problem.marked = state.marked;
  }
  Results results = kernels(wants_bits || state.kept == Kept::kBits);
  if (const Tensor dx = tangent(x); dx.defined()) {
    const Tensor at = *primal(x);
    const OptionalTensor rng_state = optional(results.rng_state);
    results.output._set_fw_grad(call(backward_operator(), dx, std::nullopt, at, rng_state, a), 0,
                                false);
    results.penalty._set_fw_grad(penalty_direction(dx, at, rng_state, a), 0, false);
  }
  if (requires_grad) set_history(x, results, a, problem, state);  // may keep the output as it is
  return results;
}

std::tuple<Tensor, Tensor> forward_autograd(c10::DispatchKeySet keys, const Tensor& x,
                                            const OptionalTensor& rng_state, ACTREG_ATTRIBUTES) {
  const Attributes a{ACTREG_ATTRIBUTE_NAMES};
  auto [output, penalty, state, bits] = differentiable(
      x, a, false, [&](bool with_bits) { return run(keys, x, rng_state, a, with_bits); });
  return {std::move(output), std::move(penalty)};
}

std::tuple<Tensor, Tensor, Tensor> forward_random_autograd(c10::DispatchKeySet keys,
                                                           const Tensor& x, ACTREG_ATTRIBUTES) {
  const Attributes a{ACTREG_ATTRIBUTE_NAMES};
  auto [output, penalty, state, bits] = differentiable(
      x, a, false, [&](bool with_bits) { return run_random(keys, x, a, with_bits); });
  return {std::move(output), std::move(penalty), std::move(state)};
}

std::tuple<Tensor, Tensor, Tensor> forward_bits_autograd(c10::DispatchKeySet keys, const Tensor& x,
                                                         const OptionalTensor& rng_state,
                                                         ACTREG_ATTRIBUTES) {
  const Attributes a{ACTREG_ATTRIBUTE_NAMES};
  auto [output, penalty, state, bits] = differentiable(
      x, a, true, [&](bool with_bits) { return run(keys, x, rng_state, a, with_bits); });
  return {std::move(output), std::move(penalty), std::move(bits)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_random_bits_autograd(c10::DispatchKeySet keys,
                                                                        const Tensor& x,
                                                                        ACTREG_ATTRIBUTES) {
  const Attributes a{ACTREG_ATTRIBUTE_NAMES};
  auto [output, penalty, state, bits] =
      differentiable(x, a, true, [&](bool with_bits) { return run_random(keys, x, a, with_bits); });
  return {std::move(output), std::move(penalty), std::move(state), std::move(bits)};
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

Tensor backward_bits_autograd(c10::DispatchKeySet keys, const Tensor& dy,
                              const OptionalTensor& dpenalty, const OptionalTensor& bits,
                              const OptionalTensor& rng_state, c10::SymIntArrayRef strides,
                              ACTREG_ATTRIBUTES) {
  const Attributes a{ACTREG_ATTRIBUTE_NAMES};
  Tensor dx;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    dx = backward_bits_operator().redispatch(keys & c10::after_autograd_keyset, dy, dpenalty, bits,
                                             rng_state, strides, ACTREG_ATTRIBUTE_NAMES);
  }
  const Tensor dpenalty_or_none = tensor_or_none(dpenalty);
  if (torch::autograd::compute_requires_grad(dy, dpenalty_or_none)) {
    auto edges = torch::autograd::collect_next_edges(dy, dpenalty_or_none, Tensor());
    const Two kept{tensor_or_none(bits), tensor_or_none(rng_state)};
    torch::autograd::set_history(
        dx, make_node<ActRegBitsBackwardBackward>(std::move(edges), a, kept, strides.vec()));
  }
  const Tensor dy_t = tangent(dy), dpenalty_t = tangent(dpenalty);
  if (dy_t.defined() || dpenalty_t.defined()) {
    const Tensor direction = dy_t.defined() ? dy_t : zeros_of(dy.sym_sizes(), dy.options());
    dx._set_fw_grad(call_bits(direction, optional(dpenalty_t), bits, rng_state, strides, a), 0,
                    false);
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
  m.impl("forward_bits", TORCH_FN(forward_bits_autograd));
  m.impl("forward_random_bits", TORCH_FN(forward_random_bits_autograd));
  m.impl("backward", TORCH_FN(backward_autograd));
  m.impl("backward_bits", TORCH_FN(backward_bits_autograd));
  m.impl("curvature", TORCH_FN(curvature_autograd));
}

}  // namespace actreg
