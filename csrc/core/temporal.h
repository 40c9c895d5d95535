// The temporal penalty: the squares of the differences between neighbouring time steps.
// Layer: core. The equations: actreg_ext/temporal.py and actreg_ext/reference.py.
#pragma once

#include <cstdint>

#include "core/number.h"
#include "core/problem.h"

namespace actreg {

// In memory order h is [outer, time, inner]. Pair i consists of element i and of the element one
// time step later, which is element i + inner. The last time step begins no pair.
// The weights are [outer / repeat, time, inner / channels] in memory order: `repeat` neighbouring
// outer indices share their weights, and so do `channels` neighbouring inner indices.
struct Temporal {
  const void* h = nullptr;
  const void* weight = nullptr;  // double for double elements, else float; null: every weight is 1
  void* dh = nullptr;            // backward only
  int64_t outer = 1, time = 1, inner = 1, repeat = 1, channels = 1;
  Element element;
  double slope = 0;  // backward on the CPU only: 2 * dsum

  ACTREG_HD int64_t size() const { return outer * time * inner; }
  // The elements of one outer index, and how many of them begin a pair.
  ACTREG_HD int64_t row() const { return time * inner; }
  ACTREG_HD int64_t pairs() const { return row() - inner; }
};

// h[t + 1] - h[t]. A pair of weight 0 has the difference 0, even if h is infinite or NaN there.
template <class T>
ACTREG_HD T temporal_difference(T weight, T h, T next) {
  return select(weight == T(0), T(0), next - h);
}

// sum + weight * (h[t + 1] - h[t])^2
template <class T>
ACTREG_HD T add_temporal(T sum, T weight, T h, T next) {
  const T difference = temporal_difference(weight, h, next);
  return sum + weight * difference * difference;
}

// dh[t] = 2 * dsum * (before * (h[t] - h[t - 1]) - after * (h[t + 1] - h[t])). `before` is the
// weight of the pair (t - 1, t), `after` the weight of the pair (t, t + 1), and slope = 2 * dsum.
template <class T>
ACTREG_HD T temporal_gradient(T slope, T before, T previous, T h, T after, T next) {
  return slope * (before * temporal_difference(before, previous, h) -
                  after * temporal_difference(after, h, next));
}

}  // namespace actreg
