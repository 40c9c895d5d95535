// The plan of sums over rows, and their last step. Layer: cpu. See Note [Sums over rows].
#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace actreg {
namespace cpu {

SumPlan::SumPlan(int64_t n, int64_t channels, int64_t inner)
    : n(n), channels(channels), inner(inner) {
  by_runs = channels == 1 || inner >= kShortestRun;
  if (channels == 1) this->inner = std::max<int64_t>(n, 1);
  if (by_runs || n == 0) return;
  columns = channels * inner;
  columns *= std::max<int64_t>(1, kBlock / columns);
  rows = (n + columns - 1) / columns;
  strips = (columns + kBlock - 1) / kBlock;
  // Enough tasks for 64 threads, but no part with less than two panels: each part has sums.
  constexpr int64_t kTasks = 64;
  parts = std::clamp<int64_t>(kTasks / strips, 1, std::max<int64_t>(1, rows / (2 * kPanel)));
  rows_per_part = ((rows + parts - 1) / parts + kPanel - 1) / kPanel * kPanel;
  parts = (rows + rows_per_part - 1) / rows_per_part;
}

int64_t SumPlan::doubles() const {
  return 3 * (by_runs ? first_run_of(tasks()) + 1 : parts * columns);
}

void SumPlan::fold(const double* sums, double* const (&out)[3]) const {
  for (double* of : out) std::fill_n(of, channels, 0.0);
  if (n == 0) return;
  if (by_runs) {
    for (int64_t chunk = 0; chunk < tasks(); ++chunk) {
      const int64_t begin = chunk * kChunk, end = std::min(n, begin + kChunk);
      const double* run = sums + 3 * first_run_of(chunk);
      for (int64_t r = begin / inner; r <= (end - 1) / inner; ++r, run += 3) {
        for (int of = 0; of < 3; ++of) out[of][r % channels] += run[of];
      }
    }
    return;
  }
  // First the parts, which needs no division, then the columns of each channel.
  std::vector<double> total(sums, sums + 3 * columns);
  for (int64_t part = 1; part < parts; ++part) {
    const double* of_part = sums + part * 3 * columns;
    for (int64_t i = 0; i < 3 * columns; ++i) total[i] += of_part[i];
  }
  const double* from = total.data();
  for (int64_t first = 0; first < columns; first += kBlock) {
    const int64_t width = std::min(kBlock, columns - first);
    for (int of = 0; of < 3; ++of) {
      for (int64_t q = first; q < first + width; ++q) out[of][q / inner % channels] += *from++;
    }
  }
}

}  // namespace cpu
}  // namespace actreg
