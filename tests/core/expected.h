// Inputs of every dtype, and the expected results of the kernels. core/operator.h computes these
// one element at a time.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/of_output.h"
#include "core/operator.h"
#include "core/problem.h"

namespace actreg {

template <class E>
struct Format {  // kDigits: bits of the mantissa with the hidden one; kLowest: smallest exponent
  using Scalar = E;
  static constexpr int kDigits = std::numeric_limits<E>::digits;
  static constexpr int kLowest = std::numeric_limits<E>::min_exponent - 1;
  static double decode(E x) { return x; }
  static E encode(double x) { return static_cast<E>(x); }
};
inline double decode_bits(uint16_t bits, int mantissa, int bias) {
  const int exponent = (bits & 0x7FFF) >> mantissa, fraction = bits & ((1 << mantissa) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == (1 << (15 - mantissa)) - 1) return sign * (fraction ? NAN : INFINITY);
  return sign * std::ldexp(fraction + (exponent ? 1 << mantissa : 0),
                           (exponent ? exponent : 1) - bias - mantissa);
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
template <>
struct Format<Half> {
  using Scalar = float;
  static constexpr int kDigits = 11, kLowest = -14;
  static double decode(Half x) { return decode_bits(x.bits, 10, 15); }
  static Half encode(double x) {  // x must be normal; rounds towards zero
    const uint32_t bits = bits_of(static_cast<float>(x));
    return {
        static_cast<uint16_t>((bits >> 16 & 0x8000) | ((bits & 0x7FFFFFFF) - (112u << 23)) >> 13)};
  }
};
template <>
struct Format<BFloat16> {
  using Scalar = float;
  static constexpr int kDigits = 8, kLowest = -126;
  static double decode(BFloat16 x) { return decode_bits(x.bits, 7, 127); }
  static BFloat16 encode(double x) {
    return {static_cast<uint16_t>(bits_of(static_cast<float>(x)) >> 16)};
  }
};

// n elements on the heap that begin `shift` elements after an aligned address. The buffer ends with
// the last element, so that sanitizers detect any access behind it.
template <class E>
class Array {
 public:
  Array(int64_t n, int shift) : bytes_((n + shift) * sizeof(E), 0x5A), shift_(shift) {}
  E* data() { return reinterpret_cast<E*>(bytes_.data()) + shift_; }
  bool front_is_untouched() const {
    for (size_t i = 0; i < shift_ * sizeof(E); ++i) {
      if (bytes_[i] != 0x5A) return false;
    }
    return true;
  }

 private:
  std::vector<unsigned char> bytes_;
  int shift_;
};

// The input that the kernel gets for x: x itself, or the output if backward reads the output.
template <class Act>
double argument(const Act&, double x) {
  return x;
}
template <class Act>
double argument(const OfOutput<Act>& act, double x) {
  return static_cast<const Act&>(act)(x).value;
}

// Inputs and expected results.
template <class E>
struct Expected {
  using S = typename Format<E>::Scalar;
  std::vector<E> x, dy;
  // size[i] scales the error allowed at element i. l1[i] and l2[i] are sums over elements [0, i).
  std::vector<double> y, dx, size, l1, l2;

  template <class Act>
  Expected(const Act& act, const Problem& problem, int64_t n, int64_t first_special = 0)
      : l1{0}, l2{0} {
    std::mt19937 generator(7);
    std::uniform_real_distribution<double> uniform(-8, 8);
    const double special[] = {NAN, -NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e-40, -1e-40, 0.5, -0.5};
    const Slopes<S, bool> c{S(problem.c1), S(problem.c2_twice), problem.c2_twice != 0};
    const S s(problem.dropout.scale);
    for (int64_t i = 0; i < n; ++i) {
      const bool is_special = sizeof(E) > 2 && i >= first_special && i % 3 == 0;
      const double number = is_special ? special[i / 3 % 10] : uniform(generator);
      x.push_back(Format<E>::encode(argument(act, number)));
      dy.push_back(Format<E>::encode(uniform(generator)));
      const uint32_t r = random_bits(problem.dropout, i);
      const bool keep = r < problem.dropout.threshold, counts = r < problem.counted;
      const S in(Format<E>::decode(x[i])), gradient(Format<E>::decode(dy[i]));
      PenaltySums<S> sums{0, 0};
      y.push_back(forward(act, in, keep, counts, s, sums));
      dx.push_back(backward(act, in, gradient, keep, counts, s, c));
      size.push_back(std::isfinite(in) ? 1 + std::fabs(in * gradient) + std::fabs(in * in) : 1);
      l1.push_back(l1.back() + sums.l1), l2.push_back(l2.back() + sums.l2);
    }
  }
};

// The error allowed besides rounding. Kernels may compute a * b + c with one rounding, which makes
// a difference of a few epsilons. For 16-bit types, which compute in float, it is 1/4 ulp.
template <class E>
constexpr double kError =
    sizeof(E) == 2 ? std::ldexp(0.5, -Format<E>::kDigits)
                   : 16 * std::numeric_limits<typename Format<E>::Scalar>::epsilon();

template <class E>
bool is_close(double got, double expected, double size, double error = kError<E>) {
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  if (got == expected) return got != 0 || std::signbit(got) == std::signbit(expected);
  const double unit =
      sizeof(E) == 2 ? spacing(expected, Format<E>::kDigits, Format<E>::kLowest) : 0;
  return std::fabs(got - expected) <= unit + error * size;
}

}  // namespace actreg
