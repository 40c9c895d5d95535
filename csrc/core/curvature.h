// The second derivative of the operator, d(dx)/dx, for one element: what every backend runs.
// Layer: core. The operator on dual numbers, in float64.
#pragma once

#include "core/dual.h"
#include "core/of_output.h"
#include "core/operator.h"

namespace actreg {

template <class Act>
struct Consistent {
  Act act;
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    if constexpr (kIsOfOutput<Act>) return act(x);  // its slope is not by what is differentiated by
    return consistent(act(x), x);
  }
};

// The arguments are those of backward (operator.h).
template <class Act>
ACTREG_HD double curvature(const Act& act, double x, double dy, bool keep, bool counts, double s,
                           double c1, double c2_twice) {
  using Number = Dual<double>;
  const Slopes<Number, bool> c{Number(c1), Number(c2_twice), c2_twice != 0};
  return backward(Consistent<Act>{act}, Number(x, 1), Number(dy), keep, counts, Number(s), c)
      .derivative;
}

}  // namespace actreg
