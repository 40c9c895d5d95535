// The arguments of a kernel, as plain data. Layer: core. Every backend uses them.
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

// Elements are in memory order. Pointers need only the alignment of one element.
struct Task {
  const void* x = nullptr;   // backward: y if Problem::x_is_output
  const void* dy = nullptr;  // backward only
  void* out = nullptr;       // forward: y; backward: dx
  // One bit per element: bit i % 8 of byte i / 8 belongs to element i. The bit is 1 if the slope is
  // TwoSlopes::on and r(i) < marked. Forward writes the bits, unless this pointer is null.
  // backward_bits reads them; for a null pointer it takes every bit as 1.
  uint8_t* bits = nullptr;
  uint32_t marked = kKeepAll;
  Dropout dropout;
  // An element counts towards the penalty if r(i) < counted. For a penalty on the activation this
  // is kKeepAll; for a penalty on the output, dropout.threshold, because dropped elements are 0.
  uint32_t counted = kKeepAll;
  Penalty penalty;

  ACTREG_HD bool drops() const { return dropout.threshold != kKeepAll; }
  // Whether backward_bits must redraw the mask: the bits do not tell which elements were dropped.
  ACTREG_HD bool draws_again() const { return drops() && marked == kKeepAll; }
};

struct Problem : Task {
  Activation activation;
  Element element;
  bool x_is_output = false;  // backward only: see Note [What is kept for backward]
  bool keeps_input = false;  // forward only: keep the input, not the output, where either will do
  double c1 = 0, c2_twice = 0;  // backward on the CPU only: see Slopes (operator.h)
};

}  // namespace actreg
