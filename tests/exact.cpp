// The formulas of exact.py, compiled, so that every float can be tested: a library for
// tools/ulp.py. It computes in a number type whose own error is far below one ulp of the results.
// It shares nothing with csrc: each activation is written as in textbooks, but so that little
// cancels.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#if __has_include(<quadmath.h>)  // GCC on x86; elsewhere long double may be enough
#include <quadmath.h>
using Wide = __float128;
static Wide sqrt(Wide x) { return sqrtq(x); }
static Wide exp(Wide x) { return expq(x); }
static Wide expm1(Wide x) { return expm1q(x); }
static Wide log1p(Wide x) { return log1pq(x); }
static Wide tanh(Wide x) { return tanhq(x); }
static Wide cosh(Wide x) { return coshq(x); }
static Wide erfc(Wide x) { return erfcq(x); }
#else
using Wide = long double;
#endif
using std::sqrt, std::exp, std::expm1, std::log1p, std::tanh, std::cosh, std::erfc;

namespace {

template <class R>
struct Point {
  R value, slope;
  R size = 0;  // the slope's error is in ulps of max(|slope|, size)
};

template <class R>
const R kPi = R(0x1.921fb54442d18p1) + R(0x1.1a62633145c07p-53);

template <class R>
R absolute(R x) {
  return x < 0 ? -x : x;
}
template <class R>
R clamp(R x, R low, R high) {
  return x < low ? low : x > high ? high : x;
}
template <class R>
R sigmoid(R x) {
  return 1 / (1 + exp(-x));
}
template <class R>
R softplus(R x) {
  return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}
// x * gate. Where the slope changes its sign, its two terms cancel, so errors are in ulps of the
// gate.
template <class R>
Point<R> gated(R x, R gate, R gate_slope) {
  return {x * gate, gate + x * gate_slope, gate};
}
template <class R>
Point<R> exponential_linear(R x, R alpha, R width, R scale) {
  if (x > 0) return {scale * x, scale};
  return {scale * alpha * expm1(x / width), scale * alpha / width * exp(x / width)};
}
template <class R>
R tanhshrink(R x) {
  if (absolute(x) > 1) return x - tanh(x);
  // Lambert: tanh x = x / (1 + rest), rest = x^2 / (3 + x^2 / (5 + ...)).
  R rest = 0;
  for (int odd = absolute(x) < 0x1p-20 ? 5 : 31; odd >= 3; odd -= 2) rest = x * x / (odd + rest);
  return x * rest / (1 + rest);
}

template <class R>
struct Row {
  std::string_view name;
  Point<R> (*formula)(R x, const double* parameters);
};
template <class R>
using P = Point<R>;
using Parameters = const double*;

template <class R>
const Row<R> kRows[] = {
    {"identity", [](R x, Parameters) { return P<R>{x, 1}; }},
    {"relu", [](R x, Parameters) { return x > 0 ? P<R>{x, 1} : P<R>{0, 0}; }},
    {"relu6", [](R x, Parameters) { return P<R>{clamp<R>(x, 0, 6), R(x > 0 && x < 6)}; }},
    {"leaky_relu", [](R x, Parameters p) { return x > 0 ? P<R>{x, 1} : P<R>{x * p[0], p[0]}; }},
    {"elu", [](R x, Parameters p) { return exponential_linear<R>(x, p[0], 1, 1); }},
    {"celu", [](R x, Parameters p) { return exponential_linear<R>(x, p[0], p[0], 1); }},
    {"selu",
     [](R x, Parameters) {
       return exponential_linear<R>(x, 1.6732632423543772, 1, 1.0507009873554805);
     }},
    {"gelu",
     [](R x, Parameters) {
       static const R root = sqrt(R(2)), density = 1 / sqrt(2 * kPi<R>);
       return gated<R>(x, erfc(-x / root) / 2, density * exp(-x * x / 2));
     }},
    {"gelu_tanh",
     [](R x, Parameters) {
       static const R root = sqrt(8 / kPi<R>);
       const R cubic = 0.044715, u = root * (x + cubic * x * x * x);
       const R gate = sigmoid(u), bend = gate * sigmoid(-u);
       return gated<R>(x, gate, bend == 0 ? 0 : bend * root * (1 + 3 * cubic * x * x));
     }},
    {"silu", [](R x, Parameters) { return gated<R>(x, sigmoid(x), sigmoid(x) * sigmoid(-x)); }},
    {"swish",
     [](R x, Parameters p) {
       const R z = p[0] * x;
       return gated<R>(x, sigmoid(z), p[0] * sigmoid(z) * sigmoid(-z));
     }},
    {"mish",
     [](R x, Parameters) {
       const R gate = tanh(softplus(x));
       return gated<R>(x, gate, (1 - gate) * (1 + gate) * sigmoid(x));
     }},
    {"sigmoid", [](R x, Parameters) { return P<R>{sigmoid(x), sigmoid(x) * sigmoid(-x)}; }},
    {"logsigmoid", [](R x, Parameters) { return P<R>{-softplus(-x), sigmoid(-x)}; }},
    {"tanh", [](R x, Parameters) { return P<R>{tanh(x), 1 / (cosh(x) * cosh(x))}; }},
    {"tanhshrink", [](R x, Parameters) { return P<R>{tanhshrink(x), tanh(x) * tanh(x)}; }},
    {"softplus",
     [](R x, Parameters p) {
       const R z = x * p[0];
       return z > p[1] ? P<R>{x, 1} : P<R>{softplus(z) / p[0], sigmoid(z)};
     }},
    {"softsign",
     [](R x, Parameters) {
       const R d = 1 + absolute(x);
       return P<R>{x / d, 1 / (d * d)};
     }},
    {"hardtanh",
     [](R x, Parameters p) { return P<R>{clamp<R>(x, p[0], p[1]), R(x > p[0] && x < p[1])}; }},
    {"hardsigmoid",
     [](R x, Parameters) {
       return P<R>{clamp<R>(x + 3, 0, 6) / 6, x > -3 && x < 3 ? R(1) / 6 : R(0)};
     }},
    {"hardswish",
     [](R x, Parameters) {
       const R slope = x <= -3 ? R(0) : x >= 3 ? R(1) : (2 * x + 3) / 6;
       return P<R>{x * clamp<R>(x + 3, 0, 6) / 6, slope};
     }},
    {"hardshrink", [](R x, Parameters p) { return absolute(x) > p[0] ? P<R>{x, 1} : P<R>{0, 0}; }},
    {"softshrink",
     [](R x, Parameters p) {
       return absolute(x) > p[0] ? P<R>{x > 0 ? x - p[0] : x + p[0], 1} : P<R>{0, 0};
     }},
    {"threshold", [](R x, Parameters p) { return x > p[0] ? P<R>{x, 1} : P<R>{p[1], 0}; }},
    {"relu_squared", [](R x, Parameters) { return x > 0 ? P<R>{x * x, 2 * x} : P<R>{0, 0}; }},
};

// The errors found in some results; tools/ulp.py has the same struct.
struct Error {
  double worst, at;  // the largest error in ulps, and its x
  int64_t nearest;   // number of results that are at most half an ulp off
};
struct Format {                     // the dtype of the results
  double least, greatest, epsilon;  // smallest and largest normal power of two; ulp of 1

