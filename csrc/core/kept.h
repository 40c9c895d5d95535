// What forward has to leave for backward. Layer: core (host only, but for kHasTwoSlopes).
//
// Note [What is kept for backward]
// The gradient depends on x by the slope, by sign(a) and by a alone. So x need not be kept
// - if the slope has two values and no more is asked for: a bit for each element tells which. Where
//   the gradient of a dropped element is 0 its bit is off, and backward draws no mask. A slope of
//   one value needs nothing.
// - if the output tells the slope, which the next layer keeps anyway: because it has the slope and
//   the value that x has, or by a function of its own (slope_of_output).
// Nothing is lost by bits, but at a NaN: there sign(a) is 0, and with bits it counts as positive.
// Nor by the output: its functions are as exact as from x (leaky_relu, hardtanh and softshrink to
// the bit) or, sigmoid's and tanh's, as PyTorch has them. But those of elu and softsign would be
// less exact than PyTorch's, and in a half type, where y has few digits, all of them than from x.
// A penalty on the output is on what is stored as y: its gradient may be of that.
#pragma once

#include <limits>
#include <type_traits>

#include "core/of_output.h"
#include "core/problem.h"

namespace actreg {

template <class Act, class = void>
constexpr bool kHasTwoSlopes = false;
template <class Act>
constexpr bool kHasTwoSlopes<Act, std::void_t<decltype(&Act::two_slopes)>> = true;

enum class Kept { kInput, kOutput, kBits, kNothing };

struct State {
  Kept kept = Kept::kInput;
  TwoSlopes slopes;            // of kBits and kNothing
  uint32_t marked = kKeepAll;  // see Task
};

template <class E>
constexpr int digits_of(ElementType<E>) {
  return std::numeric_limits<E>::digits;
}

inline State state_of(const Problem& problem) {
  const Penalty& penalty = problem.penalty;
  // Where the two sums are asked for apart, both are on: any gradient may come back.
  const bool has_l1 = penalty.l1 != 0, has_l2 = penalty.l2 != 0;
  const uint32_t threshold = problem.dropout.threshold;
  const bool dropped_count = problem.counted > threshold;
  int digits = 0;
  visit([&](auto element) { digits = digits_of(element); }, problem.element);
  State state;
  visit(
      [&](auto act) {
        using Act = decltype(act);
        if constexpr (kHasTwoSlopes<Act>) {
          const TwoSlopes slopes = act.two_slopes();
          if (!has_l2 && (!has_l1 || slopes.sign_is_slopes)) {
            state.kept = slopes.on == slopes.off ? Kept::kNothing : Kept::kBits;
            state.slopes = slopes;
            if (slopes.off == 0 && !(has_l1 && dropped_count)) state.marked = threshold;
            return;
          }
        }
        // With dropout y is s * a where it is kept: then the penalty has to be a function of that.
        const bool is_of_y = kIsHomogeneous<Act> && !dropped_count && penalty.is_weighted;
        if (output_tells(act, digits) && (!problem.drops() || (is_of_y && threshold > 0))) {
          state.kept = Kept::kOutput;
        }
      },
      problem.activation);
  return state;
}

}  // namespace actreg
