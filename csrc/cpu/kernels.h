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

struct Kernels {
  const char* name;  // as ATEN_CPU_CAPABILITY spells it
  bool (*is_supported)();
  // Returns the sums of |t| and t^2, without dropout's factor s. If the penalty is off, forward
  // adds nothing and returns zeros: in cache this takes 10 to 16 % less time.
  PenaltySums<double> (*forward)(const Problem&, int64_t begin, int64_t end);
  void (*backward)(const Problem&, int64_t begin, int64_t end);
  void (*backward_bits)(const Problem&, const TwoSlopes&, int64_t begin, int64_t end);
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
