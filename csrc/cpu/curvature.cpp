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
  const auto place = [](const IndexMap* map, int64_t i) { return map ? map->at(i) : i; };
  double* out = static_cast<double*>(problem.out);
  visit_of_x(
      [&](auto act) {
        for (int64_t i = begin; i < end; ++i) {
          const uint32_t r =
              problem.drops() ? random_bits(problem.dropout, place(problem.position_at, i)) : 0;
          double c1 = problem.c1, c2_twice = problem.c2_twice;
          if (const Rows* rows = problem.rows) {
            const int64_t channel = rows->channel_of(i);
            const double w = rows->weight ? at(rows->weight, rows->weight_at.at(i)) : 1;
            c1 = w == 0 ? 0 : w * at(rows->c1, channel);
            c2_twice = w == 0 ? 0 : w * at(rows->c2_twice, channel);
          }
          out[i] = actreg::curvature(act, at(problem.x, place(problem.x_at, i)),
                                     at(problem.dy, place(problem.dy_at, i)),
                                     r < problem.dropout.threshold, r < problem.counted,
                                     problem.dropout.scale, c1, c2_twice);
        }
      },
      problem);
}

}  // namespace cpu
}  // namespace actreg
