// Random bits as a pure function of (seed, offset, position). Layer: core.
//
// Note [One mask everywhere]
// The mask is a function of three integers and nothing else: no generator state, no thread, no
// vector width, no grid. So it is never stored (backward draws it again) and is bit for bit the
// same on every device. Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011) gives 128 bits a call; an element takes 16 of them, because 32 bits for each
// would cost more than the memory traffic of a bfloat16 tensor.
#pragma once

#include <cstdint>

#include "core/number.h"

namespace actreg {

constexpr int kElementsPerDraw = 8;

// A word is any unsigned type of 64 bits a lane, of which the low 32 are the Philox word and the
// others are rubbish: the 32 x 32 -> 64 bit product then needs no unpacking, only a shift.
ACTREG_HD uint64_t multiply_low_words(uint64_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)  // where the product of two 64-bit numbers costs an addition more
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

constexpr int kRounds = 10;

// The key of a round, in two halves.
struct RoundKey {
  uint32_t low, high;

  explicit ACTREG_HD RoundKey(uint64_t key)
      : low(static_cast<uint32_t>(key)), high(static_cast<uint32_t>(key >> 32)) {}
  ACTREG_HD void advance() { low += 0x9E3779B9u, high += 0xBB67AE85u; }
};

ACTREG_HD void philox4x32_10(uint64_t (&counter)[4], uint64_t key) {
  RoundKey round_key(key);
#if defined(__CUDACC__)
#pragma unroll
#elif defined(__GNUC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < kRounds; ++round, round_key.advance()) {
    philox4x32_round<uint64_t>(counter, round_key.low, round_key.high);
  }
}

constexpr uint32_t kKeepAll = 65536;  // above every r

// What draws a mask: keep(i) = r(i) < threshold, and kept elements are multiplied by `scale`,
// which matches the threshold (not p), so that the expectation is exact.
struct Dropout {
  uint64_t seed = 0, offset = 0;
  uint32_t threshold = kKeepAll;
  double scale = 1;

  Dropout() = default;
  explicit Dropout(double p) {
    threshold = static_cast<uint32_t>(std::nearbyint((1 - p) * kKeepAll));
    scale = threshold == 0 ? 0 : double{kKeepAll} / threshold;
  }
};

// Where element i of this tensor stands in the whole that the mask covers: the one place to
// change for a tensor that is a shard of a larger one. Shards begin at multiples of 1024: what
// draws in bulk takes the second word of the counter for the same in all groups that it draws at a
// time.
ACTREG_HD uint64_t position(uint64_t i) { return i; }

// r of one element: the scalar twin of what the vector and CUDA code draw in bulk.
ACTREG_HD uint32_t random_bits(const Dropout& dropout, uint64_t i) {
  const uint64_t at = position(i), group = at / kElementsPerDraw, half = at % kElementsPerDraw;
  uint64_t word[4] = {group, group >> 32, dropout.offset, dropout.offset >> 32};
  philox4x32_10(word, dropout.seed);
  return static_cast<uint32_t>(word[half / 2] >> (16 * (half % 2))) & 0xFFFFu;
}

}  // namespace actreg
