// The arguments of a kernel, as plain data. Layer: core. Every backend uses them.
#pragma once

#include <cstdint>
#include <limits>
#include <variant>

#include "core/activations.h"
#include "core/index_map.h"
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

// The channels and the weights of rows: see docs/operator.md. Channel c of element i is
// i / inner % channels. The weight of element i is weight[weight_at.at(i)].
struct Rows {
  int64_t channels = 1, inner = 1;
  const void* weight = nullptr;  // null: every weight is 1; float, or double for float64 elements
  IndexMap weight_at;
  // The coefficients of backward for each channel: Slopes (operator.h), of the same type as the
  // weights. On the CPU, if `inner` is 1, the channels repeat for kBlock more numbers.
  const void *c1 = nullptr, *c2_twice = nullptr;

  ACTREG_HD int64_t channel_of(int64_t i) const { return i / inner % channels; }
  IndexMap channel_at() const {
    IndexMap map;  // the size of the outermost dimension does not matter
    map.append(std::numeric_limits<int64_t>::max() / (channels * inner), 0);
    map.append(channels, 1);
    map.append(inner, 0);
    return map;
  }
};

// Note [The general form]
// The flat operator sees a list of elements and adds up one penalty. The general form has channels,
// weights of rows, shared dimensions, shards, alpha dropout, and a p that is read from memory; the
// flat operator is its case of one channel, weight 1 and positions in memory order.
// - On the CPU, positions and addresses are looked up once per block (cpu/blocks.h), so the flat
//   kernels serve shared dimensions, shards and rows with a pitch. Channels, weights and alpha
//   dropout run in stages of one block (cpu/staged.h): only the first stage is a template over the
//   activation. So the kernels do not multiply.
// - The general form keeps the input, or the output where PyTorch keeps it, but never bits.
struct Problem : Task {
  Activation activation;
  Element element;
  bool x_is_output = false;  // backward only: see Note [What is kept for backward]
  bool keeps_input = false;  // forward only: keep the input, not the output, where either will do
  double c1 = 0, c2_twice = 0;  // backward on the CPU only: see Slopes (operator.h)

  // See Note [The general form]. A null pointer: the operator is the flat one in this respect.
  Rows* rows = nullptr;
  const IndexMap* position_at = nullptr;                                // null: the identity
  const IndexMap *x_at = nullptr, *dy_at = nullptr, *out_at = nullptr;  // addresses, in elements
  bool is_alpha = false;
  bool reads_threshold = false;  // the state holds {seed, offset, threshold}
  bool is_general = false;       // any of the above but the addresses

  // What a state says about dropout.
  void set_state(const int64_t* state) {
    if (reads_threshold) set_threshold(static_cast<uint32_t>(state[2]));
    dropout.seed = static_cast<uint64_t>(state[0]);
    dropout.offset = static_cast<uint64_t>(state[1]);
  }
  void set_threshold(uint32_t threshold) {
    const bool on_output = counted != kKeepAll;
    dropout = Dropout(threshold, is_alpha);
    if (!on_output) return;
    counted = threshold;
    penalty.s = dropout.scale;
  }
};

}  // namespace actreg
