// What forward keeps for backward. Layer: core (host only, except kHasTwoSlopes).
//
// Note [What is kept for backward]
// Backward needs x only to compute the slope act'(x), sign(a) and a. Forward keeps as little memory
// as possible:
// - Nothing, if the slope has one value (identity) and sign(a) and a are not needed.
// - One bit per element, if the slope has two values (relu: 0 and 1) and sign(a) and a are not
//   needed. The bit says which slope. If the slope `off` is 0 and no L1 penalty counts dropped
//   elements, forward clears the bits of dropped elements. Then backward need not redraw the mask.
// - The output y, if the slope is a function of y. The next layer usually keeps y anyway, so y
//   costs no memory. Either act has the same value and slope at y as at x (relu), or there is a
//   formula slope_of_output (tanh: 1 - y^2).
//   A kept output must not be modified in place before backward. So the output is kept only where
//   PyTorch's own activation keeps it too, or where there is a penalty and the caller has not
//   forbidden it (Problem::keeps_input): then no program that is legal without us becomes illegal.
// - The input x in all other cases.
// Storing bits is exact except for NaN inputs: their sign counts as positive instead of 0.
// The slope from y is used only where it is as exact as the slope from x (leaky_relu, hardtanh and
// softshrink: the same bits) or computed as in PyTorch (sigmoid, tanh). For elu and softsign the
// slope from y would be less exact than PyTorch's slope. In a half type y has few digits, so no
// slope_of_output is used.
// A penalty on the output penalizes y after its rounding. So its gradient may be computed from y.
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
  TwoSlopes slopes;            // for kBits and kNothing
  uint32_t marked = kKeepAll;  // see Task
};

template <class E>
constexpr int digits_of(ElementType<E>) {
  return std::numeric_limits<E>::digits;
}

inline State state_of(const Problem& problem) {
  const Penalty& penalty = problem.penalty;
  // If the caller asked for the raw sums, any gradient may come back, so both penalties are on.
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
          if (!problem.is_general && !has_l2 && (!has_l1 || slopes.sign_is_slopes)) {
            state.kept = slopes.on == slopes.off ? Kept::kNothing : Kept::kBits;
            state.slopes = slopes;
            if (slopes.off == 0 && !(has_l1 && dropped_count)) state.marked = threshold;
            return;
          }
        }
        // With dropout, y = s * a where an element is kept. Then backward can use y if the slope at
        // y equals the slope at a, if dropped elements do not count, and if l2 is known, because
        // the caller has to divide l2 by s.
        const bool is_of_y =
            kIsHomogeneous<Act> && !dropped_count && penalty.is_weighted && !problem.is_general;
        const bool is_output_ours = (kTorchKeepsOutput<Act> && !problem.drops()) ||
                                    ((has_l1 || has_l2) && !problem.keeps_input);
        if (is_output_ours && output_tells(act, digits) &&
            (!problem.drops() || (is_of_y && threshold > 0))) {
          state.kept = Kept::kOutput;
        }
      },
      problem.activation);
  return state;
}

}  // namespace actreg