  double ulp(double size) const {
    uint64_t bits;
    std::memcpy(&bits, &size, sizeof bits);
    bits &= uint64_t{0x7FF} << 52;
    std::memcpy(&size, &bits, sizeof bits);  // a power of two
    return clamp(size, least, greatest) * epsilon;
  }
};

constexpr int kBlock = 512;
template <class R>
struct Truth {
  R exact[2][kBlock], size[2][kBlock];  // [0]: values, [1]: slopes

  void put(int j, const Point<R>& a) {
    exact[0][j] = a.value, exact[1][j] = a.slope;
    size[0][j] = absolute(a.value),
    size[1][j] = absolute(a.slope) < a.size ? a.size : absolute(a.slope);
  }
};

// Whether the function is a straight line between x[0] and x[n - 1], in every digit of R. It is, if
// the n floats are neighbours and the slopes at both ends are equal. That saves time: it is so for
// three quarters of all floats.
template <class R, class S>
bool is_straight(const S* x, int n, const Point<R>& first, const Point<R>& last) {
  if (sizeof(S) != 4 || first.slope != last.slope || first.size != last.size) return false;
  int32_t bits[2];
  std::memcpy(&bits[0], x, 4), std::memcpy(&bits[1], x + n - 1, 4);
  return bits[1] - bits[0] == n - 1;
}

template <class R, class S>
void find_truth(const Row<R>& row, const double* parameters, const S* x, int n, Truth<R>& truth) {
  const Point<R> first = row.formula(x[0], parameters), last = row.formula(x[n - 1], parameters);
  if (is_straight(x, n, first, last)) {
    for (int j = 0; j < n; ++j) {
      truth.put(j, {first.value + first.slope * (R(x[j]) - R(x[0])), first.slope, first.size});
    }
  } else {
    for (int j = 0; j < n; ++j) truth.put(j, row.formula(x[j], parameters));
  }
}

template <class R, class S>
void compare(const S* x, const S* got, const R* exact, const R* size, int n, const Format& format,
             Error& found) {
  // Infinity counts as the number after the largest one: it is right from half way between them on.
  const R infinity = std::numeric_limits<double>::infinity(), end = 2 * R(format.greatest);
  const R limit = end - R(format.greatest) * R(format.epsilon) / 2;
  R error[kBlock];
  for (int j = 0; j < n; ++j) {
    const R ulp = format.ulp(static_cast<double>(size[j])), y = got[j];
    const R placed = y == infinity ? end : y == -infinity ? -end : y;
    const R rounded = absolute(exact[j]) < limit ? exact[j] : exact[j] < 0 ? -infinity : infinity;
    const R distance = absolute(placed - exact[j]) / ulp;
    error[j] = y == rounded ? 0 : distance;
  }
  int64_t nearest = 0, worse = 0;
  for (int j = 0; j < n; ++j) {
    nearest += error[j] <= 0.5;
    worse += !(error[j] <= found.worst);
  }
  found.nearest += nearest;
  for (int j = 0; worse && j < n; ++j) {
    const double e = static_cast<double>(error[j] == error[j] ? error[j] : infinity);
    if (e > found.worst) found.worst = e, found.at = x[j];
  }
}

template <class R, class S>
bool measure(const char* name, const double* parameters, const Format& format, int64_t n,
             const S* x, const S* y, const S* dx, Error* found) {
  const Row<R>* row = nullptr;
  for (const Row<R>& candidate : kRows<R>) row = candidate.name == name ? &candidate : row;
  Truth<R> truth;
  for (int64_t i = 0; row && i < n; i += kBlock) {
    const int count = static_cast<int>(n - i < kBlock ? n - i : kBlock);
    find_truth(*row, parameters, x + i, count, truth);
    compare(x + i, y + i, truth.exact[0], truth.size[0], count, format, found[0]);
    compare(x + i, dx + i, truth.exact[1], truth.size[1], count, format, found[1]);
  }
  return row;
}

}  // namespace

// Compares the results y and dx for `n` finite x, and adds their errors to found[0] and found[1].
// Returns false if there is no activation of that name.
extern "C" bool measure_float32(const char* name, const double* parameters, const Format& format,
                                int64_t n, const float* x, const float* y, const float* dx,
                                Error* found) {
  return measure<double>(name, parameters, format, n, x, y, dx, found);
}
extern "C" bool measure_float64(const char* name, const double* parameters, const Format& format,
                                int64_t n, const double* x, const double* y, const double* dx,
                                Error* found) {
  return measure<Wide>(name, parameters, format, n, x, y, dx, found);
}
