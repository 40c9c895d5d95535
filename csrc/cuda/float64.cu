// The kernels for float64. Layer: cuda.
#include "cuda/backward_bits.cuh"
#include "cuda/forward.cuh"

namespace actreg {
namespace cuda {

template struct KernelsOf<double>;

}  // namespace cuda
}  // namespace actreg
