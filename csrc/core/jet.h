// A function's value and slope at one point, evaluated together. Layer: core.
// One formula computes both, so they always agree. Forward ignores the slope, and the compiler
// then removes its computation.
#pragma once

#include "core/number.h"

namespace actreg {

template <class T>
struct Jet {
  T value, slope;
};

template <class Condition, class T>
ACTREG_HD Jet<T> select(Condition c, Jet<T> a, Jet<T> b) {
  return {select(c, a.value, b.value), select(c, a.slope, b.slope)};
}

// slope * dy, but 0 if the slope is 0, even if dy is infinite or NaN. torch's relu does the same:
// an infinite dy must not become NaN where the function is flat.
template <class T>
ACTREG_HD T zero_wins(T slope, T dy) {
  return select(slope == T(0), T(0), slope * dy);
}

// For an activation whose slope is `on` or `off` and has no other value (relu: 1 or 0). See
// Note [What is kept for backward].
struct TwoSlopes {
  double on = 1, off = 1;
  // `off` is 0, and the activation is positive where its slope is `on`. Then sign(a) * slope, the
  // gradient of |a|, is the slope itself.
  bool sign_is_slopes = false;
};

}  // namespace actreg
