// What a kernel is asked to compute, as plain data. Layer: core. Shared by every backend.
#pragma once

#include <cstdint>
#include <variant>

#include "core/activations.h"
#include "core/penalty.h"
#include "core/philox.h"

namespace actreg {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
template <class E>
constexpr bool kIsHalf = sizeof(E) == 2;
template <class E>
struct ElementType {
  using type = E;
};
using Element =
    std::variant<ElementType<float>, ElementType<double>, ElementType<Half>, ElementType<BFloat16>>;

// Elements are in memory order; pointers need the alignment of one element only.
struct Task {
  const void* x = nullptr;   // or, for backward, the output: see Problem
  const void* dy = nullptr;  // backward only
  void* out = nullptr;       // y, or dx
  // One for each element, bit i % 8 of byte i / 8: on if the slope is `on` (TwoSlopes) and
  // r(i) < marked. Written by forward, if any; read by backward_bits, where none are all on.
  uint8_t* bits = nullptr;
  uint32_t marked = kKeepAll;
  Dropout dropout;
  // An element counts in the penalty if r(i) < counted: kKeepAll for the penalty on the activation,
  // the dropout's threshold for the penalty on the output, where dropped elements are 0.
  uint32_t counted = kKeepAll;
  Penalty penalty;

  ACTREG_HD bool drops() const { return dropout.threshold != kKeepAll; }
  // Whether backward_bits needs the mask, because it is not in the bits.
  ACTREG_HD bool draws_again() const { return drops() && marked == kKeepAll; }
};

struct Problem : Task {
  Activation activation;
  Element element;
  bool x_is_output = false;     // backward only: see Note [What is kept for backward]
  double c1 = 0, c2_twice = 0;  // backward on the CPU only: see Slopes in operator.h
};

}  // namespace actreg
