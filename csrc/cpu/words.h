// The random bits of many elements at once, equal to random_bits() in core/philox.h, and the masks
// that they give. Layer: cpu. loops.h includes this file like simd.h.

#if defined(__BYTE_ORDER__)
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "draw_registers and store_lane_bits need little-endian words");
#endif

// A register of Philox words: one in the low half of each 64-bit lane.
struct Words {
  static constexpr int kLanes = ACTREG_VECTOR_BYTES / 8;
  Register<uint64_t> r;

  Words() = default;
  explicit ACTREG_HD Words(uint64_t constant) : r(constant - Register<uint64_t>{}) {}
  explicit ACTREG_HD Words(Register<uint64_t> value) : r(value) {}

  friend ACTREG_HD Words operator^(Words a, Words b) { return Words(a.r ^ b.r); }
  friend ACTREG_HD Words operator>>(Words a, int bits) { return Words(a.r >> bits); }
  // Intrinsics, because for plain C++ compilers multiply all 64 bits of both lanes.
  friend ACTREG_HD Words multiply_low_words(Words a, uint32_t b) {
#if defined(__x86_64__) && ACTREG_VECTOR_BYTES == 64
    return Words((Register<uint64_t>)_mm512_mul_epu32((__m512i)a.r, _mm512_set1_epi64(b)));
#elif defined(__x86_64__) && ACTREG_VECTOR_BYTES == 32
    return Words((Register<uint64_t>)_mm256_mul_epu32((__m256i)a.r, _mm256_set1_epi64x(b)));
#elif defined(__x86_64__)
    return Words((Register<uint64_t>)_mm_mul_epu32((__m128i)a.r, _mm_set1_epi64x(b)));
#elif defined(__aarch64__)
    return Words((Register<uint64_t>)vmull_u32(vmovn_u64((uint64x2_t)a.r), vdup_n_u32(b)));
#else
    return Words((a.r & 0xFFFFFFFFu) * uint64_t{b});
#endif
  }
};

// In each lane: the low half of `low` becomes the low half, the low half of `high` the high half.
ACTREG_HD Register<uint64_t> join_low_halves(Words low, Words high) {
#if defined(__x86_64__) && ACTREG_VECTOR_BYTES == 64
  return (Register<uint64_t>)_mm512_mask_shuffle_epi32((__m512i)low.r, 0xAAAA, (__m512i)high.r,
                                                       _MM_PERM_CDAB);
#else
  return (low.r & 0xFFFFFFFFu) | (high.r << 32);
#endif
}

// out[0] = a0 b0 a2 b2 ... and out[1] = a1 b1 a3 b3 ..., where a0 is lane 0 of a.
ACTREG_HD void interleave(Register<uint64_t> a, Register<uint64_t> b,
                          Register<uint64_t> (&out)[2]) {
#if defined(__clang__)
  for (int lane = 0; lane < Words::kLanes; lane += 2) {
    out[0][lane] = a[lane], out[0][lane + 1] = b[lane];
    out[1][lane] = a[lane + 1], out[1][lane + 1] = b[lane + 1];
  }
#else
  Register<uint64_t> even;
  for (int lane = 0; lane < Words::kLanes; lane += 2) {
    even[lane] = lane, even[lane + 1] = Words::kLanes + lane;
  }
  out[0] = __builtin_shuffle(a, b, even);
  out[1] = __builtin_shuffle(a, b, even + 1);
#endif
}

// The keys of all rounds, in memory: a vector with the same key in each lane then costs one load.
struct KeyTable {
  uint64_t low[kRounds], high[kRounds];

  explicit ACTREG_HD KeyTable(uint64_t seed) {
    RoundKey key(seed);
    for (int round = 0; round < kRounds; ++round, key.advance()) {
      low[round] = key.low, high[round] = key.high;
    }
#if defined(__GNUC__)  // hides the values: the compiler would recompute the keys for each vector
    asm("" : "+m"(low), "+m"(high));
#endif
  }
};

// The number of elements for which one register of words draws.
constexpr int kDrawn = Words::kLanes * kElementsPerDraw;

// Writes the random bits of kRegisters * kDrawn elements, in memory order. `group` is the first
// group; a group is the kElementsPerDraw elements of one draw. Several registers are drawn at once,
// because each round waits for the round before: meanwhile the CPU works on another register.
template <int kRegisters>
ACTREG_HD void draw_registers(const KeyTable& keys, uint64_t offset, uint64_t group,
                              uint16_t* bits) {
  // Even lanes draw the first half of a register's groups, odd lanes the second half. Example: with
  // eight lanes the groups are 0 4 1 5 2 6 3 7. interleave() then puts the groups in order.
  constexpr int kHalf = Words::kLanes / 2;
  Register<uint64_t> lane;
  for (int j = 0; j < kHalf; ++j) lane[2 * j] = j, lane[2 * j + 1] = kHalf + j;
  Words words[kRegisters][4];
#pragma GCC unroll 4
  for (int k = 0; k < kRegisters; ++k) {
    words[k][0] = Words(lane + (group + k * Words::kLanes)), words[k][1] = second_word(words[k][0]);
    words[k][2] = Words(offset), words[k][3] = Words(offset >> 32);
  }
#pragma GCC unroll 7
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 4
    for (auto& word : words) {
      philox4x32_round(word, Words(keys.low[round]), Words(keys.high[round]));
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kRegisters; ++k) {
    const Words(&word)[4] = words[k];
    Register<uint64_t> ordered[2];
    interleave(join_low_halves(word[0], word[1]), join_low_halves(word[2], word[3]), ordered);
    __builtin_memcpy(bits + k * kDrawn, ordered, sizeof ordered);
  }
}

// Writes the random bits of positions [first, first + count), and of a few more to fill the last
// register. `first` is a multiple of kElementsPerDraw.
// With 1, 2, 4 and 8 registers at once, relu's forward with dropout takes 0.335, 0.316, 0.294 and
// 0.299 ns per element with AVX-512, and 0.447, 0.398, 0.366 and 0.362 ns with AVX2 (float32, in
// cache, one core, 10 rounds).
ACTREG_OUT_OF_LINE void draw(const Dropout dropout, int64_t first, int64_t count, uint16_t* bits) {
  constexpr int kRegisters = 4;
  const KeyTable keys(dropout.seed);
  const uint64_t group = first / kElementsPerDraw;
  int64_t j = 0;
  for (; j + kRegisters * kDrawn <= count; j += kRegisters * kDrawn) {
    draw_registers<kRegisters>(keys, dropout.offset, group + j / kElementsPerDraw, bits + j);
  }
  for (; j < count; j += kDrawn) {
    draw_registers<1>(keys, dropout.offset, group + j / kElementsPerDraw, bits + j);
  }
}
