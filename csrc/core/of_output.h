// Activations as functions of their output y, for backward if forward kept y and not x.
// Layer: core. See Note [What is kept for backward].
#pragma once

#include <type_traits>
#include <utility>

#include "core/problem.h"
#include "core/registry.h"

namespace actreg {

// Idempotent: at act(x), act has the same value and slope as at x.
// Homogeneous: act(c * x) = c * act(x) for c > 0.
template <class Act, class = void>
constexpr bool kIsIdempotent = false;
template <class Act>
constexpr bool kIsIdempotent<Act, std::void_t<decltype(Act::kIsIdempotent)>> = true;
template <class Act, class = void>
constexpr bool kIsHomogeneous = false;
template <class Act>
constexpr bool kIsHomogeneous<Act, std::void_t<decltype(Act::kIsHomogeneous)>> = true;

// The slope act'(x) as a function of y = act(x). An idempotent activation needs none: it has the
// same slope at y as at x.
template <class T>
ACTREG_HD T slope_of_output(LeakyRelu act, T y) {
  return act(y).slope;
}
template <class T>
ACTREG_HD T slope_of_output(Sigmoid, T y) {
  return y * (T(1) - y);
}
template <class T>
ACTREG_HD T slope_of_output(LogSigmoid, T y) {
  return T(0) - math::expm1_of_negative(y).value;
}
template <class T>
ACTREG_HD T slope_of_output(Tanh, T y) {
  return T(1) - y * y;
}
template <class T>
ACTREG_HD T slope_of_output(Softplus act, T y) {
  const T z = y * T(act.beta);
  return select(z > T(act.threshold), T(1), slope_of_output(LogSigmoid{}, -z));
}
template <class T>
ACTREG_HD T slope_of_output(Softshrink, T y) {
  return select(y == T(0), T(0), T(1));
}
template <class Act, class = void>
constexpr bool kHasSlopeOfOutput = false;
template <class Act>
constexpr bool
    kHasSlopeOfOutput<Act, std::void_t<decltype(slope_of_output(std::declval<Act>(), 0.0))>> = true;

// Whether backward can compute the slope from y. `digits` is the number of bits of the mantissa of
// y's type, or 0 for the half types.
template <class Act>
bool output_tells(const Act&, int digits) {
  return kIsIdempotent<Act> || (kHasSlopeOfOutput<Act> && digits > 0);
}
// In a half type y may be the rounded limit, at which the slope is 1 instead of 0.
inline bool output_tells(Hardtanh, int digits) { return digits > 0; }
inline bool output_tells(LeakyRelu act, int digits) {
  return digits > 0 && act.negative_slope >= 0;
}
inline bool output_tells(Softplus act, int digits) {
  // beta * y may exceed a low threshold although beta * x does not. Above digits * log(2) this does
  // no harm: there the slope rounds to 1.
  return digits > 0 && act.threshold > digits * 0.7 && act.beta > 1e-30 && act.beta < 1e30;
}

// Whether PyTorch's own backward of this activation keeps the output.
template <class Act>
constexpr bool kTorchKeepsOutput =
    std::is_same_v<Act, Relu> || std::is_same_v<Act, Sigmoid> || std::is_same_v<Act, Tanh>;

// `act` as a function of y: the value is y, the slope is act'(x).
template <class Act>
struct OfOutput : Act {
  template <class T>
  ACTREG_HD Jet<T> operator()(T y) const {
    return {y, slope_of_output(static_cast<const Act&>(*this), y)};
  }
};
template <class Act>
constexpr bool kIsOfOutput = false;
template <class Act>
constexpr bool kIsOfOutput<OfOutput<Act>> = true;
// Whether state_of (kept.h) can choose this combination: no kernel is compiled for the others.
template <class Act, class E, bool kDrops>
constexpr bool kIsChosen = !kIsOfOutput<Act> || (!kIsHalf<E> && (!kDrops || kIsHomogeneous<Act>));

// Calls f(act), or f(OfOutput of act) if problem.x holds y and act has a slope_of_output.
template <class F>
ACTREG_INLINE void visit_of_x(F f, const Problem& problem) {
  visit(
      [&](auto act) {
        using Act = decltype(act);
        if constexpr (kHasSlopeOfOutput<Act>) {
          if (problem.x_is_output) return f(OfOutput<Act>{act});
        }
        f(act);
      },
      problem.activation);
}

}  // namespace actreg
