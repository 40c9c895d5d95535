// The activations, and the list of all of them. Layer: core.
// CONTRIBUTING.md shows how to add an activation. Values and slopes equal those of
// torch.nn.functional, also at NaN, at +-inf and at the kinks. Parameters have torch's names and
// defaults.
#pragma once

#include <array>
#include <limits>
#include <variant>

#include "core/jet.h"
#include "core/math.h"

namespace actreg {

template <class Act>
struct Parameter {
  const char* name;
  double Act::* member;
};
struct NoParameters {
  static constexpr std::array<Parameter<NoParameters>, 0> parameters() { return {}; }
};
constexpr double kRequired = std::numeric_limits<double>::quiet_NaN();  // no default

struct Identity : NoParameters {
  static constexpr const char* name = "identity";
  static constexpr bool kIsIdempotent = true, kIsHomogeneous = true;
  ACTREG_HD TwoSlopes two_slopes() const { return {1, 1, false}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return {x, T(1)};
  }
};

struct Relu : NoParameters {
  static constexpr const char* name = "relu";
  static constexpr bool kIsIdempotent = true, kIsHomogeneous = true;
  ACTREG_HD TwoSlopes two_slopes() const { return {1, 0, true}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return {select(x < T(0), T(0), x), select(x <= T(0), T(0), T(1))};
  }
};

struct ReluSquared : NoParameters {  // relu(x)^2, "Primer", arXiv:2109.08668
  static constexpr const char* name = "relu_squared";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const T r = consistent(Relu{}(x), x).value;
    return {r * r, r + r};
  }
};

struct Hardtanh {  // min(max(x, min_val), max_val)
  static constexpr const char* name = "hardtanh";
  static constexpr bool kIsIdempotent = true;
  double min_val = -1, max_val = 1;
  static constexpr std::array<Parameter<Hardtanh>, 2> parameters() {
    return {{{"min_val", &Hardtanh::min_val}, {"max_val", &Hardtanh::max_val}}};
  }
  ACTREG_HD TwoSlopes two_slopes() const { return {1, 0, min_val >= 0}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const T low(min_val), high(max_val);
    return {select(x > high, high, select(x < low, low, x)),
            select(x <= low, T(0), select(x >= high, T(0), T(1)))};
  }
};

struct Relu6 : NoParameters {  // min(max(x, 0), 6)
  static constexpr const char* name = "relu6";
  static constexpr bool kIsIdempotent = true;
  ACTREG_HD TwoSlopes two_slopes() const { return {1, 0, true}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return Hardtanh{0, 6}(x);
  }
};

struct LeakyRelu {  // max(x, 0) + negative_slope * min(x, 0)
  static constexpr const char* name = "leaky_relu";
  static constexpr bool kIsHomogeneous = true;
  double negative_slope = 0.01;
  static constexpr std::array<Parameter<LeakyRelu>, 1> parameters() {
    return {{{"negative_slope", &LeakyRelu::negative_slope}}};
  }
  ACTREG_HD TwoSlopes two_slopes() const { return {1, negative_slope, false}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const T slope = select(x > T(0), T(1), T(negative_slope));
    return {x * slope, slope};
  }
};

// Elu, Celu and Selu: scale * x for x > 0, else scale * alpha * (exp(x / width) - 1).
template <class T>
ACTREG_HD Jet<T> exponential_linear(T x, double alpha, double width, double scale) {
  const Jet<T> m = math::expm1_of_negative(select(x < T(0), x, T(0)) * T(1 / width));
  return {select(x < T(0), m.value * T(scale * alpha), x * T(scale)),
          select(x <= T(0), m.slope * T(scale * alpha / width), T(scale))};
}

struct Elu {
  static constexpr const char* name = "elu";
  double alpha = 1;
  static constexpr std::array<Parameter<Elu>, 1> parameters() { return {{{"alpha", &Elu::alpha}}}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return exponential_linear(x, alpha, 1, 1);
  }
};

struct Celu {
  static constexpr const char* name = "celu";
  double alpha = 1;
  static constexpr std::array<Parameter<Celu>, 1> parameters() {
    return {{{"alpha", &Celu::alpha}}};
  }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return exponential_linear(x, alpha, alpha, 1);
  }
};

struct Selu : NoParameters {
  static constexpr const char* name = "selu";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return exponential_linear(x, 1.6732632423543772848170429916717, 1,
                              1.0507009873554804934193349852946);
  }
};

struct Gelu : NoParameters {  // x * Phi(x), Phi the normal distribution function
  static constexpr const char* name = "gelu";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const Jet<T> cdf = math::normal_cdf(x);
    return {x * cdf.value, cdf.value + x * cdf.slope};
  }
};

// x/2 * (1 + tanh(u)) = x * sigmoid(2 u), with u = sqrt(2 / pi) * (x + 0.044715 * x^3)
struct GeluTanh : NoParameters {
  static constexpr const char* name = "gelu_tanh";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const double c1 = 1.5957691216057307117597842397375, c3 = 0.044715;  // c1 = 2 sqrt(2 / pi)
    const T square = x * x;
    const auto gate = math::sigmoid(x * (T(c1 * c3) * square + T(c1)));
    return {x * gate.value, gate.value + x * gate.slope * (T(3 * c1 * c3) * square + T(c1))};
  }
};

