// The operator for one element. Layer: core. Every backend, every instruction set and the second
// derivatives run this code. The equations: docs/operator.md and actreg_ext/reference.py.
#pragma once

#include "core/jet.h"
#include "core/philox.h"

namespace actreg {

template <class T>
struct PenaltySums {
  T l1, l2;  // sum |t|, sum t^2

  ACTREG_HD void add(T t) {
    l1 += abs(t);
    l2 += t * t;
  }
};
struct NoSums {  // instead of PenaltySums if there is no penalty
  template <class T>
  ACTREG_HD void add(T) {}
};

// The coefficients of the penalty's gradient c1 * sign(a) + c2_twice * a: see Penalty::slopes.
template <class T, class Condition>
struct Slopes {
  T c1, c2_twice;
  Condition l2_is_on;  // c2_twice != 0; if it is 0, c2_twice * a would be NaN at a = inf
};

// Returns y = keep ? act(x) * s : 0, and adds a = act(x) to the sums if the element counts.
// Elements that dropout set to 0 do not count towards a penalty on the output. There t = s * a, but
// the sums leave out s: Penalty::finish multiplies the finished sums with it.
template <class Act, class T, class Keep, class Counts, class Sums>
ACTREG_HD T forward(const Act& act, T x, Keep keep, Counts counts, T s, Sums& sums) {
  const T a = act(x).value;
  sums.add(select(counts, a, T(0)));
  return select(keep, a, T(0)) * s;
}

// The output of alpha dropout: see Dropout.
template <class T, class Keep>
ACTREG_HD T alpha_dropped(T a, Keep keep, T s, T shift) {
  return select(keep, a, T(Dropout::kSeluLimit)) * s + shift;
}

// Whether the slope at x is two_slopes().on
template <class Act, class T>
ACTREG_HD auto is_on(const Act& act, T x) {
  return act(x).slope == T(act.two_slopes().on);
}

// dx = slope * (keep ? s * dy : 0  +  counts ? penalty : 0)
// A kept element always counts towards the penalty, so `counts` is read only for dropped elements.
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

// backward() with the bit `on` instead of x. The penalty's gradient is c1 alone: bits are kept only
// if c2 is 0 and sign(a) is not needed. See Note [What is kept for backward].
template <class On, class T, class Keep, class Counts>
ACTREG_HD T backward_from_bit(On on, const TwoSlopes& slopes, T dy, Keep keep, Counts counts, T s,
                              T c1) {
  return gradient(select(on, T(slopes.on), T(slopes.off)), c1, dy, keep, counts, s);
}

}  // namespace actreg
