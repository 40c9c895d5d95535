// The largest errors of our transcendental functions, in ulps, compared with long double.
#include <cmath>
#include <cstdio>
#include <limits>

#include "check.h"
#include "core/math.h"

namespace actreg {
namespace {

// The largest error of f, in ulps of the exact value, on [low, high] and near 0.
template <class S, class F, class Exact>
void test_function(const char* name, double low, double high, double bound, F f, Exact exact,
                   int digits = std::numeric_limits<S>::digits) {
  constexpr int kPoints = 20000;
  double worst = 0, at = 0;
  for (int i = 0; i <= 2 * kPoints; ++i) {
    const S x(i <= kPoints ? low + (high - low) * i / kPoints
                           : std::exp2(-30.0 * (i - kPoints) / kPoints) * (low < 0 ? -1 : 1));
    const long double truth = exact(static_cast<long double>(x));
    const double unit =
        spacing(static_cast<double>(truth), digits, std::numeric_limits<S>::min_exponent - 1);
    const double error = static_cast<double>(std::fabs(f(x) - truth) / unit);
    if (!(error <= worst)) worst = std::isnan(error) ? HUGE_VAL : error, at = x;
  }
  char text[160];
  std::snprintf(text, sizeof text, "%-9s %2d digits [%g, %g]: %.2f ulp (at %.9g), at most %g", name,
                digits, low, high, worst, at, bound);
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
  // At x the rounding of x^2 / 2 alone changes exp(-x^2 / 2) by up to x^2 / 2 half ulps.
  test_function<S>("cdf", -2, 8, 5, [](S x) { return math::normal_cdf(x).value; }, cdf);
  test_function<S>("cdf", -12, -2, 72, [](S x) { return math::normal_cdf(x).value; }, cdf);
}

// A float with approximate instructions worse than any GPU's: their relative error is +2^-21 or
// -2^-21 in turns, and they return 0 instead of a denormal number.
struct Worst {
  using Scalar = float;
  float value;
  explicit Worst(double v) : value(static_cast<float>(v)) {}

  friend Worst operator-(Worst a) { return Worst(-a.value); }
  friend Worst operator+(Worst a, Worst b) { return Worst(a.value + b.value); }
  friend Worst operator-(Worst a, Worst b) { return Worst(a.value - b.value); }
  friend Worst operator*(Worst a, Worst b) { return Worst(a.value * b.value); }
  friend bool operator<(Worst a, Worst b) { return a.value < b.value; }
  friend bool operator>(Worst a, Worst b) { return a.value > b.value; }
  friend bool operator<=(Worst a, Worst b) { return a.value <= b.value; }
};
Worst select(bool c, Worst a, Worst b) { return c ? a : b; }
Worst abs(Worst x) { return Worst(std::fabs(x.value)); }
Worst copysign(Worst a, Worst b) { return Worst(std::copysign(a.value, b.value)); }
Worst spoiled(float x) {
  static int count = 0;
  const float y = x * (++count * 7 % 3 == 0 ? 1 - 0x1p-21f : 1 + 0x1p-21f);
  return Worst(std::fabs(y) < std::numeric_limits<float>::min() ? 0 : y);
}
Worst fast_exp2(Worst x) { return spoiled(std::exp2(x.value)); }
Worst fast_reciprocal(Worst x) { return spoiled(1 / x.value); }

// Errors in ulps of float16, which has 11 bits.
void test_coarse() {
  using R = long double;
  using N = Coarse<Worst>;
  const auto test = [](const char* name, double low, double high, auto f, auto exact,
                       double ulp = 0.15) {
    const auto value = [&](float x) { return f(N(Worst(x))).value.value; };
    test_function<float>(name, low, high, ulp, value, exact, 11);
  };
  const auto sigmoid = [](R x) { return 1 / (1 + std::exp(-x)); };
  const auto gate = [](R x) { return std::tanh(std::log1p(std::exp(x))); };
  test("exp", -87, 0, [](N x) { return math::exp_of_negative(x); }, [](R x) { return exp(x); });
  test(
      "expm1", -45, 0, [](N x) { return math::expm1_of_negative(x).value; },
      [](R x) { return expm1(x); });
  test("log1p", 0, 1, [](N x) { return math::log1p_of_unit(x); }, [](R x) { return log1p(x); });
  test("tanh", -25, 25, [](N x) { return math::tanh(x).value; }, [](R x) { return tanh(x); });
  test(
      "tanh'", -40, 10, [](N x) { return math::tanh(x).slope; },
      [](R x) { return 1 / (cosh(x) * cosh(x)); });
  test("sigmoid", -80, 40, [](N x) { return math::sigmoid(x).value; }, sigmoid);
  test(
      "sigmoid'", -80, 40, [](N x) { return math::sigmoid(x).slope; },
      [=](R x) { return sigmoid(x) * sigmoid(-x); });
  test(
      "softplus", -80, 40, [](N x) { return math::softplus(x).value; },
      [](R x) { return log1p(exp(x)); });
  test("softplus'", -80, 40, [](N x) { return math::softplus(x).slope; }, sigmoid);
  test("mish", -80, 40, [](N x) { return math::mish(x).value; }, [=](R x) { return x * gate(x); });
  const auto cdf = [](R x) { return erfc(-x * std::sqrt(R(0.5))) / 2; };
  // Above -4.1 x * cdf(x) is a normal float16. Below, only bfloat16, which has 8 bits, needs
  // accuracy.
  const auto coarse_cdf = [](N x) { return math::normal_cdf(x).value; };
  test("cdf", -4.1, 8, coarse_cdf, cdf, 0.26);
  test("cdf", -12, -4.1, coarse_cdf, cdf, 2.1);
}

}  // namespace

void test_math() {
  test_functions<float>();
  test_functions<double>();
  test_coarse();
}

}  // namespace actreg
