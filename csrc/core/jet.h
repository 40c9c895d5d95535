// A function's value and slope at one point, evaluated together. Layer: core.
// Forward ignores the slope and the compiler removes it; so the two can never drift apart.
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

// slope * dy, but 0 where the slope is 0 even if dy is not finite, as in torch's relu: an
// overflow upstream must not become NaN where the function is flat.
template <class T>
ACTREG_HD T zero_wins(T slope, T dy) {
  return select(slope == T(0), T(0), slope * dy);
}

// The slope of a function that has two: see Note [What is kept for backward].
struct TwoSlopes {
  double on = 1, off = 1;
  bool sign_is_slopes = false;  // the function is above 0 where its slope is `on`, and `off` is 0
};

}  // namespace actreg
