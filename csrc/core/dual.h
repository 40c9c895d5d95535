// Dual numbers: a value and its derivative. Layer: core.
// A formula evaluated on dual numbers also yields its derivative: curvature.h gets the second
// derivatives this way. The derivatives of the functions of math.h are in math.h.
//
// Note [A derivative of 0 wins]
// A derivative that is exactly 0 stays 0, even if the rule multiplies it with an infinite number.
// So every rule below calls zero_wins(derivative, factor) instead of derivative * factor. Example:
// celu computes x * c with a constant c. The product rule gives 1 * c + x * 0. At x = -inf the
// second term would be NaN; with zero_wins the second term is 0.
#pragma once

#include "core/jet.h"

namespace actreg {

template <class T>
struct Dual {
  using Scalar = actreg::Scalar<T>;
  T value, derivative;

  Dual() = default;
  ACTREG_HD explicit Dual(double constant) : value(T(constant)), derivative(T(0)) {}
  ACTREG_HD Dual(T v, T d) : value(v), derivative(d) {}

  friend ACTREG_HD Dual operator-(Dual a) { return {-a.value, -a.derivative}; }
  friend ACTREG_HD Dual operator+(Dual a, Dual b) {
    return {a.value + b.value, a.derivative + b.derivative};
  }
  friend ACTREG_HD Dual operator-(Dual a, Dual b) {
    return {a.value - b.value, a.derivative - b.derivative};
  }
  friend ACTREG_HD Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, zero_wins(a.derivative, b.value) + zero_wins(b.derivative, a.value)};
  }
  friend ACTREG_HD Dual operator/(Dual a, Dual b) {
    const T quotient = a.value / b.value;
    return {quotient, (a.derivative - zero_wins(b.derivative, quotient)) / b.value};
  }
  ACTREG_HD Dual& operator+=(Dual other) { return *this = *this + other; }

  friend ACTREG_HD auto operator<(Dual a, Dual b) { return a.value < b.value; }
  friend ACTREG_HD auto operator>(Dual a, Dual b) { return a.value > b.value; }
  friend ACTREG_HD auto operator<=(Dual a, Dual b) { return a.value <= b.value; }
  friend ACTREG_HD auto operator==(Dual a, Dual b) { return a.value == b.value; }
  friend ACTREG_HD auto operator>=(Dual a, Dual b) { return a.value >= b.value; }
};

template <class Condition, class T>
ACTREG_HD Dual<T> select(Condition c, Dual<T> a, Dual<T> b) {
  return {select(c, a.value, b.value), select(c, a.derivative, b.derivative)};
}
// The chain rule: f(x) from f's value and slope at x.
template <class T>
ACTREG_HD Dual<T> chain(T value, T slope, Dual<T> x) {
  return {value, zero_wins(slope, x.derivative)};
}
// The derivative at 0 is sign(0) = 0, as in torch.
template <class T>
ACTREG_HD Dual<T> abs(Dual<T> x) {
  const T slope = select(x.value < T(0), T(-1), select(x.value > T(0), T(1), T(0)));
  return chain(abs(x.value), slope, x);
}
// The derivative at 0 is -1, as for x > 0: at x = 0 mish uses its formulas for x > 0.
template <class T>
ACTREG_HD Dual<T> minus_abs(Dual<T> x) {
  return chain(minus_abs(x.value), select(x.value < T(0), T(1), T(-1)), x);
}
// Dual's operator* applies zero_wins to the derivatives, and only the derivative is used.
template <class T>
ACTREG_HD Dual<T> zero_wins(Dual<T> slope, Dual<T> dy) {
  return slope * dy;
}
// In the derivative, both signs are constants, and a zero counts as positive.
template <class T>
ACTREG_HD Dual<T> copysign(Dual<T> magnitude, Dual<T> sign) {
  const T turned = select(magnitude.value < T(0), -magnitude.derivative, magnitude.derivative);
  return {copysign(magnitude.value, sign.value), select(sign.value < T(0), -turned, turned)};
}

// Returns f, but the derivative of f.value is f.slope * (derivative of x). At a kink the formula of
// the value may have another derivative. Example: at x = 0 relu computes its value as x, with the
// derivative 1, but its slope is 0. torch differentiates with the slope.
template <class T>
ACTREG_HD Jet<Dual<T>> consistent(Jet<Dual<T>> f, Dual<T> x) {
  return {chain(f.value.value, f.slope.value, x), f.slope};
}
template <class T>
ACTREG_HD Jet<T> consistent(Jet<T> f, T) {
  return f;
}

}  // namespace actreg
