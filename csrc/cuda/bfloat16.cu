// The kernels for bfloat16. Layer: cuda.
#include "cuda/backward_bits.cuh"
#include "cuda/forward.cuh"

namespace actreg {
namespace cuda {

template struct KernelsOf<BFloat16>;

}  // namespace cuda
}  // namespace actreg
