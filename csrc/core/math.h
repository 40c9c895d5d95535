// The transcendental functions, branch-free on any number type. Layer: core.
// Coefficients: tools/fit_polynomials.py, which also prints the errors. NaN passes through.
#pragma once

#include <cstddef>
#include <utility>

#include "core/coefficients.h"
#include "core/dual.h"
#include "core/jet.h"

namespace actreg {
namespace math {

// Where the functions saturate, for each precision.
template <class Scalar>
struct Range;
template <>
struct Range<float> {
  static constexpr double kRound = 0x1.8p23;  // adding it rounds to an integer, in the low bits
  static constexpr double kExpIsZero = -104;  // exp(x) rounds to 0 here and below
  static constexpr double kExpm1IsOne = -20;  // exp(x) - 1 rounds to -1 here and below
  static constexpr double kTinyPower = -80, kTiny = 0x1p-80;
  static constexpr double kTailIsZero = 14.5;  // so does the normal distribution's tail beyond
};
template <>
struct Range<double> {
  static constexpr double kRound = 0x1.8p52, kExpIsZero = -746, kExpm1IsOne = -40;
  static constexpr double kTinyPower = -600, kTiny = 0x1p-600;
  static constexpr double kTailIsZero = 39;
};
constexpr double kLog2E = 1.4426950408889634;

namespace detail {
template <class T, class S, std::size_t N, std::size_t... I>
ACTREG_HD T horner(T x, const S (&c)[N], std::index_sequence<I...>) {
  T sum(c[0]);
  ((sum = sum * x + T(c[I + 1])), ...);
  return sum;
}
}  // namespace detail

// c[0] x^(N-1) + ... + c[N-1]
template <class T, class S, std::size_t N>
ACTREG_HD T polynomial(T x, const S (&c)[N]) {
  return detail::horner(x, c, std::make_index_sequence<N - 1>{});
}

// e^x = 2^k (1 + m), with k an integer and |m| < 0.42
template <class T>
struct ReducedExp {
  T shifted_k, m;
};
template <class T>
ACTREG_HD ReducedExp<T> reduced_exp(T x) {
  using C = Coefficients<Scalar<T>>;
  const T round(Range<Scalar<T>>::kRound), shifted = x * T(kLog2E) + round, k = shifted - round;
  const T r = (x - k * T(C::kLn2High)) - k * T(C::kLn2Low);
  return {shifted, r + r * r * polynomial(r, C::kExpm1)};
}

// a * 2^k for k <= 0 and a in [1/2, 2], down to the last denormal
template <class T>
ACTREG_HD T times_power_of_two(T a, T shifted_k) {
  using R = Range<Scalar<T>>;
  // 2^k itself is no normal number for the smallest k: two steps there.
  const auto tiny = shifted_k < T(R::kRound + R::kTinyPower);
  const T scale = power_of_two(shifted_k - select(tiny, T(R::kTinyPower), T(0)));
  return a * scale * select(tiny, T(R::kTiny), T(1));
}

// exp(x) for x <= 0, down to the last denormal. <= 1 ulp.
template <class T>
ACTREG_HD T exp_of_negative(T x) {
  using R = Range<Scalar<T>>;
  const ReducedExp<T> e = reduced_exp(at_least(x, T(R::kExpIsZero)));
  return times_power_of_two(T(1) + e.m, e.shifted_k);
}

// exp(x) - 1 for x <= 0. <= 1 ulp.
template <class T>
ACTREG_HD T expm1_of_negative(T x) {
  using R = Range<Scalar<T>>;
  const ReducedExp<T> e = reduced_exp(at_least(x, T(R::kExpm1IsOne)));
  const T scale = power_of_two(e.shifted_k);
  return (scale - T(1)) + scale * e.m;
}

// log(1 + u) for u in [0, 1], by the series of 2 atanh(u / (2 + u)). <= 1.3 ulp.
template <class T>
ACTREG_HD T log1p_of_unit(T u) {
  const T s = u / (u + T(2)), z = s * s;
  return u - s * (u - z * polynomial(z, Coefficients<Scalar<T>>::kLog1p));
}

// 1 / (1 + exp(-x)), without cancellation in the value or in the slope
template <class T>
ACTREG_HD Jet<T> sigmoid(T x) {
  const T e = exp_of_negative(minus_abs(x)), larger = T(1) / (T(1) + e), smaller = e * larger;
  return {select(x < T(0), smaller, larger), smaller * larger};
}

// log(1 + exp(x)); its slope is the sigmoid
template <class T>
ACTREG_HD Jet<T> softplus(T x) {
  const T e = exp_of_negative(minus_abs(x)), larger = T(1) / (T(1) + e);
  return {select(x < T(0), T(0), x) + log1p_of_unit(e), select(x < T(0), e * larger, larger)};
}

// <= 2 ulp
template <class T>
ACTREG_HD T tanh(T x) {
  using R = Range<Scalar<T>>;
  const T z = T(2) * minus_abs(x);
  const ReducedExp<T> e = reduced_exp(at_least(z, T(R::kExpm1IsOne)));
  const T scale = power_of_two(e.shifted_k);  // (1 - exp(z)) / (1 + exp(z)), each rounded once
  return copysign(((T(1) - scale) - scale * e.m) / ((T(1) + scale) + scale * e.m), x);
}

// The normal distribution function and its density. The upper tail is exp(-x^2/2) * a rational
// function, so that the slope costs nothing and the lower tail keeps its relative accuracy.
template <class T>
ACTREG_HD Jet<T> normal_cdf(T x) {
  using C = Coefficients<Scalar<T>>;
  const T z = at_most(abs(x), T(Range<Scalar<T>>::kTailIsZero));
  const T e = exp_of_negative(T(-0.5) * (z * z));
  const T tail = e * (polynomial(z, C::kTailTop) / polynomial(z, C::kTailBottom));
  return {select(x < T(0), tail, T(1) - tail), e * T(0.39894228040143267793994605993438)};
}

// Derivatives of the above, for dual numbers: from calculus, not from the polynomials.

template <class T>
ACTREG_HD Dual<T> exp_of_negative(Dual<T> x) {
  const T e = exp_of_negative(x.value);
  return {e, e * x.derivative};
}
template <class T>
ACTREG_HD Dual<T> expm1_of_negative(Dual<T> x) {
  const T m = expm1_of_negative(x.value);
  return {m, (m + T(1)) * x.derivative};
}
template <class T>
ACTREG_HD Dual<T> tanh(Dual<T> x) {
  const T y = tanh(x.value);
  return {y, (T(1) - y * y) * x.derivative};
}
template <class T>
ACTREG_HD Jet<Dual<T>> sigmoid(Dual<T> x) {
  const Jet<T> s = sigmoid(x.value);
  return {{s.value, s.slope * x.derivative},
          {s.slope, s.slope * (T(1) - s.value - s.value) * x.derivative}};
}
template <class T>
ACTREG_HD Jet<Dual<T>> softplus(Dual<T> x) {
  const Jet<T> s = softplus(x.value);
  return {{s.value, s.slope * x.derivative}, {s.slope, s.slope * (T(1) - s.slope) * x.derivative}};
}
template <class T>
ACTREG_HD Jet<Dual<T>> normal_cdf(Dual<T> x) {
  const Jet<T> s = normal_cdf(x.value);
  return {{s.value, s.slope * x.derivative}, {s.slope, -x.value * s.slope * x.derivative}};
}

}  // namespace math
}  // namespace actreg
