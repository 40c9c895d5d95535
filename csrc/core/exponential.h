// exp, expm1 and log1p on the intervals that activations need, without branches, for any number
// type. Layer: core. NaN gives NaN. tools/fit_polynomials.py finds the coefficients and prints
// their errors. Coarse numbers (coarse.h) have shorter formulas where these are faster.
#pragma once

#include <cstddef>
#include <utility>

#include "core/coarse.h"
#include "core/coefficients.h"
#include "core/jet.h"

namespace actreg {
namespace math {

// The arguments at which the functions saturate, for each precision.
template <class Scalar>
struct Range;
template <>
struct Range<float> {
  static constexpr double kRound = 0x1.8p23;  // x + kRound has round(x) in its low bits
  static constexpr double kExpIsZero = -104;  // exp(x) rounds to 0 for x <= kExpIsZero
  static constexpr double kNegligible = -30;  // 1 - 2^k rounds to 1 for k <= kNegligible
  // For x < kIsBelowOne, 1 + exp(x) may round exp(x) away, and 1 + exp(x)^2 rounds to 1.
  static constexpr double kIsBelowOne = -16;
  static constexpr double kLogNormal = -87;  // exp(x) is a normal number for x >= kLogNormal
  static constexpr double kTinyPower = -80, kTiny = 0x1p-80;  // kTiny = 2^kTinyPower
  static constexpr double kTailIsZero = 14.4;  // 1 - Phi(x), the normal tail, rounds to 0 above it
};
template <>
struct Range<double> {
  static constexpr double kRound = 0x1.8p52, kExpIsZero = -746, kNegligible = -60,
                          kIsBelowOne = -36, kLogNormal = -708;
  static constexpr double kTinyPower = -600, kTiny = 0x1p-600;
  static constexpr double kTailIsZero = 38.6;
};
template <class S>
struct Range<Short<S>> : Range<S> {};
constexpr double kLog2E = 1.4426950408889634;

namespace detail {
// The table is a template argument, because device code may use its numbers but not its address.
template <const auto& table, std::size_t I>
constexpr auto kEntry = table[I];
template <const auto& table, class T, std::size_t... I>
ACTREG_HD T horner(T x, std::index_sequence<I...>) {
  T sum(kEntry<table, 0>);
  ((sum = sum * x + T(kEntry<table, I + 1>)), ...);
  return sum;
}
}  // namespace detail

// c[0] x^(N-1) + ... + c[N-1]
template <const auto& table, class T>
ACTREG_HD T polynomial(T x) {
  constexpr std::size_t kSize = sizeof(table) / sizeof(table[0]);
  return detail::horner<table>(x, std::make_index_sequence<kSize - 1>{});
}

// exp(x) = 2^k * (1 + m), with an integer k and m = r + curve, |m| < 0.42. shifted_k = k + kRound.
template <class T>
struct ReducedExp {
  T shifted_k, r, curve, m;
};
template <class T>
ACTREG_HD ReducedExp<T> reduced_exp(T x) {
  using C = Coefficients<Scalar<T>>;
  const T round(Range<Scalar<T>>::kRound), shifted = x * T(kLog2E) + round, k = shifted - round;
  const T r = (x - k * T(C::kLn2High)) - k * T(C::kLn2Low);
  const T curve = r * r * polynomial<C::kExpm1>(r);
  return {shifted, r, curve, r + curve};
}

// a * 2^k for k <= 0 and a in [1/2, 2], also where the result is denormal
template <class T>
ACTREG_HD T times_power_of_two(T a, T shifted_k) {
  using R = Range<Scalar<T>>;
  // For the smallest k, 2^k is not a normal number: multiply with 2^(k - kTinyPower), then kTiny.
  const auto tiny = shifted_k < T(R::kRound + R::kTinyPower);
  const T scale = power_of_two(shifted_k - select(tiny, T(R::kTinyPower), T(0)));
  return a * scale * select(tiny, T(R::kTiny), T(1));
}

// exp(x) for kExpIsZero <= x <= 0, also where it is denormal. Error at most 1 ulp.
template <class T>
ACTREG_HD T exp_of_bounded(T x) {
  const ReducedExp<T> e = reduced_exp(x);
  return times_power_of_two(T(1) + e.m, e.shifted_k);
}
// exp(x) for any x <= 0; for Coarse numbers, any x <= 80.
template <class T>
ACTREG_HD T exp_of_negative(T x) {
  return exp_of_bounded(at_least(x, T(Range<Scalar<T>>::kExpIsZero)));
}
template <class T>
ACTREG_HD Coarse<T> exp_of_negative(Coarse<T> x) {
  // The square root of exp(x): fast_exp2 may turn a denormal exp(x) into 0, but not its root.
  const T root = fast_exp2(x.value * T(kLog2E / 2));
  return Coarse<T>(root * root);
}

// {exp(x) - 1, exp(x)} for x <= 0. Errors at most 1.1 and 1 ulp.
template <class T>
ACTREG_HD Jet<T> expm1_of_negative(T x) {
  using R = Range<Scalar<T>>;
  const ReducedExp<T> e = reduced_exp(at_least(x, T(R::kExpIsZero)));
  // Raising k to kNegligible makes 2^k a normal number and does not change 1 - 2^k.
  const T scale = power_of_two(at_least(e.shifted_k, T(R::kRound + R::kNegligible)));
  return {(scale - T(1)) + scale * e.m, times_power_of_two(T(1) + e.m, e.shifted_k)};
}
template <class T>
ACTREG_HD Jet<Coarse<T>> expm1_of_negative(Coarse<T> x) {
  using C = Coefficients<Scalar<Coarse<T>>>;
  const Coarse<T> e = exp_of_negative(x), near_zero = x + x * x * polynomial<C::kExpm1>(x);
  return {select(x.value > T(-0.5), near_zero, e - Coarse<T>(1)), e};
}

// log(1 + u) for u in [0, 1], by the series of 2 atanh(u / (2 + u)). Error at most 1.3 ulp.
template <class T>
ACTREG_HD T log1p_of_unit(T u) {
  const T s = ratio(u, u + T(2)), z = s * s;
  return u - s * (u - z * polynomial<Coefficients<Scalar<T>>::kLog1p>(z));
}
template <class T>
ACTREG_HD Coarse<T> log1p_of_unit(Coarse<T> u) {
  return u * polynomial<Coefficients<Scalar<Coarse<T>>>::kLog1p>(u);
}

}  // namespace math
}  // namespace actreg
