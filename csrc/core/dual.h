// Dual numbers: a value and its derivative along one direction. Layer: core.
// Any formula evaluated on them yields its derivative from the same text; this is where the
// second derivatives come from. The functions of math.h have their rules in math.h.
#pragma once

#include "core/number.h"

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
    return {a.value * b.value, a.derivative * b.value + a.value * b.derivative};
  }
  friend ACTREG_HD Dual operator/(Dual a, Dual b) {
    const T quotient = a.value / b.value;
    return {quotient, (a.derivative - quotient * b.derivative) / b.value};
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
template <class T>
ACTREG_HD Dual<T> abs(Dual<T> x) {
  return select(x.value < T(0), -x, x);
}
template <class T>
ACTREG_HD Dual<T> zero_wins(Dual<T> slope, Dual<T> dy) {
  return slope * dy;
}
// The sign is locally constant.
template <class T>
ACTREG_HD Dual<T> copysign(Dual<T> magnitude, Dual<T> sign) {
  return select(copysign(T(1), sign.value) < T(0), -abs(magnitude), abs(magnitude));
}

}  // namespace actreg
