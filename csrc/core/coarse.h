// Numbers for results of 8 or 11 bits: computed as T, but by shorter ways (math.h). Layer: core.
// bfloat16 and float16 halve the memory's traffic; full float accuracy would cost more than that.
// Penalties add what has not been rounded yet: the polynomials' errors, up to 1e-5 of the sum.
#pragma once

#include "core/number.h"

namespace actreg {

template <class S>
struct Short {};  // the precision: selects the coefficients

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
template <class T>
ACTREG_HD Coarse<T> quotient(Coarse<T> a, Coarse<T> b) {  // of b / 4 the reciprocal is normal
  return Coarse<T>(a.value * T(0.25) * fast_reciprocal(b.value * T(0.25)));
}
template <class T>
ACTREG_HD Coarse<T> refined(Coarse<T> r, Coarse<T>) {  // good enough as it is
  return r;
}

}  // namespace actreg
