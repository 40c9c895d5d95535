// The coefficients of the polynomials in exponential.h and math.h, for each precision. Layer: core.
// The highest power comes first. tools/fit_polynomials.py prints this file and explains the fit.
// The error beside a table is the largest relative error of the polynomial with these rounded
// coefficients, in exact arithmetic.
#pragma once

namespace actreg {

template <class Scalar>
struct Short;

namespace math {

template <class Scalar>
struct Coefficients;

template <>
struct Coefficients<float> {
  static constexpr float kLn2High = 0x1.62e4p-1f;
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kExpm1[] = {
      // degree 5, error 0.008 ulp
      0x1.9dfef4p-13f, 0x1.6d413ap-10f, 0x1.11130cp-7f, 0x1.5554f2p-5f, 0x1.555554p-3f, 0x1p-1f,
  };
  static constexpr float kLog1p[] = {
      // degree 4, error 0.002 ulp
      0x1.f06942p-3f, 0x1.b733f4p-3f, 0x1.2504bep-2f, 0x1.9996dap-2f, 0x1.555558p-1f,
  };
  static constexpr float kTailTop[] = {
      // degree 4, error 0.264 ulp
      0x1.0bc214p-8f, 0x1.4b4d86p-5f, 0x1.7626fp-3f, 0x1.c0195ep-2f, 0x1p-1f,
  };
  static constexpr float kTailBottom[] = {
      // degree 5
      0x1.4f94bcp-7f, 0x1.9f40e6p-4f, 0x1.df42d6p-2f, 0x1.334704p+0f, 0x1.ac4edep+0f, 0x1p+0f,
  };
};
template <>
struct Coefficients<double> {
  static constexpr double kLn2High = 0x1.62e42fefa38p-1;
  static constexpr double kLn2Low = 0x1.ef35793c7673p-45;
  static constexpr double kExpm1[] = {
      // degree 10, error 0.003 ulp
      0x1.1f21e07d40207p-29,
      0x1.af5f5f7087513p-26,
      0x1.27e50e3e50258p-22,
      0x1.71ddf7f7a2413p-19,
      0x1.a01a019062911p-16,
      0x1.a01a01b00a696p-13,
      0x1.6c16c16c1a3afp-10,
      0x1.111111110f64bp-7,
      0x1.555555555554ep-5,
      0x1.5555555555559p-3,
      0x1p-1,
  };
  static constexpr double kLog1p[] = {
      // degree 9, error 0.012 ulp
      0x1.5c62d9ba72dd4p-3, 0x1.55c7b348dfee3p-4, 0x1.efd36920a0eb1p-4, 0x1.10680e9f79791p-3,
      0x1.3b1dd654ef8fcp-3, 0x1.745cb436a9333p-3, 0x1.c71c741b230d5p-3, 0x1.249249208e71ep-2,
      0x1.99999999a0727p-2, 0x1.5555555555535p-1,
  };
  static constexpr double kTailTop[] = {
      // degree 9, error 0.821 ulp
      0x1.728a4b1aaea17p-20, 0x1.378ad382577c3p-15,
      0x1.0078caab34956p-11, 0x1.0b7325ea9d636p-8,
      0x1.8265eebfc2c5ap-6,  0x1.8fab398db4af4p-4,
      0x1.27ff9e687ee4ap-2,  0x1.2ff5cd465a4c1p-1,
      0x1.8c9b09f3b8666p-1,  0x1p-1,
  };
  static constexpr double kTailBottom[] = {
      // degree 10
      0x1.d0673d7928899p-19,
      0x1.8675d9e86d799p-14,
      0x1.4258c97066253p-10,
      0x1.523fc3e9dafc7p-7,
      0x1.ee443ffdb7cb2p-5,
      0x1.04bd564d36805p-2,
      0x1.90023c1214068p-1,
      0x1.b6923b1edb5c6p+0,
      0x1.47b0ae8b03b46p+1,
      0x1.2c6e99c92d0b8p+1,
      0x1p+0,
  };
};
template <>
struct Coefficients<Short<float>> {
  static constexpr float kExp2[] = {
      // degree 5, error 1.579 ulp
      0x1.5bf8d6p-10f, 0x1.3cea6ap-7f, 0x1.c6b6a2p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 0x1p+0f,
  };
  static constexpr float kExpm1[] = {
      // degree 2, error 160.477 ulp
      0x1.24b594p-5f,
      0x1.5320f6p-3f,
      0x1p-1f,
  };
  static constexpr float kLog1p[] = {
      // degree 4, error 1120.611 ulp
      0x1.611958p-5f, -0x1.4a7588p-3f, 0x1.3ca48cp-2f, -0x1.fdb876p-2f, 0x1p+0f,
  };
  static constexpr float kTailScale = 0x1.2b020cp-2f;
  static constexpr float kTail[] = {
      // degree 3, error 1771.896 ulp
      0x1.f86892p-3f,
      -0x1.58b958p-7f,
      0x1.35e38ep-3f,
      0x1.ceb41cp-4f,
  };
};

}  // namespace math
}  // namespace actreg
