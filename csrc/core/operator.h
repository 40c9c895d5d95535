// The operator, for one element: what every backend, every instruction set and the second
// derivatives run. Layer: core. Equations: docs/operator.md and actreg_ext/reference.py.
#pragma once

#include "core/jet.h"

namespace actreg {

template <class T>
struct PenaltySums {
  T l1, l2;  // sum |t|, sum t^2

  ACTREG_HD void add(T t) {
    l1 += abs(t);
    l2 += t * t;
  }
};
struct NoSums {  // where there is no penalty
  template <class T>
  ACTREG_HD void add(T) {}
};

// What backward multiplies with; c = l * dpenalty / D, and dt/da is inside c1 and c2 already.
template <class T, class Condition>
struct Slopes {
  T c1, c2_twice;      // of |a| and of a^2
  Condition l2_is_on;  // a coefficient of 0 is off even where a is infinite: 0 * inf is NaN
};

// y = keep ? act(x) * s : 0. An element counts in the penalty if t is not fixed to 0 by dropout;
// t leaves out the factor s, which the finished sums are multiplied with.
template <class Act, class T, class Keep, class Counts, class Sums>
ACTREG_HD T forward(const Act& act, T x, Keep keep, Counts counts, T s, Sums& sums) {
  const T a = act(x).value;
  sums.add(select(counts, a, T(0)));
  return select(keep, a, T(0)) * s;
}

// Whether the slope at x is the first of an activation's two.
template <class Act, class T>
ACTREG_HD auto is_on(const Act& act, T x) {
  return act(x).slope == T(act.two_slopes().on);
}

// dx = slope * (keep ? s * dy : 0  +  counts ? penalty : 0)
// What is kept counts: of `counts` only what it says of the others is asked for.
template <class T, class Keep, class Counts>
ACTREG_HD T gradient(T slope, T penalty, T dy, Keep keep, Counts counts, T s) {
  return zero_wins(slope, select(keep, s * dy + penalty, select(counts, penalty, T(0))));
}

// dx = act'(x) * (keep ? s * dy : 0  +  c1 * sign(t) * dt/da  +  2 * c2 * t * dt/da)
template <class Act, class T, class Keep, class Counts, class Condition>
ACTREG_HD T backward(const Act& act, T x, T dy, Keep keep, Counts counts, T s,
                     const Slopes<T, Condition>& c) {
  const Jet<T> a = act(x);
  const T l1 = select(abs(a.value) > T(0), times_sign(c.c1, a.value), T(0));  // sign(0) = 0
  return gradient(a.slope, l1 + select(c.l2_is_on, c.c2_twice * a.value, T(0)), dy, keep, counts,
                  s);
}

// The same from a bit in the place of x. See Note [What is kept for backward].
template <class On, class T, class Keep, class Counts>
ACTREG_HD T backward_from_bit(On on, const TwoSlopes& slopes, T dy, Keep keep, Counts counts, T s,
                              T c1) {
  return gradient(select(on, T(slopes.on), T(slopes.off)), c1, dy, keep, counts, s);
}

}  // namespace actreg
