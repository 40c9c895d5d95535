// Activations as backward has them where y is in the place of x. Layer: core.
// See Note [What is kept for backward].
#pragma once

#include <type_traits>
#include <utility>

#include "core/problem.h"
#include "core/registry.h"

namespace actreg {

// act(act(x)) is act(x), slopes included; and act(c * x) is c * act(x) for c > 0.
template <class Act, class = void>
constexpr bool kIsIdempotent = false;
template <class Act>
constexpr bool kIsIdempotent<Act, std::void_t<decltype(Act::kIsIdempotent)>> = true;
template <class Act, class = void>
constexpr bool kIsHomogeneous = false;
template <class Act>
constexpr bool kIsHomogeneous<Act, std::void_t<decltype(Act::kIsHomogeneous)>> = true;

// The slope as a function of y, for those that are not idempotent and have one.
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

// Whether y tells the slope, if it has so many binary digits; 0 is for the half types' few.
template <class Act>
bool output_tells(const Act&, int digits) {
  return kIsIdempotent<Act> || (kHasSlopeOfOutput<Act> && digits > 0);
}
inline bool output_tells(Hardtanh, int digits) { return digits > 0; }  // its limits are rounded
inline bool output_tells(LeakyRelu act, int digits) {
  return digits > 0 && act.negative_slope >= 0;
}
inline bool output_tells(Softplus act, int digits) {
  // Below the threshold, where y is not x, it may be larger than the threshold if that is low.
  return digits > 0 && act.threshold > digits * 0.7 && act.beta > 1e-30 && act.beta < 1e30;
}

// The activation where y is in the place of x.
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
// Whether a kernel may be asked for that.
template <class Act, class E, bool kDrops>
constexpr bool kIsChosen = !kIsOfOutput<Act> || (!kIsHalf<E> && (!kDrops || kIsHomogeneous<Act>));

// Calls f(the activation as a function of what problem.x is).
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
