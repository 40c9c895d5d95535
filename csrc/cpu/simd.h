// SIMD vectors, with the functions of core/number.h. Layer: cpu.
// loops.h includes this file inside its anonymous namespace, once for each instruction set. A
// register has ACTREG_VECTOR_BYTES bytes. See Note [One source for each instruction set].

template <class S>
struct Lane;
template <>
struct Lane<float> {
  using Int = int32_t;
  static constexpr int kExponentBias = 127, kMantissaBits = 23;
};
template <>
struct Lane<double> {
  using Int = int64_t;
  static constexpr int kExponentBias = 1023, kMantissaBits = 52;
};

template <class S, int kBytes = ACTREG_VECTOR_BYTES>
using Register __attribute__((vector_size(kBytes))) = S;

template <class S>
struct Mask {
  Register<typename Lane<S>::Int> r;  // per lane: all bits 1 (true) or all 0 (false)

  friend ACTREG_HD Mask operator&(Mask a, Mask b) { return {a.r & b.r}; }
};

template <class S>
struct Vec {
  using Scalar = S;
  using Int = typename Lane<S>::Int;
  static constexpr int kLanes = ACTREG_VECTOR_BYTES / sizeof(S);
  static constexpr Int kSign = std::numeric_limits<Int>::min();
  Register<S> r;

  Vec() = default;
  explicit ACTREG_HD Vec(double constant) : r(static_cast<S>(constant) - Register<S>{}) {}
  explicit ACTREG_HD Vec(Register<S> value) : r(value) {}

  friend ACTREG_HD Vec operator-(Vec a) { return Vec(-a.r); }
  friend ACTREG_HD Vec operator+(Vec a, Vec b) { return Vec(a.r + b.r); }
  friend ACTREG_HD Vec operator-(Vec a, Vec b) { return Vec(a.r - b.r); }
  friend ACTREG_HD Vec operator*(Vec a, Vec b) { return Vec(a.r * b.r); }
  friend ACTREG_HD Vec operator/(Vec a, Vec b) { return Vec(a.r / b.r); }
  ACTREG_HD Vec& operator+=(Vec other) { return *this = *this + other; }

  friend ACTREG_HD Mask<S> operator<(Vec a, Vec b) { return {a.r < b.r}; }
  friend ACTREG_HD Mask<S> operator>(Vec a, Vec b) { return {a.r > b.r}; }
  friend ACTREG_HD Mask<S> operator<=(Vec a, Vec b) { return {a.r <= b.r}; }
  friend ACTREG_HD Mask<S> operator>=(Vec a, Vec b) { return {a.r >= b.r}; }
  friend ACTREG_HD Mask<S> operator==(Vec a, Vec b) { return {a.r == b.r}; }
  friend ACTREG_HD Mask<S> operator!=(Vec a, Vec b) { return {a.r != b.r}; }

