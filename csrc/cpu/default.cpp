// The kernels for the compiler's default target: SSE2 on x86-64, NEON on Arm. Layer: cpu.
#define ACTREG_VECTOR_BYTES 16
#include "cpu/prelude.h"
// This comment keeps clang-format from sorting loops.h before prelude.h.
#include "cpu/loops.h"

namespace actreg {
namespace cpu {
namespace {
bool is_supported() { return true; }
}  // namespace

const Kernels kDefault = kernels_of("DEFAULT", &is_supported);

}  // namespace cpu
}  // namespace actreg
