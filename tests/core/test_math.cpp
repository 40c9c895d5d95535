// The transcendental functions against the C library in long double: the largest error in ulps.
#include <cmath>
#include <cstdio>
#include <limits>

#include "check.h"
#include "core/math.h"

namespace actreg {
namespace {

// The largest error of f in ulps of the exact value, on [low, high] and close to 0.
template <class S, class F, class Exact>
void test_function(const char* name, double low, double high, double bound, F f, Exact exact) {
  using Limits = std::numeric_limits<S>;
  constexpr int kPoints = 20000;
  double worst = 0, at = 0;
  for (int i = 0; i <= 2 * kPoints; ++i) {
    const S x(i <= kPoints ? low + (high - low) * i / kPoints
                           : std::exp2(-30.0 * (i - kPoints) / kPoints) * (low < 0 ? -1 : 1));
    const long double truth = exact(static_cast<long double>(x));
    const double unit =
        spacing(static_cast<double>(truth), Limits::digits, Limits::min_exponent - 1);
    const double error = static_cast<double>(std::fabs(f(x) - truth) / unit);
    if (!(error <= worst)) worst = std::isnan(error) ? HUGE_VAL : error, at = x;
  }
  char text[160];
  std::snprintf(text, sizeof text, "%-9s %-6s [%g, %g]: %.2f ulp (at %.9g), at most %g", name,
                sizeof(S) == 4 ? "float" : "double", low, high, worst, at, bound);
  check(worst <= bound, text);
}

template <class S>
void test_functions() {
  using R = long double;
  const auto exp = [](R x) { return std::exp(x); };
  const auto expm1 = [](R x) { return std::expm1(x); };
  const auto log1p = [](R x) { return std::log1p(x); };
  const auto tanh = [](R x) { return std::tanh(x); };
  const auto tanh_slope = [](R x) { return 1 / (std::cosh(x) * std::cosh(x)); };
  const auto sigmoid = [](R x) { return 1 / (1 + std::exp(-x)); };
  const auto complement = [](R x) { return 1 / (1 + std::exp(x)); };
  const auto sigmoid_slope = [=](R x) { return sigmoid(x) * complement(x); };
  const auto softplus = [](R x) { return std::log1p(std::exp(x)); };
  const auto cdf = [](R x) { return std::erfc(-x * std::sqrt(R(0.5))) / 2; };
  const double low = sizeof(S) == 4 ? -103 : -745, end = sizeof(S) == 4 ? 40 : 350;

  test_function<S>("exp", low, 0, 1, [](S x) { return math::exp_of_negative(x); }, exp);
  test_function<S>(
      "expm1", -45, 0, 1.1, [](S x) { return math::expm1_of_negative(x).value; }, expm1);
  test_function<S>("expm1'", low, 0, 1, [](S x) { return math::expm1_of_negative(x).slope; }, exp);
  test_function<S>("log1p", 0, 1, 1.3, [](S x) { return math::log1p_of_unit(x); }, log1p);
  test_function<S>("tanh", -25, 25, 2, [](S x) { return math::tanh(x).value; }, tanh);
  test_function<S>("tanh'", -end, 10, 4, [](S x) { return math::tanh(x).slope; }, tanh_slope);
  test_function<S>("sigmoid", low, 40, 2, [](S x) { return math::sigmoid(x).value; }, sigmoid);
  test_function<S>(
      "1-sigmoid", low, 40, 2, [](S x) { return math::sigmoid(x).complement; }, complement);
  test_function<S>(
      "sigmoid'", low, 40, 3, [](S x) { return math::sigmoid(x).slope; }, sigmoid_slope);
  test_function<S>("softplus", low, 40, 2, [](S x) { return math::softplus(x).value; }, softplus);
  test_function<S>("softplus'", low, 40, 3, [](S x) { return math::softplus(x).slope; }, sigmoid);
  // The rounding of x^2 / 2 alone moves its exponential by that many half ulps.
  test_function<S>("cdf", -2, 8, 5, [](S x) { return math::normal_cdf(x).value; }, cdf);
  test_function<S>("cdf", -12, -2, 72, [](S x) { return math::normal_cdf(x).value; }, cdf);
}

}  // namespace

void test_math() {
  test_functions<float>();
  test_functions<double>();
}

}  // namespace actreg