  friend ACTREG_HD Vec select(Mask<S> c, Vec a, Vec b) { return Vec(c.r ? a.r : b.r); }
  friend ACTREG_HD Vec abs(Vec x) { return Vec((Register<S>)((Register<Int>)x.r & ~kSign)); }
  friend ACTREG_HD Vec minus_abs(Vec x) { return Vec((Register<S>)((Register<Int>)x.r | kSign)); }
  friend ACTREG_HD Vec times_sign(Vec a, Vec b) {
    return Vec((Register<S>)((Register<Int>)a.r ^ ((Register<Int>)b.r & kSign)));
  }
  friend ACTREG_HD Vec copysign(Vec magnitude, Vec sign) {
    return times_sign(abs(magnitude), sign);
  }
  friend ACTREG_HD Vec power_of_two(Vec shifted) {
    return Vec((Register<S>)(((Register<Int>)shifted.r + Lane<S>::kExponentBias)
                             << Lane<S>::kMantissaBits));
  }
#if defined(__x86_64__) && ACTREG_VECTOR_BYTES == 64
  // These instructions return their second operand if an operand is NaN. That is x here, so NaN
  // stays NaN.
  friend ACTREG_HD Vec at_least(Vec x, Vec low) {
    if constexpr (sizeof(S) == 4) {
      return Vec((Register<S>)_mm512_max_ps((__m512)low.r, (__m512)x.r));
    } else {
      return Vec((Register<S>)_mm512_max_pd((__m512d)low.r, (__m512d)x.r));
    }
  }
  friend ACTREG_HD Vec at_most(Vec x, Vec high) {
    if constexpr (sizeof(S) == 4) {
      return Vec((Register<S>)_mm512_min_ps((__m512)high.r, (__m512)x.r));
    } else {
      return Vec((Register<S>)_mm512_min_pd((__m512d)high.r, (__m512d)x.r));
    }
  }
  // One instruction; the generic function in exponential.h takes seven.
  friend ACTREG_HD Vec times_power_of_two(Vec a, Vec shifted_k) {
    const Vec k = shifted_k - Vec(math::Range<S>::kRound);
    if constexpr (sizeof(S) == 4) {
      return Vec((Register<S>)_mm512_scalef_ps((__m512)a.r, (__m512)k.r));
    } else {
      return Vec((Register<S>)_mm512_scalef_pd((__m512d)a.r, (__m512d)k.r));
    }
  }
#endif
  // fast_exp2 and fast_reciprocal: see number.h. For fast_exp2, x <= 126.
  friend ACTREG_HD Vec fast_exp2(Vec x) {
    x = at_least(x, Vec(-160));
    const Vec round(math::Range<S>::kRound), shifted = x + round, k = shifted - round;
    const Vec p = math::polynomial<math::Coefficients<Short<S>>::kExp2>(x - k);
    using math::times_power_of_two;  // where no friend above replaces it
    return times_power_of_two(p, shifted);
  }
  friend ACTREG_HD Vec fast_reciprocal(Vec b) {
#if defined(__x86_64__) && ACTREG_VECTOR_BYTES == 64
    const Vec r((Register<S>)_mm512_rcp14_ps((__m512)b.r));
#elif defined(__x86_64__) && ACTREG_VECTOR_BYTES == 32
    const Vec r((Register<S>)_mm256_rcp_ps((__m256)b.r));
#else
    const Vec r = Vec(1) / b;
#endif
    return select(b > Vec(0x1p126), Vec(0), r + r * (Vec(1) - b * r));
  }
  // The sum of the lanes, in double. Each round adds the upper half of the lanes to the lower half,
  // so the order is fixed and each lane is rounded log2(kLanes) times.
  friend ACTREG_HD double sum(Vec x) {
    double lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = x.r[i];
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
  }
};

// True in the first `count` lanes.
template <class S>
ACTREG_HD Mask<S> first_lanes(int64_t count) {
  using Int = typename Lane<S>::Int;
  Register<Int> lane;
  for (int i = 0; i < Vec<S>::kLanes; ++i) lane[i] = i;
  return {lane < static_cast<Int>(count)};
}
template <class S>
ACTREG_HD Mask<S> every_lane(bool condition) {
  using Int = typename Lane<S>::Int;
  return {(condition ? Int(-1) : Int(0)) - Register<Int>{}};
}

// A number whose bit k is lane k of the mask.
template <class S>
ACTREG_HD unsigned lane_bits(Mask<S> mask) {
#if defined(__x86_64__) && ACTREG_VECTOR_BYTES == 64
  if constexpr (sizeof(S) == 4) return _mm512_movepi32_mask((__m512i)mask.r);
  if constexpr (sizeof(S) == 8) return _mm512_movepi64_mask((__m512i)mask.r);
#elif defined(__x86_64__) && ACTREG_VECTOR_BYTES == 32
  if constexpr (sizeof(S) == 4) return _mm256_movemask_ps((__m256)mask.r);
  if constexpr (sizeof(S) == 8) return _mm256_movemask_pd((__m256d)mask.r);
#elif defined(__x86_64__)
  if constexpr (sizeof(S) == 4) return _mm_movemask_ps((__m128)mask.r);
  if constexpr (sizeof(S) == 8) return _mm_movemask_pd((__m128d)mask.r);
#else
  unsigned bits = 0;
  for (int k = 0; k < Vec<S>::kLanes; ++k) bits |= (mask.r[k] & 1) << k;
  return bits;
#endif
}
// The inverse of lane_bits.
template <class S>
ACTREG_HD Mask<S> lanes_with_bits(unsigned bits) {
  using Int = typename Lane<S>::Int;
  Register<Int> own;
  for (int k = 0; k < Vec<S>::kLanes; ++k) own[k] = Int{1} << k;
  return {((static_cast<Int>(bits) - Register<Int>{}) & own) != 0};
}

ACTREG_HD Always operator&(Always, Always) { return {}; }
template <class S>
ACTREG_HD Mask<S> operator&(Mask<S> mask, Always) {
  return mask;
}
template <class S>
ACTREG_HD Mask<S> operator&(Always, Mask<S> mask) {
  return mask;
}
