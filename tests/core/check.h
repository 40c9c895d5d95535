// What the tests of this directory share: check(), the activations to test, ulps.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>

#include "core/registry.h"

namespace actreg {

// Counts a check, and prints one line with its result.
void check(bool ok, const std::string& what);

void test_cuda();
void test_kernels();
void test_math();
void test_temporal();

// Calls f(activation) for each activation. A parameter without a default gets an ordinary value.
template <class F>
void for_each_usable_activation(F f) {
  for_each_activation([&](auto act) {
    double values[] = {0.3, -0.7};
    int i = 0;
    for (const auto& parameter : act.parameters()) {
      if constexpr (!std::is_base_of_v<NoParameters, decltype(act)>) {
        if (std::isnan(act.*parameter.member)) act.*parameter.member = values[i++];
      }
    }
    f(act);
  });
}

// The coefficients of the penalty in the tests of gradients.
constexpr double kC1 = 0.37, kC2 = 0.21;

inline bool is_near(double got, double expected, double relative) {
  return std::fabs(got - expected) <= relative * (1 + std::fabs(expected));
}

// The distance between neighbouring numbers around x.
inline double spacing(double x, int digits, int lowest) {
  const int exponent = x == 0 || !std::isfinite(x) ? lowest : std::max(std::ilogb(x), lowest);
  return std::ldexp(1.0, exponent - digits + 1);
}

}  // namespace actreg
