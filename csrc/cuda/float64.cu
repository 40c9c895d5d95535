// The kernels for float64. Layer: cuda.
#include "cuda/backward_bits.cuh"
#include "cuda/forward.cuh"

namespace actreg {
namespace cuda {

template cudaError_t forward_of<double>(const Problem&, const Launch&, const RandomState&, void*,
                                        Workspace*);
template cudaError_t backward_of<double>(const Problem&, const Launch&, const RandomState&,
                                         const void*, bool);
template cudaError_t backward_bits_of<double>(const Problem&, const TwoSlopes&, const Launch&,
                                              const RandomState&, const void*, bool);

}  // namespace cuda
}  // namespace actreg
