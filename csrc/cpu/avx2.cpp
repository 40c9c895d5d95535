// The kernels for AVX2. Layer: cpu. See Note [One source for each instruction set].
#if defined(__x86_64__) && defined(__GNUC__)
#define ACTREG_VECTOR_BYTES 32
#include "cpu/prelude.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include "cpu/loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace actreg {
namespace cpu {
namespace {
// F16C is not asked for, because every CPU with AVX2 has it.
bool is_supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
}  // namespace

const Kernels kAvx2 = kernels_of("AVX2", &is_supported);

}  // namespace cpu
}  // namespace actreg
#endif
