// From the kernels' sums to the penalty, and from its gradient back to theirs. Layer: core.
#pragma once

#include <limits>

#include "core/operator.h"

namespace actreg {

struct Penalty {
  bool is_weighted = false;  // one number: l1 sum |t| + l2 sum t^2; else these two apart
  double l1 = 1, l2 = 1;
  double s = 1;  // t is s times what the kernels sum: dropout's scale, or 1

  ACTREG_HD bool is_off() const { return l1 == 0 && l2 == 0; }

  // A coefficient that is on stays on, however small: forward and backward have to agree on that.
  void divide_by(double d) {
    for (double* l : {&l1, &l2}) {
      const double quotient = *l / d;
      *l = quotient != 0 || *l == 0 ? quotient : std::numeric_limits<double>::denorm_min();
    }
  }

  // A coefficient of 0 is off: 0 * inf would be NaN.
  static ACTREG_HD double weighted(double coefficient, double value) {
    return coefficient == 0 ? 0 : coefficient * value;
  }

  // Leaves the penalty of the finished sums.
  template <class Real>
  ACTREG_HD void finish(PenaltySums<double> sums, Real* out) const {
    sums = {s * sums.l1, s * s * sums.l2};
    if (is_weighted) {
      out[0] = static_cast<Real>(weighted(l1, sums.l1) + weighted(l2, sums.l2));
    } else {
      out[0] = static_cast<Real>(l1 * sums.l1);
      out[1] = static_cast<Real>(l2 * sums.l2);
    }
  }

  // What backward multiplies sign(a) and 2 a with, from d(loss)/d(penalty).
  template <class Real>
  ACTREG_HD PenaltySums<double> slopes(const Real* dpenalty) const {
    if (!dpenalty) return {0, 0};
    const double g1 = dpenalty[0];
    if (is_weighted) return {s * weighted(l1, g1), s * s * weighted(l2, g1)};
    return {s * l1 * g1, s * s * l2 * static_cast<double>(dpenalty[1])};
  }
};

}  // namespace actreg
