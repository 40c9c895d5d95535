// The forward operators' Autograd kernels: they run the kernels below, make the results part of the
// graph, and compute tangents in forward mode.
// Layer: torch. See Note [Hand-written nodes].
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "torch/nodes_of_bits.h"

namespace actreg {
namespace {

// Runs the forward operator that takes or draws rng_state and returns bits or not, in the kernels
// below Autograd.
Results run_below(c10::DispatchKeySet keys, const Tensor& x, const OptionalTensor& row_weight,
                  const OptionalTensor* rng_state, const Attributes& a, bool with_bits) {
  const at::AutoDispatchBelowADInplaceOrView below;
  keys = keys & c10::after_autograd_keyset;
  Results results;
  const auto run = [&](auto op, const auto&... given) {
    using Op = decltype(op);
    parts<Op>(results) = Op::redispatch(keys, x, given..., a, row_weight);
  };
  if (rng_state) {
    with_bits ? run(ForwardBits(), *rng_state) : run(Forward(), *rng_state);
    results.rng_state = tensor_or_none(*rng_state);
  } else {
    with_bits ? run(ForwardRandomBits()) : run(ForwardRandom());
  }
  return results;
}

// Makes a node the history of y and of the penalty: the node that keeps the least memory. y may be
// x itself, overwritten; `input` has the values that x had before.
void set_history(const Tensor& x, const Tensor& input, const OptionalTensor& row_weight,
                 Results& results, const Attributes& a, const Problem& problem,
                 const State& state) {
  auto edges = torch::autograd::collect_next_edges(x);
  const auto hang = [&](const auto& node) {
    if (results.y.is_same(x)) {
      rebase_history(x, node);
    } else {
      torch::autograd::set_history(results.y, node);
    }
    torch::autograd::set_history(results.penalty, node);
  };
  if (state.kept == Kept::kBits || state.kept == Kept::kNothing) {
    const Tensor none;
    hang(make_node<ActRegBitsBackward>(std::move(edges), a,
                                       state.kept == Kept::kBits ? results.bits : none,
                                       problem.draws_again() ? results.rng_state : none, Shape(x)));
  } else if (state.kept == Kept::kOutput) {
    auto node = make_node<ActRegBackward>(std::move(edges), a, Tensor(), tensor_or_none(row_weight),
                                          results.rng_state);
    hang(node);
    node->keep_output(results.y, problem.penalty.s);
  } else {
    hang(make_node<ActRegBackward>(std::move(edges), a, input, tensor_or_none(row_weight),
                                   results.rng_state));
  }
}

Results forward_autograd(c10::DispatchKeySet keys, const Tensor& x,
                         const OptionalTensor& row_weight, const OptionalTensor* rng_state,
                         const Attributes& a, bool wants_bits) {
  const bool requires_grad = torch::autograd::compute_requires_grad(x);
  Problem problem;
  State state;
  if (requires_grad) {
    problem = make_problem(x, a);
    state = state_of(problem);
    problem.marked = state.marked;
  }
  Results results =
      run_below(keys, x, row_weight, rng_state, a, wants_bits || state.kept == Kept::kBits);
  if (const Tensor dx = tangent(x); dx.defined()) {
    const Tensor at = *primal(x);
    const OptionalTensor drawn = optional(results.rng_state);
    results.y._set_fw_grad(Backward::call(dx, std::nullopt, at, drawn, a, false, row_weight), 0,
                           false);
    const Tensor along = penalty_direction(dx, at, row_weight, drawn, a, false);
    results.penalty._set_fw_grad(along.to(results.penalty.scalar_type()), 0, false);
  }
  // Comes last: a node may keep y, and has to keep it with its tangent.
  if (requires_grad) set_history(x, x, row_weight, results, a, problem, state);
  return results;
}

std::tuple<Tensor, Tensor> forward_in_place_autograd(c10::DispatchKeySet keys, const Tensor& x,
                                                     const OptionalTensor& rng_state,
                                                     const Attributes& a, bool with_bits,
                                                     const OptionalTensor& row_weight) {
  const bool requires_grad = torch::autograd::compute_requires_grad(x);
  torch::autograd::check_inplace(x, requires_grad);
  TORCH_CHECK_NOT_IMPLEMENTED(!tangent(x).defined(),
                              "actreg::forward_: forward mode is not implemented in place");
  Problem problem = make_problem(x, a);
  State state;
  if (requires_grad) {
    state = state_of(problem);
    problem.marked = state.marked;
    TORCH_CHECK(!x.is_view(), "actreg::forward_: x is a view, and requires a gradient");
  }
  // torch's own in-place activations copy an input that backward needs, too.
  const Tensor input = requires_grad && state.kept == Kept::kInput ? x.clone() : x;
  if (requires_grad && at::SavedTensorDefaultHooks::get_hooks()) {
    // A hook may raise. So the node keeps everything before x is written.
    Tensor y, penalty, bits;
    if (with_bits) {
      std::tie(y, penalty, bits) = ForwardBits::call(input, rng_state, a, row_weight);
    } else {
      std::tie(y, penalty) = Forward::call(input, rng_state, a, row_weight);
      bits = at::empty({0}, x.options().dtype(at::kByte));
    }
    x.copy_(y);
    return {std::move(penalty), std::move(bits)};
  }
  Results results{x, Tensor(), tensor_or_none(rng_state), Tensor()};
  {
    // Not below ADInplaceOrView, because its kernel increments the version of x.
    const at::AutoDispatchBelowAutograd below;
    std::tie(results.penalty, results.bits) =
        ForwardInPlace::redispatch(keys & c10::after_autograd_keyset, x, rng_state, a,
                                   with_bits || state.kept == Kept::kBits, row_weight);
  }
  if (requires_grad) set_history(x, input, row_weight, results, a, problem, state);
  return {std::move(results.penalty), std::move(results.bits)};
}

std::tuple<Tensor, Tensor> forward_in_place_versioned(c10::DispatchKeySet keys, const Tensor& x,
                                                      const OptionalTensor& rng_state,
                                                      const Attributes& a, bool with_bits,
                                                      const OptionalTensor& row_weight) {
  std::tuple<Tensor, Tensor> results;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    results = ForwardInPlace::redispatch(keys & c10::after_ADInplaceOrView_keyset, x, rng_state, a,
                                         with_bits, row_weight);
  }
  torch::autograd::impl::bump_version(x);
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(actreg, ADInplaceOrView, m) {
  implement<ForwardInPlace, &forward_in_place_versioned>(m);
}

TORCH_LIBRARY_IMPL(actreg, Autograd, m) {
  implement_forward<&forward_autograd, c10::DispatchKeySet>(m);
  implement<ForwardInPlace, &forward_in_place_autograd>(m);
}

}  // namespace actreg
