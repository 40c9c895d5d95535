// From the kernels' sums to the penalty, and from its gradient back to theirs. Layer: core.
#pragma once

#include "core/operator.h"

namespace actreg {

struct Penalty {
  bool is_weighted = false;  // one number: l1 sum |t| + l2 sum t^2; else the two raw sums
  double l1 = 0, l2 = 0;     // divided by D already
  double s = 1;              // t is s times what the kernels sum: dropout's scale, or 1

  ACTREG_HD bool is_off() const { return is_weighted && l1 == 0 && l2 == 0; }

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
      out[0] = static_cast<Real>(sums.l1);
      out[1] = static_cast<Real>(sums.l2);
    }
  }

  // What backward multiplies sign(a) and 2 a with, from d(loss)/d(penalty).
  template <class Real>
  ACTREG_HD PenaltySums<double> slopes(const Real* dpenalty) const {
    if (!dpenalty) return {0, 0};
    const double g1 = dpenalty[0];
    if (is_weighted) return {s * weighted(l1, g1), s * s * weighted(l2, g1)};
    return {s * g1, s * s * static_cast<double>(dpenalty[1])};
  }
};

}  // namespace actreg
