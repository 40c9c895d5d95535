// The kernels for AVX-512. Layer: cpu. See Note [One source for each instruction set].
#if defined(__x86_64__) && defined(__GNUC__)
#define ACTREG_VECTOR_BYTES 64
#include "cpu/prelude.h"

// Some CPUs with AVX-512 can round to bfloat16 by one instruction. GCC before 10 does not know this
// instruction.
#if defined(__clang__) || __GNUC__ >= 10
#define ACTREG_AVX512_BF16
namespace actreg {
namespace cpu {
namespace {
const bool kHasAvx512Bf16 = __builtin_cpu_supports("avx512bf16");
}
}  // namespace cpu
}  // namespace actreg
#endif

#if !defined(__clang__)  // GCC's own header passes undefined registers that no instruction reads
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#if defined(ACTREG_AVX512_BF16)
#pragma GCC target("avx512bf16")  // GCC uses it only for its intrinsics
#endif
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
bool is_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
}  // namespace

const Kernels kAvx512 = kernels_of("AVX512", &is_supported);

}  // namespace cpu
}  // namespace actreg
#endif
