// The penalty from the sums of the kernels, and the coefficients of backward from the penalty's
// gradient. Layer: core.
#pragma once

#include <limits>

#include "core/operator.h"

namespace actreg {

struct Penalty {
  // true: the penalty is one number, l1 * sum |t| + l2 * sum t^2. false: it is these two terms.
  bool is_weighted = false;
  double l1 = 1, l2 = 1;
  double s = 1;  // t = s * a, and the kernels sum a: dropout's scale (penalty on the output), or 1

  ACTREG_HD bool is_off() const { return l1 == 0 && l2 == 0; }

  // A coefficient that is not 0 does not become 0, even if l / d underflows: 0 means off, and
  // forward and backward must agree on what is off.
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

  // Writes the penalty to out[0], or its two terms to out[0] and out[1].
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

  // The coefficients of backward, from dpenalty = d(loss)/d(penalty): {factor of sign(a), factor of
  // 2 a}. A null dpenalty means 0.
  template <class Real>
  ACTREG_HD PenaltySums<double> slopes(const Real* dpenalty) const {
    if (!dpenalty) return {0, 0};
    const double g1 = dpenalty[0];
    if (is_weighted) return {s * weighted(l1, g1), s * s * weighted(l2, g1)};
    return {s * l1 * g1, s * s * l2 * static_cast<double>(dpenalty[1])};
  }
};

}  // namespace actreg
