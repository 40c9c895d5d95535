// Tests of csrc/core and csrc/cpu without torch, for `make sanitize`. This file tests the random
// bits, the registry and the derivatives.
#include <cstdio>
#include <string>
#include <vector>

#include "check.h"
#include "core/dual.h"
#include "core/of_output.h"
#include "core/operator.h"
#include "cpu/kernels.h"

namespace actreg {
namespace {

int passed = 0, failed = 0;

void test_philox() {  // compares with the known answers of Random123
  const struct {
    uint64_t counter[4], key;
    uint32_t expected[4];
  } cases[] = {
      {{0, 0, 0, 0}, 0, {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}},
      {{~0ull, ~0ull, ~0ull, ~0ull}, ~0ull, {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       0x299f31d0a4093822,
       {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}}};
  for (const auto& c : cases) {
    uint64_t word[4] = {c.counter[0], c.counter[1], c.counter[2], c.counter[3]};
    philox4x32(word, c.key);
    bool equal = true;
    for (int i = 0; i < 4; ++i) equal = equal && static_cast<uint32_t>(word[i]) == c.expected[i];
    check(equal, "philox4x32-7, a known answer");
  }
  Dropout dropout(0.5);  // element 8 * group + 5 uses half 1 of word 2, because 5 = 2 * 2 + 1
  dropout.seed = 0x299f31d0a4093822, dropout.offset = 0x0370734413198a2e;
  const uint64_t group = 0x05a308d3243f6a88;  // 8 * group must fit into 64 bits
  uint64_t word[4] = {group & 0xFFFFFFFF, group >> 32 | 0x80000000, 0x13198a2e, 0x03707344};
  philox4x32(word, dropout.seed);
  check(random_bits(dropout, 8 * group + 5) == (word[2] >> 16 & 0xFFFF), "position of the bits");
}

void test_registry() {
  int found = 0;
  const double none[2] = {};
  for_each_activation([&](auto act) {
    const auto made = make_activation(act.name, none, act.parameters().size());
    found += made && std::holds_alternative<decltype(act)>(*made);
  });
  check(found == kActivations, "every activation is found by its name");
  check(!make_activation("relu", none, 1) && !make_activation("none", none, 0),
        "an unknown name or number of parameters finds none");
}

// Points away from kinks, for central differences, whose own error is about 1e-10.
constexpr double kStep = 1e-5, kDifferenceError = 1e-8;
std::vector<double> smooth_points() {
  std::vector<double> points;
  for (int i = -57; i <= 57; ++i) points.push_back(0.1403 * i + 0.0171);
  for (double x : {-37.0, 25.5, 31.0}) points.push_back(x);
  return points;
}
void test_derivatives() {
  for_each_usable_activation([](auto act) {
    bool slope = true, dual = true, curvature = true;
    for (double x : smooth_points()) {
      const Jet<double> a = act(x), after = act(x + kStep), before = act(x - kStep);
      const Jet<Dual<double>> d = act(Dual<double>(x, 1));
      slope &= is_near((after.value - before.value) / (2 * kStep), a.slope, kDifferenceError);
      curvature &=
          is_near((after.slope - before.slope) / (2 * kStep), d.slope.derivative, kDifferenceError);
      dual &= is_near(d.value.value, a.value, 1e-14) && is_near(d.slope.value, a.slope, 1e-14) &&
              is_near(d.value.derivative, a.slope, 1e-13);
    }
    check(slope, act.name + std::string(": slope against differences of the value"));
    check(dual, act.name + std::string(": value and slope against dual numbers"));
    check(curvature, act.name + std::string(": dual slope against differences of the slope"));
  });
}

void test_slopes_of_output() {
  for_each_usable_activation([](auto act) {
    using Act = decltype(act);
    if constexpr (kHasSlopeOfOutput<Act>) {
      const OfOutput<Act> of_output{act};
      bool slope = true, curvature = true;
      for (double x : smooth_points()) {
        const Jet<double> a = act(x);
        const Jet<Dual<double>> d = of_output(Dual<double>(a.value, 1));
        slope &= is_near(d.slope.value, a.slope, 1e-14) && d.value.value == a.value;
        // By the chain rule: d slope/dx = d slope/dy * dy/dx.
        const double change = act(Dual<double>(x, 1)).slope.derivative;
        curvature &= is_near(d.slope.derivative * a.slope, change, 1e-12);
      }
      check(slope, act.name + std::string(": slope from the output against that from x"));
      check(curvature, act.name + std::string(": dual slope from the output"));
    }
  });
}

void test_curvature() {
  for_each_usable_activation([](auto act) {
    bool equal = true;
    for (bool on_output : {false, true}) {
      const std::vector<double> x = smooth_points(), dy(x.size(), 0.83);
      std::vector<double> out(x.size());
      Problem problem;
      problem.activation = act, problem.element = ElementType<double>{};
      problem.dropout = Dropout(0.4), problem.dropout.seed = 5;
      if (on_output) problem.counted = problem.dropout.threshold;
      problem.c1 = kC1, problem.c2_twice = kC2;
      problem.x = x.data(), problem.dy = dy.data(), problem.out = out.data();
      cpu::curvature(problem, 0, x.size());
      const Slopes<double, bool> c{kC1, kC2, true};
      for (size_t i = 0; i < x.size(); ++i) {
        const uint32_t r = random_bits(problem.dropout, i);
        const auto dx = [&](double at) {
          return backward(act, at, dy[i], r < problem.dropout.threshold, r < problem.counted,
                          problem.dropout.scale, c);
        };
        equal &=
            is_near((dx(x[i] + kStep) - dx(x[i] - kStep)) / (2 * kStep), out[i], kDifferenceError);
      }
    }
    check(equal, act.name + std::string(": curvature against differences of backward"));
  });
}

}  // namespace

void check(bool ok, const std::string& what) {
  std::printf("%s  %s\n", ok ? "ok    " : "FAILED", what.c_str());
  ++(ok ? passed : failed);
}

}  // namespace actreg

int main() {
  using namespace actreg;
  test_philox();
  test_registry();
  test_derivatives();
  test_slopes_of_output();
  test_curvature();
  test_math();
  test_kernels();
  test_cuda();
  test_temporal();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
