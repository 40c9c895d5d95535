// The vocabulary that a formula may use, for the built-in number types. Layer: core.
// A SIMD vector or a dual number offers the same functions, found by argument-dependent lookup.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define ACTREG_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define ACTREG_HD inline __attribute__((always_inline))
#else
#define ACTREG_HD inline
#endif

namespace actreg {

// The built-in type whose precision T has: Scalar<vector of float> is float.
template <class T>
struct ScalarOf {
  using type = typename T::Scalar;
};
template <>
struct ScalarOf<float> {
  using type = float;
};
template <>
struct ScalarOf<double> {
  using type = double;
};
template <class T>
using Scalar = typename ScalarOf<T>::type;

ACTREG_HD float select(bool c, float a, float b) { return c ? a : b; }
ACTREG_HD double select(bool c, double a, double b) { return c ? a : b; }

ACTREG_HD float abs(float x) { return std::fabs(x); }
ACTREG_HD double abs(double x) { return std::fabs(x); }

ACTREG_HD float copysign(float magnitude, float sign) { return std::copysign(magnitude, sign); }
ACTREG_HD double copysign(double magnitude, double sign) { return std::copysign(magnitude, sign); }

template <class T>
ACTREG_HD T minus_abs(T x) {
  return -abs(x);
}
// a with its sign turned where b's is negative
template <class T>
ACTREG_HD T times_sign(T a, T b) {
  return copysign(T(1), b) * a;
}

// The bound for what is beyond it; NaN stays.
template <class T>
ACTREG_HD T at_least(T x, T low) {
  return select(x < low, low, x);
}
template <class T>
ACTREG_HD T at_most(T x, T high) {
  return select(x > high, high, x);
}

// 2^k, where `shifted` is k + 1.5 * 2^(mantissa bits): the sum has k in its low bits, so that
// a shift into the exponent field leaves nothing else. k must give a normal number.
ACTREG_HD float power_of_two(float shifted) {
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int32_t>((static_cast<uint32_t>(bits) + 127u) << 23);
  std::memcpy(&shifted, &bits, sizeof bits);
  return shifted;
}
ACTREG_HD double power_of_two(double shifted) {
  int64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int64_t>((static_cast<uint64_t>(bits) + 1023u) << 52);
  std::memcpy(&shifted, &bits, sizeof bits);
  return shifted;
}

// The condition that always holds: lets one text serve the kernels with and without a mask.
struct Always {};
template <class T>
ACTREG_HD T select(Always, T a, T) {
  return a;
}

}  // namespace actreg
