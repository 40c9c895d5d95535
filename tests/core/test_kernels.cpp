// The kernels of every instruction set against the operator for one element.
// Every buffer ends where its tensor ends, on the heap: reading or writing beyond is caught.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"

namespace actreg {
namespace {

template <class E>
struct Format {  // of numbers: the mantissa's bits, with the hidden one; the smallest exponent
  using Scalar = E;
  static constexpr int kDigits = std::numeric_limits<E>::digits;
  static constexpr int kLowest = std::numeric_limits<E>::min_exponent - 1;
  static double decode(E x) { return x; }
  static E encode(double x) { return static_cast<E>(x); }
};
double decode_bits(uint16_t bits, int mantissa, int bias) {
  const int exponent = (bits & 0x7FFF) >> mantissa, fraction = bits & ((1 << mantissa) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == (1 << (15 - mantissa)) - 1) return sign * (fraction ? NAN : INFINITY);
  return sign * std::ldexp(fraction + (exponent ? 1 << mantissa : 0),
                           (exponent ? exponent : 1) - bias - mantissa);
}
uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
template <>
struct Format<Half> {
  using Scalar = float;
  static constexpr int kDigits = 11, kLowest = -14;
  static double decode(Half x) { return decode_bits(x.bits, 10, 15); }
  static Half encode(double x) {  // of a normal number, towards zero
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

template <class E>
double rounded(double x) {  // to nearest even
  const double unit = spacing(x, Format<E>::kDigits, Format<E>::kLowest);
  const double y = std::isfinite(x) ? std::nearbyint(x / unit) * unit : x;
  const int bias = sizeof(E) == 2 && Format<E>::kDigits == 11 ? 15 : 127;
  return std::fabs(y) >= std::ldexp(1, bias + 1) ? std::copysign(INFINITY, y) : y;
}

// Elements on the heap, `shift` of them behind an aligned place, the last at the very end.
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

constexpr int64_t kLongest = 2 * cpu::kBlock + 77;

// Inputs, and what the operator of core/operator.h makes of them, one element at a time.
template <class E>
struct Expected {
  using S = typename Format<E>::Scalar;
  std::vector<E> x, dy;
  std::vector<double> y, dx, size, l1, l2;  // l1, l2: sums of the elements before

  template <class Act>
  Expected(const Act& act, const Problem& problem) : l1{0}, l2{0} {
    std::mt19937 generator(7);
    std::uniform_real_distribution<double> uniform(-8, 8);
    const double special[] = {NAN, -NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e-40, -1e-40, 0.5, -0.5};
    const Slopes<S, bool> c{S(problem.c1), S(problem.c2_twice), problem.c2_twice != 0};
    const S s(problem.dropout.scale);
    for (int64_t i = 0; i < kLongest; ++i) {
      const bool is_special = sizeof(E) > 2 && i > 2 * cpu::kBlock + 1 && i % 3 == 0;
      x.push_back(Format<E>::encode(is_special ? special[i / 3 % 10] : uniform(generator)));
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

// Vectors contract a * b + c to one rounding where the instruction set can: a few epsilons.
template <class E>
bool is_close(double got, double expected, double size) {
  using S = typename Format<E>::Scalar;
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  if (got == expected) return got != 0 || std::signbit(got) == std::signbit(expected);
  const double unit =
      sizeof(E) == 2 ? spacing(expected, Format<E>::kDigits, Format<E>::kLowest) : 0;
  return std::fabs(got - expected) <= unit + 16 * std::numeric_limits<S>::epsilon() * size;
}

template <class E>
bool agrees(const cpu::Kernels& kernels, Problem problem, const Expected<E>& expected,
            int64_t begin, int64_t n) {
  const int shift = n % 2;
  Array<E> x(n, shift), dy(n, shift), out(n, shift);
  std::copy_n(expected.x.begin(), n, x.data());
  std::copy_n(expected.dy.begin(), n, dy.data());
  problem.x = x.data(), problem.dy = dy.data(), problem.out = out.data();
  const PenaltySums<double> sums = kernels.forward(problem, begin, n);
  const auto written = [&](const std::vector<double>& values) {
    bool equal = out.front_is_untouched();
    for (int64_t i = begin; i < n; ++i) {
      equal &= is_close<E>(Format<E>::decode(out.data()[i]), values[i], expected.size[i]);
    }
    return equal;
  };
  // Float accumulators take up to kBlock numbers each.
  const double error = cpu::kBlock * std::numeric_limits<typename Format<E>::Scalar>::epsilon();
  const double l1 = expected.l1[n] - expected.l1[begin], l2 = expected.l2[n] - expected.l2[begin];
  const bool y = written(expected.y);
  const bool summed =
      !std::isfinite(l1) || (is_near(sums.l1, l1, error) && is_near(sums.l2, l2, error));
  kernels.backward(problem, begin, n);
  return y && summed && written(expected.dx);
}

template <class E>
void test_kernels(const cpu::Kernels& kernels, const char* element) {
  for_each_usable_activation([&](auto act) {
    bool equal = true;
    for (double p : {0.0, 0.3, 1.0}) {
      for (bool on_output : {false, true}) {
        Problem problem;
        problem.activation = act, problem.element = ElementType<E>{};
        problem.dropout = Dropout(p);
        problem.dropout.seed = 0x123456789abcdef0, problem.dropout.offset = 0xfedcba9876543210;
        if (on_output) problem.counted = problem.dropout.threshold;
        problem.c1 = kC1, problem.c2_twice = p == 1 ? 0 : kC2;
        const Expected<E> expected(act, problem);
        for (int64_t n = 0; n <= 70; ++n) equal &= agrees(kernels, problem, expected, 0, n);
        for (int64_t n = cpu::kBlock - 1; n <= cpu::kBlock + 1; ++n) {
          equal &= agrees(kernels, problem, expected, 0, n);
          equal &= agrees(kernels, problem, expected, cpu::kBlock, n + cpu::kBlock);
        }
        equal &= agrees(kernels, problem, expected, 0, kLongest);
      }
    }
    check(equal, std::string(kernels.name) + " " + element + " " + act.name +
                     ": kernels against the operator");
  });
}

template <class E>
void test_conversions(const cpu::Kernels& kernels, const char* element) {
  std::vector<E> x, y(65536);
  for (int bits = 0; bits < 65536; ++bits) x.push_back({static_cast<uint16_t>(bits)});
  bool equal = true;
  for (float slope : {1.0f, 0.5f, 1.5f, 0.7123f, 1.9999f}) {  // for ties and for everything else
    Problem problem;
    problem.activation = LeakyRelu{slope}, problem.element = ElementType<E>{};
    problem.x = x.data(), problem.out = y.data();
    kernels.forward(problem, 0, 65536);
    for (int i = 0; i < 65536; ++i) {
      const float in = static_cast<float>(Format<E>::decode(x[i]));
      const double got = Format<E>::decode(y[i]), want = rounded<E>(in > 0 ? in : in * slope);
      equal &= std::isnan(want) ? std::isnan(got)
                                : got == want && std::signbit(got) == std::signbit(want);
    }
  }
  check(equal, std::string(kernels.name) + " " + element + ": conversions of all 65536 patterns");
}

}  // namespace

void test_kernels() {
  for (const cpu::Kernels* kernels : cpu::kAllKernels) {
    if (!kernels->is_supported()) {
      std::printf("skipped  %s: not supported by this CPU\n", kernels->name);
      continue;
    }
    test_kernels<float>(*kernels, "float32");
    test_kernels<double>(*kernels, "float64");
    test_kernels<Half>(*kernels, "float16");
    test_kernels<BFloat16>(*kernels, "bfloat16");
    test_conversions<Half>(*kernels, "float16");
    test_conversions<BFloat16>(*kernels, "bfloat16");
  }
}

}  // namespace actreg
