// What a kernel is asked to compute, as plain data. Layer: core. Shared by every backend.
#pragma once

#include <cstdint>
#include <variant>

#include "core/activations.h"
#include "core/philox.h"

namespace actreg {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// The element types, by a value of each.
using Element = std::variant<float, double, Half, BFloat16>;

// Elements are in memory order; pointers need the alignment of one element only.
struct Problem {
  Activation activation;
  Element element;
  const void* x = nullptr;
  const void* dy = nullptr;  // backward only
  void* out = nullptr;       // y, or dx
  bool drops = false;        // is `dropout` to be applied
  Dropout dropout;
  bool dropped_count = true;    // penalty on the activation: dropped elements count in it as well
  double c1 = 0, c2_twice = 0;  // backward only: see Slopes in operator.h
};

}  // namespace actreg
