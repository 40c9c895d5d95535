// The conversions of the 16-bit types.
#include "cuda_runtime.h"

float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float sign = x.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? std::nanf("") : sign * INFINITY;
  return sign * std::ldexp(static_cast<float>(exponent ? fraction + 1024 : fraction),
                           (exponent ? exponent : 1) - 25);
}

// Rounds to nearest, ties to even.
__half __float2half_rn(float x) {
  const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7FFF};
  const float size = std::fabs(x);
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  if (exponent > 15) return {static_cast<unsigned short>(sign | 0x7C00)};
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  // If rounding gives 2048 units, the sum carries into the next exponent, or into infinity.
  return {static_cast<unsigned short>(sign | ((exponent + 14) * 1024 + units))};
}

__nv_bfloat16 __float2bfloat16_rn(float x) {
  if (std::isnan(x)) return {0x7FFF};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
