// The CPU kernels, one table for each instruction set. Layer: cpu.
// Pure functions over elements [begin, end) of a problem: no threads, no allocation, no torch.
#pragma once

#include <cstdint>

#include "core/operator.h"
#include "core/problem.h"

namespace actreg {
namespace cpu {

// Elements that one Philox draw loop and one float accumulator serve; [begin, end) starts at a
// multiple of it, so the order of addition does not depend on how the work is divided. In cache,
// relu's forward with dropout takes 0.316, 0.294 and 0.284 ns an element with 512, 1024 and 2048
// (float32, AVX-512, one core); the fewer, the more exact are the sums.
constexpr int64_t kBlock = 1024;

struct Kernels {
  const char* name;  // as ATEN_CPU_CAPABILITY spells it
  bool (*is_supported)();
  // Sums of |t| and t^2, without dropout's factor s. Where the penalty is off nothing is added,
  // which takes 10 to 16 % less time in cache.
  PenaltySums<double> (*forward)(const Problem&, int64_t begin, int64_t end);
  void (*backward)(const Problem&, int64_t begin, int64_t end);
  void (*backward_bits)(const Problem&, const TwoSlopes&, int64_t begin, int64_t end);
};

extern const Kernels kDefault;  // what the compiler targets without flags: SSE2, NEON
#if defined(__x86_64__) && defined(__GNUC__)
extern const Kernels kAvx2, kAvx512;
constexpr const Kernels* kAllKernels[] = {&kAvx512, &kAvx2, &kDefault};  // best first
#else
constexpr const Kernels* kAllKernels[] = {&kDefault};
#endif

// d(dx)/dx for each element, for second derivatives: the operator on dual numbers, one element at
// a time, of float64 only. Rare, so short rather than fast.
void curvature(const Problem&, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace actreg
