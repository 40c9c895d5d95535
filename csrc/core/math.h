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
  static constexpr double kNegligible = -30;  // 2^k beside 1
  static constexpr double kLogNormal = -87;   // exp(x) is a normal number down to here
  static constexpr double kTinyPower = -80, kTiny = 0x1p-80;
  static constexpr double kTailIsZero = 14.5;  // so does the normal distribution's tail beyond
};
template <>
struct Range<double> {
  static constexpr double kRound = 0x1.8p52, kExpIsZero = -746, kNegligible = -60,
                          kLogNormal = -708;
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

// e^x = 2^k (1 + m), with k an integer and m = r + curve, |m| < 0.42
template <class T>
struct ReducedExp {
  T shifted_k, r, curve, m;
};
template <class T>
ACTREG_HD ReducedExp<T> reduced_exp(T x) {
  using C = Coefficients<Scalar<T>>;
  const T round(Range<Scalar<T>>::kRound), shifted = x * T(kLog2E) + round, k = shifted - round;
  const T r = (x - k * T(C::kLn2High)) - k * T(C::kLn2Low);
  const T curve = r * r * polynomial(r, C::kExpm1);
  return {shifted, r, curve, r + curve};
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

// exp(x) - 1 for x <= 0, and exp(x) as its slope; <= 1.1 and 1 ulp.
template <class T>
ACTREG_HD Jet<T> expm1_of_negative(T x) {
  using R = Range<Scalar<T>>;
  const ReducedExp<T> e = reduced_exp(at_least(x, T(R::kExpIsZero)));
  // Below 2^kNegligible the power only has to vanish beside the 1.
  const T scale = power_of_two(at_least(e.shifted_k, T(R::kRound + R::kNegligible)));
  return {(scale - T(1)) + scale * e.m, times_power_of_two(T(1) + e.m, e.shifted_k)};
}

// log(1 + u) for u in [0, 1], by the series of 2 atanh(u / (2 + u)). <= 1.3 ulp.
template <class T>
ACTREG_HD T log1p_of_unit(T u) {
  const T s = u / (u + T(2)), z = s * s;
  return u - s * (u - z * polynomial(z, Coefficients<Scalar<T>>::kLog1p));
}

// 1 / (1 + exp(-x)), 1 less that, and the product of both, which is the slope; none cancels. And
// exp(-|x|), from which they are made.
template <class T>
struct Sigmoid {
  T value, complement, slope, e;
};
template <class T>
ACTREG_HD Sigmoid<T> sigmoid(T x) {
  const T e = exp_of_negative(minus_abs(x)), r = T(1) / (T(1) + e);
  const T larger = r + r * ((T(1) - r) - e * r), smaller = e * larger;  // one step of Newton's
  // Near 1/2 the errors of the first form cancel, and in the tails the second form has none to.
  const T slope = select(e > T(0.5), larger * (T(1) - larger), smaller * larger);
  return {select(x < T(0), smaller, larger), select(x < T(0), larger, smaller), slope, e};
}

// log(1 + exp(x)); its slope is the sigmoid
template <class T>
ACTREG_HD Jet<T> softplus(T x) {
  const T e = exp_of_negative(minus_abs(x)), larger = T(1) / (T(1) + e);
  return {select(x < T(0), T(0), x) + log1p_of_unit(e), select(x < T(0), e * larger, larger)};
}

// (1 - e) / (1 + e) with e = exp(-2 |x|) = scale (1 + r + curve); <= 1.6 ulp. The slope is that of
// 1 - tanh^2, which in the tails would cancel.
template <class T>
ACTREG_HD Jet<T> tanh(T x) {
  using R = Range<Scalar<T>>;
  const T z = T(2) * minus_abs(x), end(R::kLogNormal);
  const ReducedExp<T> e = reduced_exp(at_least(z, end));
  const T scale = power_of_two(e.shifted_k), rest = scale * e.m;
  const T reciprocal = T(1) / ((T(1) + scale) + rest);
  const T t = ((T(1) - scale) - rest) * reciprocal;
  // What t times the denominator leaves of the numerator, term by term: most of them are exact.
  const T left = (((T(1) - scale) - t * (T(1) + scale)) - scale * e.r) - scale * e.curve;
  const T value = t + (left - rest * t) * reciprocal;
  const T tail = select(z < end, T(0), T(4) * (scale + rest) * (reciprocal * reciprocal));
  return {copysign(value, x), select(value > T(0.7), tail, T(1) - value * value)};
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
ACTREG_HD Jet<Dual<T>> expm1_of_negative(Dual<T> x) {
  const Jet<T> m = expm1_of_negative(x.value);
  return {{m.value, m.slope * x.derivative}, {m.slope, m.slope * x.derivative}};
}
template <class T>
ACTREG_HD Jet<Dual<T>> tanh(Dual<T> x) {
  const Jet<T> y = tanh(x.value);
  return {{y.value, y.slope * x.derivative}, {y.slope, T(-2) * y.value * y.slope * x.derivative}};
}
template <class T>
ACTREG_HD Sigmoid<Dual<T>> sigmoid(Dual<T> x) {
  const Sigmoid<T> s = sigmoid(x.value);
  const T d = s.slope * x.derivative;
  return {{s.value, d},
          {s.complement, -d},
          {s.slope, (s.complement - s.value) * d},
          {s.e, select(x.value < T(0), s.e, -s.e) * x.derivative}};
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
