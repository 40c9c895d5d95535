// The kernels of every instruction set, compared with the operator for one element.
// Every buffer ends with its tensor, so sanitizers detect any access beyond.
#include <cstdio>
#include <string>

#include "core/kept.h"
#include "cpu/kernels.h"
#include "expected.h"

namespace actreg {
namespace {

template <class E>
double rounded(double x) {  // to nearest even
  const double unit = spacing(x, Format<E>::kDigits, Format<E>::kLowest);
  const double y = std::isfinite(x) ? std::nearbyint(x / unit) * unit : x;
  const int bias = sizeof(E) == 2 && Format<E>::kDigits == 11 ? 15 : 127;
  return std::fabs(y) >= std::ldexp(1, bias + 1) ? std::copysign(INFINITY, y) : y;
}

constexpr int64_t kLongest = 2 * cpu::kBlock + 77;

template <class E>
bool agrees(const cpu::Kernels& kernels, Problem problem, const Expected<E>& expected,
            int64_t begin, int64_t n) {
  const int shift = n % 2;
  Array<E> x(n, shift), dy(n, shift), out(n, shift);
  std::copy_n(expected.x.begin(), n, x.data());
  std::copy_n(expected.dy.begin(), n, dy.data());
  problem.x = x.data(), problem.dy = dy.data(), problem.out = out.data();
  const auto written = [&](const std::vector<double>& values) {
    bool equal = out.front_is_untouched();
    for (int64_t i = begin; i < n; ++i) {
      equal &= is_close<E>(Format<E>::decode(out.data()[i]), values[i], expected.size[i]);
    }
    return equal;
  };
  if (problem.x_is_output) {
    kernels.backward(problem, begin, n);
    return written(expected.dx);
  }
  const PenaltySums<double> sums = kernels.forward(problem, begin, n);
  // A float accumulator adds up to kBlock numbers.
  const double error = (sizeof(E) == 2 ? kError<E> : 0) +
                       cpu::kBlock * std::numeric_limits<typename Format<E>::Scalar>::epsilon();
  const double l1 = expected.l1[n] - expected.l1[begin], l2 = expected.l2[n] - expected.l2[begin];
  bool y = written(expected.y);
  const bool summed =
      !std::isfinite(l1) || (is_near(sums.l1, l1, error) && is_near(sums.l2, l2, error));
  Problem without = problem;
  without.penalty.l1 = without.penalty.l2 = 0;
  const PenaltySums<double> none = kernels.forward(without, begin, n);
  y &= written(expected.y) && none.l1 == 0 && none.l2 == 0;
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
        const Expected<E> expected(act, problem, kLongest, 2 * cpu::kBlock + 2);
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

// Backward from the output: y is the input of the kernel.
template <class E>
void test_output(const cpu::Kernels& kernels, const char* element) {
  for_each_usable_activation([&](auto act) {
    using Act = decltype(act);
    if constexpr (kHasSlopeOfOutput<Act>) {
      bool equal = true;
      for (bool drops : {false, kIsHomogeneous<Act>}) {
        Problem problem;
        problem.activation = act, problem.element = ElementType<E>{};
        problem.x_is_output = true;
        problem.dropout = Dropout(drops ? 0.3 : 0), problem.dropout.seed = 5;
        problem.counted = problem.dropout.threshold;
        problem.c1 = kC1, problem.c2_twice = kC2;
        const Expected<E> expected(OfOutput<Act>{act}, problem, kLongest, 2 * cpu::kBlock + 2);
        for (int64_t n = 0; n <= 70; ++n) equal &= agrees(kernels, problem, expected, 0, n);
        equal &= agrees(kernels, problem, expected, cpu::kBlock, kLongest);
      }
      check(equal, std::string(kernels.name) + " " + element + " " + act.name +
                       ": backward from the output against the operator");
    }
  });
}

// Compares the bits that forward writes, and the gradient from these bits, from element `begin` on.
template <class E, class Act>
bool bits_agree(const cpu::Kernels& kernels, const Act& act, Problem problem,
                const Expected<E>& expected, int64_t begin, int64_t n) {
  using S = typename Format<E>::Scalar;
  Array<E> x(n, 0), dy(n, 0), out(n, 0);
  Array<uint8_t> bits((n + 7) / 8, 0);
  std::copy_n(expected.x.begin(), n, x.data());
  std::copy_n(expected.dy.begin(), n, dy.data());
  problem.x = x.data(), problem.dy = dy.data(), problem.out = out.data();
  problem.bits = bits.data();
  kernels.forward(problem, begin, n);
  kernels.backward_bits(problem, act.two_slopes(), begin, n);
  bool equal = true;
  for (int64_t i = begin; i < n; ++i) {
    const uint32_t r = random_bits(problem.dropout, i);
    const bool on = is_on(act, S(Format<E>::decode(x.data()[i]))) && r < problem.marked;
    equal &= on == (bits.data()[i / 8] >> (i % 8) & 1);
    const bool draws = problem.marked == kKeepAll, keep = !draws || r < problem.dropout.threshold;
    const S dx =
        backward_from_bit(on, act.two_slopes(), S(Format<E>::decode(dy.data()[i])), keep,
                          !draws || r < problem.counted, S(problem.dropout.scale), S(problem.c1));
    equal &= is_close<E>(Format<E>::decode(out.data()[i]), dx, expected.size[i]);
  }
  return equal && (n % 8 == 0 || bits.data()[n / 8] >> (n % 8) == 0);
}

template <class E>
void test_bits(const cpu::Kernels& kernels, const char* element) {
  for_each_usable_activation([&](auto act) {
    if constexpr (kHasTwoSlopes<decltype(act)>) {
      bool equal = true;
      for (double p : {0.0, 0.3, 1.0}) {
        for (bool is_marked : {false, true}) {
          Problem problem;
          problem.activation = act, problem.element = ElementType<E>{};
          problem.dropout = Dropout(p);
          problem.dropout.seed = 0x123456789abcdef0, problem.dropout.offset = 0xfedcba9876543210;
          if (is_marked) problem.marked = problem.dropout.threshold;
          problem.c1 = kC1;
          const Expected<E> expected(act, problem, kLongest, 0);
          for (int64_t n = 0; n <= 70; ++n) {
            equal &= bits_agree(kernels, act, problem, expected, 0, n);
          }
          equal &= bits_agree(kernels, act, problem, expected, cpu::kBlock, kLongest);
        }
      }
      check(equal, std::string(kernels.name) + " " + element + " " + act.name +
                       ": bits, and the gradient from them");
    }
  });
}

template <class E>
void test_conversions(const cpu::Kernels& kernels, const char* element) {
  std::vector<E> x, y(65536);
  for (int bits = 0; bits < 65536; ++bits) x.push_back({static_cast<uint16_t>(bits)});
  bool equal = true;
  for (float slope : {1.0f, 0.5f, 1.5f, 0.7123f, 1.9999f}) {  // 1.5 makes many ties
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

// Positions where the second word of the counter changes. Such a tensor would not fit in memory, so
// the kernel gets a pointer as if the small buffer were this part of the tensor.
void test_far_positions(const cpu::Kernels& kernels) {
  constexpr int64_t kEnd = int64_t{kElementsPerDraw} << 32, kLength = cpu::kBlock + 77;
  bool equal = true;
  for (int64_t begin : {kEnd - cpu::kBlock, kEnd, 2 * kEnd}) {
    std::vector<float> x(kLength, 1), y(kLength);
    const auto part = [begin](float* data) {
      return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(data) - begin * sizeof(float));
    };
    Problem problem;
    problem.activation = Identity{}, problem.element = ElementType<float>{};
    problem.dropout = Dropout(0.5);
    problem.dropout.seed = 7, problem.dropout.offset = 1;
    problem.x = part(x.data()), problem.out = part(y.data());
    kernels.forward(problem, begin, begin + kLength);
    for (int64_t i = 0; i < kLength; ++i) {
      const bool keep = random_bits(problem.dropout, begin + i) < problem.dropout.threshold;
      equal &= (y[i] != 0) == keep;
    }
  }
  check(equal, std::string(kernels.name) + ": the mask at positions beyond 2^35");
}

}  // namespace

void test_kernels() {
  for (const cpu::Kernels* kernels : cpu::kAllKernels) {
    if (!kernels->is_supported()) {
      std::printf("skipped  %s: not supported by this CPU\n", kernels->name);
      continue;
    }
    test_far_positions(*kernels);
    test_output<float>(*kernels, "float32");
    test_output<double>(*kernels, "float64");
    test_bits<float>(*kernels, "float32");
    test_bits<double>(*kernels, "float64");
    test_bits<Half>(*kernels, "float16");
    test_bits<BFloat16>(*kernels, "bfloat16");
    test_kernels<float>(*kernels, "float32");
    test_kernels<double>(*kernels, "float64");
    test_kernels<Half>(*kernels, "float16");
    test_kernels<BFloat16>(*kernels, "bfloat16");
    test_conversions<Half>(*kernels, "float16");
    test_conversions<BFloat16>(*kernels, "bfloat16");
  }
}

}  // namespace actreg
