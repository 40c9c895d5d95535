// Statistical tests of the dropout mask's random bits, in the order in which the operator uses the
// bits. docs/mask.md shows how to compile and run this program, and its results.
//
//     mask_battery                                                 checks Philox's known answers
//     mask_battery BATTERY STREAM VIEW ROUNDS SEED                 runs a battery of TestU01
//     mask_battery halves STREAM RUN ROUNDS SEED COUNT             writes r(i) to stdout as uint16
//
// The number of rounds is an argument, so that one program compares 5, 7 and 10 rounds.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/philox.h"

#if __has_include(<bbattery.h>)  // without TestU01 the program only writes r(i)
#define MASK_BATTERY_TESTU01
extern "C" {
#include <bbattery.h>
#include <swrite.h>
#include <unif01.h>
}
#endif

namespace {

using actreg::kElementsPerDraw;

struct Block {
  uint64_t word[4];
};

// The formula of a round is philox.h's own.
template <int rounds>
Block philox4x32(Block block, uint64_t key) {
  actreg::RoundKey round_key(key);
  for (int round = 0; round < rounds; ++round, round_key.advance()) {
    actreg::philox4x32_round<uint64_t>(block.word, round_key.low, round_key.high);
  }
  return block;
}

Block philox4x32(const Block& counter, uint64_t key, int rounds) {
  switch (rounds) {
    case 5:
      return philox4x32<5>(counter, key);
    case 6:
      return philox4x32<6>(counter, key);
    case 7:
      return philox4x32<7>(counter, key);
    case 8:
      return philox4x32<8>(counter, key);
    case 10:
      return philox4x32<10>(counter, key);
  }
  std::fprintf(stderr, "rounds: 5, 6, 7, 8 or 10, not %d\n", rounds);
  std::exit(2);
}

// A stream reads the masks m = 0, 1, 2, ... one after the other, and `run` positions of each. What
// differs from mask to mask: the steps below, or a seed drawn at random, or one bit, m <= 64.
enum class Masks { kSteps, kRandomSeeds, kSeedBits, kOffsetBits };

struct Stream {
  const char* name;
  uint64_t run;                     // positions of one mask, from its first position on
  uint64_t seed_step, offset_step;  // mask m has the seed `seed + m * seed_step`, offset alike
  uint64_t pitch;                   // mask m begins at position m * pitch, a multiple of 8
  Masks masks = Masks::kSteps;
};

const Stream kStreams[] = {
    {"sequential", 64, 0, 0, 64},            // one mask
    {"seeds", 32, 1, 0, 0},                  // four blocks of each seed
    {"offsets", 32, 0, 1, 0},                // four blocks of each offset
    {"generator", 32, 0, 4, 0},              // a GPU's generator advances the offset by 4
    {"seeds-1", 1, 1, 0, 0},                 // one channel, step after step
    {"seeds-3", 3, 1, 0, 0},                 // three channels
    {"seeds-12", 12, 1, 0, 0},               // twelve: a block and a half
    {"offsets-1", 1, 0, 1, 0},               //
    {"offsets-3", 3, 0, 1, 0},               //
    {"offsets-12", 12, 0, 1, 0},             //
    {"shard", 64, 0, 0, uint64_t{1} << 20},  // 64 columns of a matrix with 2^20 columns
    {"random-seeds", 4096, 0, 0, 0, Masks::kRandomSeeds},  // a layer or a step each
    {"seed-bits", 32, 0, 0, 0, Masks::kSeedBits},          // the seeds s, s ^ 1, s ^ 2, s ^ 4, ...
    {"offset-bits", 32, 0, 0, 0, Masks::kOffsetBits},      // the offsets 0, 1, 2, 4, ...
};

uint64_t splitmix64(uint64_t x) {  // Steele, Lea, Flood, OOPSLA 2014; not related to Philox
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

class Halves {  // r(i) in the order of a stream
 public:
  Halves(const Stream& stream, int rounds, uint64_t seed)
      : stream_(stream), rounds_(rounds), seed_(seed) {}

  uint32_t next() {
    if (used_ == halves_.size()) refill();
    return halves_[used_++];
  }

 private:
  void refill() {
    halves_.clear();
    used_ = 0;
    while (halves_.size() < 4096) append_mask(mask_++);
  }

  void append_mask(uint64_t m) {
    uint64_t seed = seed_ + m * stream_.seed_step, offset = m * stream_.offset_step;
    const uint64_t bit = m == 0 ? 0 : uint64_t{1} << ((m - 1) % 64);
    if (stream_.masks == Masks::kRandomSeeds) seed = splitmix64(seed_ + m);
    if (stream_.masks == Masks::kSeedBits) seed ^= bit;
    if (stream_.masks == Masks::kOffsetBits) offset = bit;
    const uint64_t begin = m * stream_.pitch / kElementsPerDraw;
    for (uint64_t i = 0; i < stream_.run; i += kElementsPerDraw) {
      const uint64_t group = begin + i / kElementsPerDraw;
      const Block block =
          philox4x32({{group, group >> 32 | 0x80000000u, offset, offset >> 32}}, seed, rounds_);
      for (uint64_t half = 0; half < kElementsPerDraw && i + half < stream_.run; ++half) {
        halves_.push_back(static_cast<uint16_t>(block.word[half / 2] >> (16 * (half % 2))));
      }
    }
  }

  Stream stream_;
  int rounds_;
  uint64_t seed_, mask_ = 0;
  std::vector<uint16_t> halves_;
  size_t used_ = 0;
};

// A battery takes 32-bit words and tests mostly their high bits. A view packs halves into words.
enum class View { kHalves, kReversed, kTop, kBottom };

uint32_t packed_bits(Halves& halves, int bit) {  // the same bit of 32 halves
  uint32_t word = 0;
  for (int i = 0; i < 32; ++i) word = word << 1 | (halves.next() >> bit & 1);
  return word;
}

[[maybe_unused]] uint32_t next_word(Halves& halves, View view) {
  if (view == View::kTop) return packed_bits(halves, 15);
  if (view == View::kBottom) return packed_bits(halves, 0);
  const uint32_t first = halves.next(), second = halves.next();
  uint32_t word = first << 16 | second;
  if (view == View::kHalves) return word;
  uint32_t reversed = 0;
  for (int i = 0; i < 32; ++i, word >>= 1) reversed = reversed << 1 | (word & 1);
  return reversed;
}

const Stream& find_stream(const std::string& name) {
  for (const Stream& stream : kStreams) {
    if (name == stream.name) return stream;
  }
  std::fprintf(stderr, "no stream has the name %s\n", name.c_str());
  std::exit(2);
}

bool known_answers() {  // those of Random123, tests/kat_vectors
  const struct {
    int rounds;
    Block counter;
    uint64_t key;
    Block expected;
  } cases[] = {
      {7, {{0, 0, 0, 0}}, 0, {{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}}},
      {7,
       {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
       ~uint64_t{0},
       {{0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}}},
      {7,
       {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       0x299f31d0a4093822,
       {{0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}}},
      {10, {{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {10,
       {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       0x299f31d0a4093822,
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  bool equal = true;
  for (const auto& c : cases) {
    const Block block = philox4x32(c.counter, c.key, c.rounds);
    for (int i = 0; i < 4; ++i) equal &= static_cast<uint32_t>(block.word[i]) == c.expected.word[i];
  }
  return equal;
}

#ifdef MASK_BATTERY_TESTU01
Halves* tested;
View tested_view;

int run_battery(const std::string& battery, char* name) {
  unif01_Gen* generator = unif01_CreateExternGenBits(
      name, []() -> unsigned int { return next_word(*tested, tested_view); });
  swrite_Basic = FALSE;
  if (battery == "SmallCrush") {
    bbattery_SmallCrush(generator);
  } else if (battery == "Crush") {
    bbattery_Crush(generator);
  } else if (battery == "SimpPoker") {
    int repetitions[107] = {};
    for (int test = 26; test <= 29; ++test) repetitions[test] = 1;
    bbattery_RepeatBigCrush(generator, repetitions);
  } else if (battery == "Alphabit") {
    bbattery_Alphabit(generator, 1 << 26, 0, 32);  // reads 2^26 bits per test
  } else {
    return std::fprintf(stderr, "no battery has the name %s\n", battery.c_str()), 2;
  }
  for (int i = 0; i < bbattery_NTests; ++i) {
    std::printf("p-value\t%.15g\t%s\n", bbattery_pVal[i], bbattery_TestNames[i]);
  }
  unif01_DeleteExternGenBits(generator);
  return 0;
}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (!known_answers()) return std::fprintf(stderr, "Philox's known answers: wrong\n"), 1;
  if (argc == 1) return std::puts("Philox's known answers: right"), 0;
  const std::string command = argv[1];
  if (argc == 7 && command == "halves") {
    Stream stream = find_stream(argv[2]);
    stream.run = std::strtoull(argv[3], nullptr, 0);
    Halves halves(stream, std::atoi(argv[4]), std::strtoull(argv[5], nullptr, 0));
    for (uint64_t i = std::strtoull(argv[6], nullptr, 0); i > 0; --i) {
      const uint16_t half = static_cast<uint16_t>(halves.next());
      std::fwrite(&half, sizeof half, 1, stdout);
    }
    return 0;
  }
#ifdef MASK_BATTERY_TESTU01
  const char* views[] = {"halves", "reversed", "top", "bottom"};
  for (int view = 0; argc == 6 && view < 4; ++view) {
    if (argv[3] != std::string(views[view])) continue;
    Halves halves(find_stream(argv[2]), std::atoi(argv[4]), std::strtoull(argv[5], nullptr, 0));
    tested = &halves, tested_view = static_cast<View>(view);
    return run_battery(command, argv[2]);
  }
#endif
  return std::fprintf(stderr, "see the head of tools/mask_battery.cpp for the arguments\n"), 2;
}
