// Second derivatives on the CPU: the operator of core/operator.h on dual numbers. Layer: cpu.
#include "core/dual.h"
#include "core/of_output.h"
#include "cpu/kernels.h"

namespace actreg {
namespace cpu {

void curvature(const Problem& problem, int64_t begin, int64_t end) {
  using Number = Dual<double>;
  const auto at = [](const void* from, int64_t i) {  // pointers may be unaligned
    double value;
    std::memcpy(&value, static_cast<const char*>(from) + i * sizeof value, sizeof value);
    return value;
  };
  double* out = static_cast<double*>(problem.out);
  const Slopes<Number, bool> c{Number(problem.c1), Number(problem.c2_twice), problem.c2_twice != 0};
  visit_of_x(
      [&](auto act) {
        for (int64_t i = begin; i < end; ++i) {
          const uint32_t r = problem.drops() ? random_bits(problem.dropout, i) : 0;
          out[i] = backward(act, Number(at(problem.x, i), 1), Number(at(problem.dy, i)),
                            r < problem.dropout.threshold, r < problem.counted,
                            Number(problem.dropout.scale), c)
                       .derivative;
        }
      },
      problem);
}

}  // namespace cpu
}  // namespace actreg
