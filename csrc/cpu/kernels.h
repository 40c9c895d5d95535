// The CPU kernels, one table for each instruction set. Layer: cpu.
// Pure functions over elements [begin, end) of a problem: no threads, no allocation, no torch.
#pragma once

#include <cstdint>

#include "core/operator.h"
#include "core/problem.h"
#include "core/temporal.h"

namespace actreg {
namespace cpu {

// Elements per block. The random bits are drawn for one block at a time, and a float accumulator
// sums at most one block. `begin` is a multiple of kBlock, so the order of the additions does not
// depend on the number of threads. With blocks of 512, 1024 and 2048, relu's forward with dropout
// takes 0.316, 0.294 and 0.284 ns per element (float32, in cache, AVX-512, one core). Smaller
// blocks give more exact sums.
constexpr int64_t kBlock = 1024;
// Elements per chunk. A thread takes whole chunks, and each chunk has a partial sum of its own. The
// size is fixed, so that the sums do not depend on the number of threads. Cutting into chunks costs
// one thread at most 0.4 % of its time; chunks of half the size cost 1 % (48 K to 1 M elements).
constexpr int64_t kChunk = 8 * kBlock;

// How the sums of a problem with rows are computed: which part of the tensor a task takes, and
// where its sums go. The plan depends on the shape alone, never on the number of threads.
//
// Note [Sums over rows]
// The tensor is a matrix in memory: rows x columns. There are two ways to sum it.
// - By columns, if neighbouring elements belong to different channels. A task takes a strip of at
//   most kBlock columns of a range of rows. It adds up kPanel rows in float, in the first cache,
//   and then adds these sums to its own sums in double. Narrow matrices are glued: several rows
//   become one. Afterwards fold() adds the ranges of rows, and the columns of each channel.
// - By runs, if at least kShortestRun neighbouring elements belong to one channel. A task takes
//   kChunk elements and writes the sums of each run in it; fold() adds the runs of each channel.
struct SumPlan {
  static constexpr int64_t kPanel = 32, kShortestRun = 64;
  bool by_runs = false;
  int64_t n = 0, channels = 1, inner = 1;  // as in Rows
  int64_t columns = 0, rows = 0;           // the last row may be shorter
  int64_t parts = 1, rows_per_part = 0, strips = 1;

  SumPlan(int64_t n, int64_t channels, int64_t inner);
  int64_t tasks() const { return by_runs ? (n + kChunk - 1) / kChunk : parts * strips; }
  // The sums of a task, in a buffer of `doubles()` numbers.
  int64_t doubles() const;
  int64_t first_run_of(int64_t chunk) const { return chunk * kChunk / inner + chunk; }
  // From the sums of all tasks to the sums of all channels: out[0], out[1] and out[2] have S1, S2
  // and N.
  void fold(const double* sums, double* const (&out)[3]) const;
};

struct Kernels {
  const char* name;  // as ATEN_CPU_CAPABILITY spells it
  bool (*is_supported)();
  // Returns the sums of |t| and t^2, without dropout's factor s. If the penalty is off, forward
  // adds nothing and returns zeros: in cache this takes 10 to 16 % less time.
  PenaltySums<double> (*forward)(const Problem&, int64_t begin, int64_t end);
  void (*backward)(const Problem&, int64_t begin, int64_t end);
  void (*backward_bits)(const Problem&, const TwoSlopes&, int64_t begin, int64_t end);
  // The same for problems with rows or alpha dropout. `sums`: of all tasks, see SumPlan.
  void (*forward_rows)(const Problem&, const SumPlan&, int64_t task, double* sums);
  void (*backward_rows)(const Problem&, int64_t begin, int64_t end);
  // Returns the sum over the pairs [begin, end); the weight of a pair is a factor of its square.
  double (*temporal)(const Temporal&, int64_t begin, int64_t end);
  void (*temporal_backward)(const Temporal&, int64_t begin, int64_t end);
};

extern const Kernels kDefault;  // the compiler's default target: SSE2, NEON
#if defined(__x86_64__) && defined(__GNUC__)
extern const Kernels kAvx2, kAvx512;
constexpr const Kernels* kAllKernels[] = {&kAvx512, &kAvx2, &kDefault};  // best first
#else
constexpr const Kernels* kAllKernels[] = {&kDefault};
#endif

// Writes d(dx)/dx, for second derivatives; float64 only. Second derivatives are rare, so this code
// is short rather than fast.
void curvature(const Problem&, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace actreg
