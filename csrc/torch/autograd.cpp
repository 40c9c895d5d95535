// The forward operators' Autograd kernels: they run the kernels below and hang the nodes on the
// results; forward mode.
// Layer: torch. See Note [Hand-written nodes].
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "torch/nodes_of_bits.h"

namespace actreg {
namespace {

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
                         a.coefficients, a.reduction, a.order);
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
    return op.redispatch(keys, x, a.activation, a.parameters, a.p, a.on_output, a.coefficients,
                         a.reduction, a.order);
  };
  if (with_bits) {
    auto [output, penalty, rng_state, bits] = call(forward_random_bits_operator());
    return {output, penalty, rng_state, bits};
  }
  auto [output, penalty, rng_state] = call(forward_random_operator());
  return {output, penalty, rng_state, Tensor()};
}

// Hangs the node on the results that keeps the least; the output may be x, overwritten.
void set_history(const Tensor& x, Results& results, const Attributes& a, const Problem& problem,
                 const State& state) {
  auto edges = torch::autograd::collect_next_edges(x);
  const auto hang = [&](const auto& node) {
    if (results.output.is_same(x)) {
      rebase_history(x, node);
    } else {
      torch::autograd::set_history(results.output, node);
    }
    torch::autograd::set_history(results.penalty, node);
  };
  if (state.kept == Kept::kBits || state.kept == Kept::kNothing) {
    const Two kept{state.kept == Kept::kBits ? results.bits : Tensor(),
                   problem.draws_again() ? results.rng_state : Tensor()};
    hang(make_node<ActRegBitsBackward>(std::move(edges), a, kept, Shape(x)));
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
    problem = make_problem(x, a);
    state = state_of(problem);
    problem.marked = state.marked;
  }
  Results results = kernels(wants_bits || state.kept == Kept::kBits);
  if (const Tensor dx = tangent(x); dx.defined()) {
    const Tensor at = *primal(x);
    const OptionalTensor rng_state = optional(results.rng_state);
    results.output._set_fw_grad(
        call(backward_operator(), dx, std::nullopt, at, rng_state, a, false), 0, false);
    results.penalty._set_fw_grad(penalty_direction(dx, at, rng_state, a, false), 0, false);
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

std::tuple<Tensor, Tensor> forward_in_place_autograd(c10::DispatchKeySet keys, const Tensor& x,
                                                     const OptionalTensor& rng_state,
                                                     ACTREG_ATTRIBUTES, bool with_bits) {
  const Attributes a{ACTREG_ATTRIBUTE_NAMES};
  const bool requires_grad = torch::autograd::compute_requires_grad(x);
  torch::autograd::check_inplace(x, requires_grad);
  TORCH_CHECK_NOT_IMPLEMENTED(!tangent(x).defined(),
                              "actreg::forward_: forward mode is not implemented in place");
  Problem problem = make_problem(x, a);
  State state;
  if (requires_grad) {
    state = state_of(problem);
    problem.marked = state.marked;
    TORCH_CHECK(state.kept != Kept::kInput, "actreg::forward_: the gradient of '", activation,
                "' in ", x.scalar_type(),
                " with these penalties needs the input, which would be overwritten");
    TORCH_CHECK(!x.is_view(), "actreg::forward_: x is a view, and requires a gradient");
  }
  if (requires_grad && at::SavedTensorDefaultHooks::get_hooks()) {
    // A hook may raise: everything is kept before anything is written.
    auto [y, penalty, bits] =
        with_bits ? forward_bits_operator().call(x, rng_state, ACTREG_ATTRIBUTE_NAMES)
                  : std::tuple_cat(forward_operator().call(x, rng_state, ACTREG_ATTRIBUTE_NAMES),
                                   std::make_tuple(at::empty({0}, x.options().dtype(at::kByte))));
    x.copy_(y);
    return {std::move(penalty), std::move(bits)};
  }
  Results results{x, Tensor(), tensor_or_none(rng_state), Tensor()};
  {
    // Not below the tracking of views, which counts the versions.
    const at::AutoDispatchBelowAutograd below;
    std::tie(results.penalty, results.bits) = forward_in_place_operator().redispatch(
        keys & c10::after_autograd_keyset, x, rng_state, ACTREG_ATTRIBUTE_NAMES,
        with_bits || state.kept == Kept::kBits);
  }
  if (requires_grad) set_history(x, results, a, problem, state);
  return {std::move(results.penalty), std::move(results.bits)};
}

std::tuple<Tensor, Tensor> forward_in_place_versioned(c10::DispatchKeySet keys, const Tensor& x,
                                                      const OptionalTensor& rng_state,
                                                      ACTREG_ATTRIBUTES, bool with_bits) {
  std::tuple<Tensor, Tensor> results;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    results = forward_in_place_operator().redispatch(keys & c10::after_ADInplaceOrView_keyset, x,
                                                     rng_state, ACTREG_ATTRIBUTE_NAMES, with_bits);
  }
  torch::autograd::impl::bump_version(x);
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(actreg, ADInplaceOrView, m) {
  m.impl("forward_", TORCH_FN(forward_in_place_versioned));
}

TORCH_LIBRARY_IMPL(actreg, Autograd, m) {
  m.impl("forward", TORCH_FN(forward_autograd));
  m.impl("forward_random", TORCH_FN(forward_random_autograd));
  m.impl("forward_bits", TORCH_FN(forward_bits_autograd));
  m.impl("forward_random_bits", TORCH_FN(forward_random_bits_autograd));
  m.impl("forward_", TORCH_FN(forward_in_place_autograd));
}

}  // namespace actreg
