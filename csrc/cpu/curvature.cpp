// Second derivatives on the CPU: a loop that calls core/curvature.h. Layer: cpu.
#include "core/curvature.h"

#include "cpu/kernels.h"

namespace actreg {
namespace cpu {

void curvature(const Problem& problem, int64_t begin, int64_t end) {
  const auto at = [](const void* from, int64_t i) {  // `from` may be unaligned
    double value;
    std::memcpy(&value, static_cast<const char*>(from) + i * sizeof value, sizeof value);
    return value;
  };
  double* out = static_cast<double*>(problem.out);
  visit_of_x(
      [&](auto act) {
        for (int64_t i = begin; i < end; ++i) {
          const uint32_t r = problem.drops() ? random_bits(problem.dropout, i) : 0;
          out[i] = actreg::curvature(act, at(problem.x, i), at(problem.dy, i),
                                     r < problem.dropout.threshold, r < problem.counted,
                                     problem.dropout.scale, problem.c1, problem.c2_twice);
        }
      },
      problem);
}

}  // namespace cpu
}  // namespace actreg
