// Coarse<T>: a number of type T whose result is rounded to bfloat16 (8 bits) or float16 (11 bits).
// Layer: core. math.h has shorter formulas for it. With the formulas of full float accuracy,
// arithmetic and not memory would limit the speed of the half types.
// The sums of a penalty add the numbers before they are rounded to the half type. So the sums
// contain the errors of the shorter formulas: up to 1e-5 of the sum.
#pragma once

#include "core/number.h"

namespace actreg {

template <class S>
struct Short {};  // the Scalar of Coarse numbers: selects the short tables in coefficients.h

template <class T>
struct Coarse {
  using Scalar = Short<actreg::Scalar<T>>;
  T value;

  Coarse() = default;
  ACTREG_HD explicit Coarse(T v) : value(v) {}
  template <class Number, class = decltype(T(Number()))>
  ACTREG_HD explicit Coarse(Number constant) : value(T(constant)) {}

  friend ACTREG_HD Coarse operator-(Coarse a) { return Coarse(-a.value); }
  friend ACTREG_HD Coarse operator+(Coarse a, Coarse b) { return Coarse(a.value + b.value); }
  friend ACTREG_HD Coarse operator-(Coarse a, Coarse b) { return Coarse(a.value - b.value); }
  friend ACTREG_HD Coarse operator*(Coarse a, Coarse b) { return Coarse(a.value * b.value); }
  ACTREG_HD Coarse& operator+=(Coarse other) { return *this = *this + other; }

  friend ACTREG_HD auto operator<(Coarse a, Coarse b) { return a.value < b.value; }
  friend ACTREG_HD auto operator>(Coarse a, Coarse b) { return a.value > b.value; }
  friend ACTREG_HD auto operator<=(Coarse a, Coarse b) { return a.value <= b.value; }
  friend ACTREG_HD auto operator>=(Coarse a, Coarse b) { return a.value >= b.value; }
  friend ACTREG_HD auto operator==(Coarse a, Coarse b) { return a.value == b.value; }
};

template <class Condition, class T>
ACTREG_HD Coarse<T> select(Condition c, Coarse<T> a, Coarse<T> b) {
  return Coarse<T>(select(c, a.value, b.value));
}
template <class T>
ACTREG_HD Coarse<T> select(Always, Coarse<T> a, Coarse<T>) {
  return a;
}
template <class T>
ACTREG_HD Coarse<T> abs(Coarse<T> x) {
  return Coarse<T>(abs(x.value));
}
template <class T>
ACTREG_HD Coarse<T> copysign(Coarse<T> magnitude, Coarse<T> sign) {
  return Coarse<T>(copysign(magnitude.value, sign.value));
}
template <class T>
ACTREG_HD Coarse<T> ratio(Coarse<T> a, Coarse<T> b) {
  return Coarse<T>(a.value * fast_reciprocal(b.value));
}
// fast_reciprocal(b) is 0 for b > 2^126, where 1 / b is no normal number. b / 4 is at most 2^126.
template <class T>
ACTREG_HD Coarse<T> quotient(Coarse<T> a, Coarse<T> b) {
  return Coarse<T>(a.value * T(0.25) * fast_reciprocal(b.value * T(0.25)));
}
template <class T>
ACTREG_HD Coarse<T> refined(Coarse<T> r, Coarse<T>) {  // r is precise enough already
  return r;
}

}  // namespace actreg
