// The kernels for AVX2. Layer: cpu. See Note [One source for each instruction set].
#if defined(__x86_64__) && defined(__GNUC__)
#define ACTREG_VECTOR_BYTES 32
#include "cpu/prelude.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "cpu/loops.h"
#pragma GCC pop_options

namespace actreg {
namespace cpu {
namespace {
bool is_supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
}  // namespace

const Kernels kAvx2{"AVX2", &is_supported, &forward, &backward};

}  // namespace cpu
}  // namespace actreg
#endif
