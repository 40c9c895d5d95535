// The kernels for float32. Layer: cuda.
#include "cuda/backward_bits.cuh"
#include "cuda/forward.cuh"

namespace actreg {
namespace cuda {

template struct KernelsOf<float>;

}  // namespace cuda
}  // namespace actreg
