// The transcendental functions, without branches, for any number type. Layer: core.
// NaN gives NaN. Coarse numbers (coarse.h) have shorter formulas where these are faster.
#pragma once

#include "core/coarse.h"
#include "core/dual.h"
#include "core/exponential.h"
#include "core/jet.h"

namespace actreg {
namespace math {

// value = 1 / (1 + exp(-x)), complement = 1 - value, slope = value * complement. None of the three
// is a difference of nearly equal numbers.
template <class T>
struct Sigmoid {
  T value, complement, slope;
};
template <class T>
ACTREG_HD Sigmoid<T> sigmoid(T x) {
  const T e = exp_of_negative(minus_abs(x)), r = rough_reciprocal(T(1) + e);
  const T larger = refined(r, (T(1) - r) - e * r), smaller = e * larger;
  // Where larger is near 1/2, its error hardly changes larger * (1 - larger). Where larger is near
  // 1, the difference 1 - larger would cancel.
  const T slope = select(e > T(0.5), larger * (T(1) - larger), smaller * larger);
  return {select(x < T(0), smaller, larger), select(x < T(0), larger, smaller), slope};
}

// log(1 + exp(x)); its slope is the sigmoid
template <class T>
ACTREG_HD Jet<T> softplus(T x) {
  const T e = exp_of_negative(minus_abs(x)), larger = reciprocal(T(1) + e);
  return {select(x < T(0), T(0), x) + log1p_of_unit(e), select(x < T(0), e * larger, larger)};
}

// tanh(|x|) = (1 - e) / (1 + e) with e = exp(-2 |x|) = scale * (1 + r + curve). Error at most 1.5
// ulp. The slope is 1 - tanh^2. This difference cancels in the tails: there the slope is
// 4 e / (1 + e)^2.
template <class T>
ACTREG_HD Jet<T> tanh(T x) {
  using R = Range<Scalar<T>>;
  const T z = T(2) * minus_abs(x), end(R::kLogNormal);
  const ReducedExp<T> e = reduced_exp(at_least(z, end));
  const T scale = power_of_two(e.shifted_k), rest = scale * e.m;
  const T r = reciprocal((T(1) + scale) + rest), t = ((T(1) - scale) - rest) * r;
  // The remainder (1 - e) - t * (1 + e), term by term, because most of the terms are exact.
  const T left = (((T(1) - scale) - t * (T(1) + scale)) - scale * e.r) - scale * e.curve;
  // For z < kIsBelowOne, 1 + scale may be inexact. There (1 - e) / (1 + e) rounds to 1 - 2 e.
  const T near_one = T(1) - T(2) * (scale + rest);
  const T value = select(z < T(R::kIsBelowOne), near_one, t + (left - rest * t) * r);
  const T tail = select(z < end, T(0), T(4) * (scale + rest) * (r * r));
  return {copysign(value, x), select(value > T(0.7), tail, T(1) - value * value)};
}
template <class T>
ACTREG_HD Jet<Coarse<T>> tanh(Coarse<T> x) {
  using N = Coarse<T>;
  const N e(fast_exp2(minus_abs(x.value) * T(2 * kLog2E)));
  const N r = reciprocal(N(1) + e), square = x * x;
  const N near_zero = x * (N(1) + square * (N(2.0 / 15) * square - N(1.0 / 3)));
  return {select(square < N(0x1p-6), near_zero, copysign((N(1) - e) * r, x)), N(4) * e * (r * r)};
}

// exp(-z^2 / 2) for |z| <= kTailIsZero; for Coarse numbers, any z.
template <class T>
ACTREG_HD T gaussian(T z) {
  return exp_of_bounded(T(-0.5) * (z * z));
}
template <class T>
ACTREG_HD Coarse<T> gaussian(Coarse<T> z) {
  return Coarse<T>(fast_exp2(z.value * z.value * T(-kLog2E / 2)));
}

// {Phi(x), its density}, of the normal distribution. The tail 1 - Phi(|x|) is exp(-x^2 / 2) times a
// rational function of |x|. So the density needs no second exponential, and Phi(x) for x < 0 keeps
// its relative accuracy.
template <class T>
ACTREG_HD Jet<T> normal_cdf(T x) {
  using C = Coefficients<Scalar<T>>;
  const T z = at_most(abs(x), T(Range<Scalar<T>>::kTailIsZero));
  const T e = gaussian(z);
  const T tail = e * ratio(polynomial<C::kTailTop>(z), polynomial<C::kTailBottom>(z));
  return {select(x < T(0), tail, T(1) - tail), e * T(0.39894228040143267793994605993438)};
}

template <class T>
ACTREG_HD Jet<Coarse<T>> normal_cdf(Coarse<T> x) {
  using N = Coarse<T>;
  using C = Coefficients<Scalar<N>>;
  const N t = reciprocal(N(1) + N(C::kTailScale) * abs(x)), e = gaussian(x);
  const N tail = e * (t * polynomial<C::kTail>(t));
  return {select(x < N(0), tail, N(1) - tail), e * N(0.39894228040143267793994605993438)};
}

// The functions above on dual numbers. The derivatives are exact formulas, not those of the
// polynomials.

template <class T>
ACTREG_HD Dual<T> exp_of_negative(Dual<T> x) {
  const T e = exp_of_negative(x.value);
  return chain(e, e, x);
}
template <class T>
ACTREG_HD Jet<Dual<T>> expm1_of_negative(Dual<T> x) {
  const Jet<T> m = expm1_of_negative(x.value);
  return {chain(m.value, m.slope, x), chain(m.slope, m.slope, x)};
}
template <class T>
ACTREG_HD Jet<Dual<T>> tanh(Dual<T> x) {
  const Jet<T> y = tanh(x.value);
  return {chain(y.value, y.slope, x), chain(y.slope, T(-2) * y.value * y.slope, x)};
}
template <class T>
ACTREG_HD Sigmoid<Dual<T>> sigmoid(Dual<T> x) {
  const Sigmoid<T> s = sigmoid(x.value);
  return {chain(s.value, s.slope, x), chain(s.complement, -s.slope, x),
          chain(s.slope, (s.complement - s.value) * s.slope, x)};
}
template <class T>
ACTREG_HD Jet<Dual<T>> softplus(Dual<T> x) {
  const Jet<T> s = softplus(x.value);
  return {chain(s.value, s.slope, x), chain(s.slope, s.slope * (T(1) - s.slope), x)};
}
template <class T>
ACTREG_HD Jet<Dual<T>> normal_cdf(Dual<T> x) {
  const Jet<T> s = normal_cdf(x.value);
  return {chain(s.value, s.slope, x), chain(s.slope, zero_wins(s.slope, -x.value), x)};
}

// x * gate, gate = tanh(softplus(x)). With e = exp(-|x|) the gate is
//   (1 + 2 e) / (1 + 2 e + 2 e^2) for x > 0,   e (2 + e) / (2 + 2 e + e^2) for x < 0.
template <class T>
ACTREG_HD Jet<T> mish(T x) {
  const T e = exp_of_negative(minus_abs(x)), twice = e + e, square = e * e;
  const T c0 = select(x < T(0), T(2), T(1)), c2 = select(x < T(0), T(1), T(2));
  const T r = rough_reciprocal(c2 * square + (c0 + twice));
  // The residual 1 - r * (c0 + twice + c2 * square), term by term: the rounded sum in parentheses
  // is less exact.
  const T reciprocal = refined(r, ((T(1) - c0 * r) - twice * r) - c2 * e * (e * r));
  const T gate =
      select(x < T(0), e * (T(2) + e) * reciprocal, T(1) - (square + square) * reciprocal);
  const T over = T(4) * e * (reciprocal * reciprocal);
  const T bend = over * (T(1) + e) * select(x < T(0), T(1), e);  // the slope of the gate
  // The slope as one fraction: near the slope's zero at x = -1.19, its term 1 + x is exact.
  const T near_zero = over * ((T(1) + x) + e * ((T(1.5) + x) + e * (T(1) + T(0.25) * e)));
  return {x * gate, select(x < T(-0.5), near_zero, gate + x * bend)};
}
// With n = exp(x) and u = n (n + 2), the gate is u / (u + 2). It rounds to 1 for x >= 20, and for
// x <= 20 no product overflows.
template <class T>
ACTREG_HD Jet<Coarse<T>> mish(Coarse<T> x) {
  using N = Coarse<T>;
  const N low = at_most(x, N(20)), n = exp_of_negative(low), u = n * (n + N(2));
  const N r = reciprocal(u + N(2)), gate = u * r;
  const N nan_at_infinity = x - x;  // like torch's slope
  return {x * gate, gate + low * (N(4) * n * (n + N(1)) * (r * r)) + nan_at_infinity};
}

// x - tanh(x); the slope is tanh(x)^2
template <class T>
ACTREG_HD Jet<T> tanhshrink(T x) {
  const T y = tanh(x).value;
  return {x - y, y * y};
}
// Near 0 the difference x - tanh(x) would cancel: there a series gives it.
template <class T>
ACTREG_HD Jet<Coarse<T>> tanhshrink(Coarse<T> x) {
  using N = Coarse<T>;
  const N e(fast_exp2(minus_abs(x.value) * T(2 * kLog2E))), square = x * x;
  const N far = copysign((N(1) - e) * reciprocal(N(1) + e), x);
  const N bend = x * square * (N(2.0 / 15) * square - N(1.0 / 3));
  const auto is_near_zero = square < N(0x1p-6);
  const N y = select(is_near_zero, x + bend, far);
  // At x = -0, 0 - bend is +0, like x - tanh(x).
  return {select(is_near_zero, N(0) - bend, x - far), y * y};
}

}  // namespace math
}  // namespace actreg