struct Silu : NoParameters {  // x * sigmoid(x)
  static constexpr const char* name = "silu";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return of(x, x);
  }
  // x * sigmoid(z) and its slope, for z = beta * x.
  template <class T>
  ACTREG_HD static Jet<T> of(T x, T z) {
    const auto gate = math::sigmoid(z);
    // s * (1 + z * (1 - s)) with s = sigmoid(z), written as s * (s + (1 - s) * (1 + z)): near the
    // slope's zero at z = -1.28, the sum 1 + z is exact.
    return {x * gate.value, gate.value * (gate.value + gate.complement * (T(1) + z))};
  }
};

struct Swish {  // x * sigmoid(beta x)
  static constexpr const char* name = "swish";
  double beta = 1;
  static constexpr std::array<Parameter<Swish>, 1> parameters() {
    return {{{"beta", &Swish::beta}}};
  }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return Silu::of(x, x * T(beta));
  }
};

struct Mish : NoParameters {  // x * tanh(softplus(x))
  static constexpr const char* name = "mish";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return math::mish(x);
  }
};

struct Sigmoid : NoParameters {
  static constexpr const char* name = "sigmoid";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const auto s = math::sigmoid(x);
    return {s.value, s.slope};
  }
};

struct LogSigmoid : NoParameters {  // log(sigmoid(x)) = -softplus(-x)
  static constexpr const char* name = "logsigmoid";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const Jet<T> s = math::softplus(-x);
    return {T(0) - s.value, s.slope};
  }
};

struct Tanh : NoParameters {
  static constexpr const char* name = "tanh";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return math::tanh(x);
  }
};

struct Tanhshrink : NoParameters {  // x - tanh(x)
  static constexpr const char* name = "tanhshrink";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return math::tanhshrink(x);
  }
};

struct Softplus {  // log(1 + exp(beta x)) / beta, but x for beta x > threshold
  static constexpr const char* name = "softplus";
  double beta = 1, threshold = 20;
  static constexpr std::array<Parameter<Softplus>, 2> parameters() {
    return {{{"beta", &Softplus::beta}, {"threshold", &Softplus::threshold}}};
  }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const T z = x * T(beta);
    const Jet<T> s = math::softplus(z);
    return select(z > T(threshold), Jet<T>{x, T(1)}, Jet<T>{s.value * T(1 / beta), s.slope});
  }
};

struct Softsign : NoParameters {  // x / (1 + |x|)
  static constexpr const char* name = "softsign";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const T d = T(1) + abs(x), y = quotient(x, d), r = reciprocal(d);
    return {y, r * r + (y - y)};  // y - y is 0, but NaN at x = +-inf, like torch's slope
  }
};

struct Hardsigmoid : NoParameters {  // relu6(x + 3) / 6
  static constexpr const char* name = "hardsigmoid";
  ACTREG_HD TwoSlopes two_slopes() const { return {1.0 / 6, 0, true}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const T slope = select(x > T(-3), select(x < T(3), T(1.0 / 6), T(0)), T(0));
    return {Relu6{}(x + T(3)).value * T(1.0 / 6), slope};
  }
};

struct Hardswish : NoParameters {  // x * relu6(x + 3) / 6
  static constexpr const char* name = "hardswish";
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const T gate = Relu6{}(x + T(3)).value;
    const T curved = select(x >= T(3), T(1), (x + T(1.5)) * T(1.0 / 3));
    return {x * gate * T(1.0 / 6), select(x <= T(-3), T(0), curved)};
  }
};

struct Hardshrink {  // x for |x| > lambd, else 0
  static constexpr const char* name = "hardshrink";
  static constexpr bool kIsIdempotent = true;
  double lambd = 0.5;
  static constexpr std::array<Parameter<Hardshrink>, 1> parameters() {
    return {{{"lambd", &Hardshrink::lambd}}};
  }
  ACTREG_HD TwoSlopes two_slopes() const { return {1, 0, false}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    const T slope = select(abs(x) <= T(lambd), T(0), T(1));
    return {select(slope == T(0), T(0), x), slope};
  }
};

struct Softshrink {  // x - lambd for x > lambd, x + lambd for x < -lambd, else 0
  static constexpr const char* name = "softshrink";
  double lambd = 0.5;
  static constexpr std::array<Parameter<Softshrink>, 1> parameters() {
    return {{{"lambd", &Softshrink::lambd}}};
  }
  ACTREG_HD TwoSlopes two_slopes() const { return {1, 0, false}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return {x - Hardtanh{-lambd, lambd}(x).value, Hardshrink{lambd}(x).slope};
  }
};

struct Threshold {  // x for x > threshold, else value
  static constexpr const char* name = "threshold";
  double threshold = kRequired, value = kRequired;
  static constexpr std::array<Parameter<Threshold>, 2> parameters() {
    return {{{"threshold", &Threshold::threshold}, {"value", &Threshold::value}}};
  }
  ACTREG_HD TwoSlopes two_slopes() const { return {1, 0, threshold >= 0}; }
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    return select(x <= T(threshold), Jet<T>{T(value), T(0)}, Jet<T>{x, T(1)});
  }
};

// The list. The only code that picks an activation from it is visit() in registry.h.
using Activation =
    std::variant<Identity, Relu, Relu6, LeakyRelu, Elu, Celu, Selu, Gelu, GeluTanh, Silu, Swish,
                 Mish, Sigmoid, LogSigmoid, Tanh, Tanhshrink, Softplus, Softsign, Hardtanh,
                 Hardsigmoid, Hardswish, Hardshrink, Softshrink, Threshold, ReluSquared>;

}  // namespace actreg
