// The kernels for float16. Layer: cuda.
#include "cuda/backward_bits.cuh"
#include "cuda/forward.cuh"

namespace actreg {
namespace cuda {

template struct KernelsOf<Half>;

}  // namespace cuda
}  // namespace actreg
