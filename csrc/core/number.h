// The functions that a formula may use, here for float and double. Layer: core.
// SIMD vectors (cpu/simd.h), Coarse numbers (coarse.h) and dual numbers (dual.h) define the same
// functions; argument-dependent lookup finds them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__GNUC__)
#define ACTREG_INLINE inline __attribute__((always_inline))
#else
#define ACTREG_INLINE inline
#endif
#if defined(__CUDACC__)
#define ACTREG_HD __host__ __device__ __forceinline__
#else
#define ACTREG_HD ACTREG_INLINE
#endif

namespace actreg {

// The built-in type with the precision of T: Scalar<vector of float> is float.
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
// -a if the sign bit of b is set, else a
template <class T>
ACTREG_HD T times_sign(T a, T b) {
  return copysign(T(1), b) * a;
}

// max(x, low) and min(x, high), but NaN stays NaN
template <class T>
ACTREG_HD T at_least(T x, T low) {
  return select(x < low, low, x);
}
template <class T>
ACTREG_HD T at_most(T x, T high) {
  return select(x > high, high, x);
}

// 2^k, from shifted = k + 1.5 * 2^23 (double: 2^52). The low bits of `shifted` are the integer k.
// Adding the exponent's bias and shifting the sum into the exponent field gives 2^k; the shift
// removes the other bits. 2^k must be a normal number.
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

// 2^x and 1 / x for coarse.h, in one instruction if the processor has one. The relative error is
// below 2^-21. A result that is not a normal number may become 0.
ACTREG_HD float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return std::exp2(x);
#endif
}
ACTREG_HD float fast_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return 1 / x;
#endif
}

ACTREG_HD double fast_reciprocal(double x) {  // precise to 20 bits, like the GPU's instruction
#if defined(__CUDA_ARCH__)
  asm("rcp.approx.ftz.f64 %0, %0;" : "+d"(x));
  return x;
#else
  uint64_t bits;
  x = 1 / x;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= ~uint64_t{0xFFFFFFFF};
  std::memcpy(&x, &bits, sizeof bits);
  return x;
#endif
}

// a / b and 1 / b, for b in [1, 2^126].
template <class T>
ACTREG_HD T ratio(T a, T b) {
  return a / b;
}
// 1 / b with at least half of its digits correct: the caller calls refined() on it.
template <class T>
ACTREG_HD T rough_reciprocal(T b) {
  return ratio(T(1), b);
}
// On a GPU the division of any two numbers is a subroutine. For b in [1, 2^126], Newton's steps
// replace it. The emulation defines ACTREG_DEVICE_MATH to test these steps on the CPU.
#if defined(__CUDA_ARCH__) || defined(ACTREG_DEVICE_MATH)
ACTREG_HD float rough_reciprocal(float b) { return fast_reciprocal(b); }
ACTREG_HD double rough_reciprocal(double b) {
  const double r = fast_reciprocal(b);
  return std::fma(r, std::fma(-b, r, 1.0), r);
}
ACTREG_HD float ratio(float a, float b) {
  const float r = rough_reciprocal(b), q = a * r;
  return std::fma(r, std::fma(-b, q, a), q);
}
ACTREG_HD double ratio(double a, double b) {
  const double r = rough_reciprocal(b), q = a * r;
  return std::fma(r, std::fma(-b, q, a), q);
}
#endif
template <class T>
ACTREG_HD T reciprocal(T b) {
  return ratio(T(1), b);
}
// a / b for any b >= 1, also infinity
template <class T>
ACTREG_HD T quotient(T a, T b) {
#if defined(__CUDA_ARCH__) || defined(ACTREG_DEVICE_MATH)
  const T scale = select(b > T(0x1p100), T(0x1p-64), T(1));
  return copysign(ratio(a * scale, b * scale), a);  // Newton's last step turns -0 into 0
#else
  return a / b;
#endif
}
// One step of Newton's method for 1 / b: r is an approximation, residual = 1 - b * r.
template <class T>
ACTREG_HD T refined(T r, T residual) {
  return r + r * residual;
}

// A condition that is true at compile time: kernels with and without dropout share their code.
struct Always {};
template <class T>
ACTREG_HD T select(Always, T a, T) {
  return a;
}

}  // namespace actreg
