// Random bits as a pure function of (seed, offset, position). Layer: core.
//
// Note [One mask everywhere]
// The mask is a function of three integers: seed, offset and position. It does not depend on a
// generator's state, on the thread, on the vector width or on the grid. So the mask has the same
// bits on every device, and it is never stored: backward redraws it. Philox4x32 (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives 128 bits per call. Each element
// uses 16 of these bits, so one call serves 8 elements. With 32 bits per element, drawing would
// take longer than the memory traffic of a bfloat16 tensor.
//
// Note [Mask version 2]
// Version 2 of the mask has 7 rounds, the least number that passes BigCrush according to the
// authors of Philox (version 1 had 10); docs/mask.md has our own tests. PyTorch draws from Philox
// too, under the same key, with the counter {offset / 4, thread}. Its second word is below 2^30.
// Here the top bit of the second word is set, so no counter of ours is one of PyTorch's.
#pragma once

#include <cstdint>

#include "core/number.h"

namespace actreg {

constexpr int kElementsPerDraw = 8;

// A Word is a 64-bit integer, or a SIMD vector of them. The low 32 bits hold the Philox word; the
// high bits are unspecified. So the high half of a 32 x 32 -> 64 bit product is one shift away, and
// nothing has to be unpacked.
ACTREG_HD uint64_t multiply_low_words(uint64_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)  // the product of two 64-bit numbers would take one addition more
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(static_cast<uint32_t>(a)), "r"(b));
  return product;
#else
  return static_cast<uint64_t>(static_cast<uint32_t>(a)) * b;
#endif
}

template <class Word>
ACTREG_HD void philox4x32_round(Word (&counter)[4], Word k0, Word k1) {
  const Word p0 = multiply_low_words(counter[0], 0xD2511F53u);
  const Word p1 = multiply_low_words(counter[2], 0xCD9E8D57u);
  counter[0] = (p1 >> 32) ^ counter[1] ^ k0;
  counter[1] = p1;
  counter[2] = (p0 >> 32) ^ counter[3] ^ k1;
  counter[3] = p0;
}

constexpr int kRounds = 7;

// The key of one round, in two halves.
struct RoundKey {
  uint32_t low, high;

  explicit ACTREG_HD RoundKey(uint64_t key)
      : low(static_cast<uint32_t>(key)), high(static_cast<uint32_t>(key >> 32)) {}
  ACTREG_HD void advance() { low += 0x9E3779B9u, high += 0xBB67AE85u; }
};

ACTREG_HD void philox4x32(uint64_t (&counter)[4], uint64_t key) {
  RoundKey round_key(key);
#if defined(__CUDACC__)
#pragma unroll
#elif defined(__GNUC__)
#pragma GCC unroll 7
#endif
  for (int round = 0; round < kRounds; ++round, round_key.advance()) {
    philox4x32_round<uint64_t>(counter, round_key.low, round_key.high);
  }
}

constexpr uint32_t kKeepAll = 65536;  // a threshold above every r: p = 0

// The mask is keep(i) = r(i) < threshold, with 0 <= r(i) < 65536. Kept elements are multiplied with
// scale = 65536 / threshold and not with 1 / (1 - p): the threshold is rounded, and with this scale
// the expectation of y is exactly a.
struct Dropout {
  uint64_t seed = 0, offset = 0;
  uint32_t threshold = kKeepAll;
  double scale = 1;

  Dropout() = default;
  explicit Dropout(double p)
      : Dropout(static_cast<uint32_t>(std::nearbyint((1 - p) * kKeepAll)), false) {}
  ACTREG_HD Dropout(uint32_t threshold, bool is_alpha) : threshold(threshold) {
    const double q = static_cast<double>(threshold) / kKeepAll;
    scale = threshold == 0 ? 0 : is_alpha ? 1 / std::sqrt(q * alpha_variance(q)) : 1 / q;
  }
  // Alpha dropout: y = scale * (keep ? a : kSeluLimit) + shift. If the mean and the variance of a
  // are 0 and 1, those of y are 0 and 1 too (arXiv:1706.02515).
  static constexpr double kSeluLimit = -1.7580993408473766;  // selu(-inf)
  static ACTREG_HD double alpha_variance(double q) { return 1 + kSeluLimit * kSeluLimit * (1 - q); }
  ACTREG_HD double shift() const {
    return -scale * kSeluLimit * (1 - static_cast<double>(threshold) / kKeepAll);
  }
};

// The second word of the counter of a group of kElementsPerDraw positions. The first is `group`.
template <class Word>
ACTREG_HD Word second_word(Word group) {
  return (group >> 32) ^ Word(uint64_t{0x80000000});  // see Note [Mask version 2]
}

// r(position) of one element. cpu/words.h and cuda/tile.cuh draw the same bits for many elements at
// once.
ACTREG_HD uint32_t random_bits(const Dropout& dropout, uint64_t position) {
  const uint64_t group = position / kElementsPerDraw, half = position % kElementsPerDraw;
  uint64_t word[4] = {group, second_word(group), dropout.offset, dropout.offset >> 32};
  philox4x32(word, dropout.seed);
  return static_cast<uint32_t>(word[half / 2] >> (16 * (half % 2))) & 0xFFFFu;
}

}  // namespace actreg
