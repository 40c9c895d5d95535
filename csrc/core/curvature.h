// d(dx)/dx for one element: the second derivative of the operator. Layer: core.
// It is backward() of operator.h on dual numbers, in float64. Every backend runs this code.
#pragma once

#include "core/dual.h"
#include "core/of_output.h"
#include "core/operator.h"

namespace actreg {

// `act` with the derivative of its value set to its slope: see consistent() in dual.h.
template <class Act>
struct Consistent {
  Act act;
  template <class T>
  ACTREG_HD Jet<T> operator()(T x) const {
    // For OfOutput, x holds y: the derivative of the value y is 1, while the slope is dy/d(input).
    if constexpr (kIsOfOutput<Act>) return act(x);
    return consistent(act(x), x);
  }
};

// The arguments are those of backward() in operator.h.
template <class Act>
ACTREG_HD double curvature(const Act& act, double x, double dy, bool keep, bool counts, double s,
                           double c1, double c2_twice) {
  using Number = Dual<double>;
  const Slopes<Number, bool> c{Number(c1), Number(c2_twice), c2_twice != 0};
  return backward(Consistent<Act>{act}, Number(x, 1), Number(dy), keep, counts, Number(s), c)
      .derivative;
}

}  // namespace actreg
