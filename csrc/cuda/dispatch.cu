// Calls the kernels of a problem's element type. Layer: cuda.
#include "core/registry.h"
#include "cuda/kernels.h"

namespace actreg {
namespace cuda {
namespace {

// Returns launch(KernelsOf the problem's element type).
template <class F>
cudaError_t dispatch(const Problem& problem, F launch) {
  cudaError_t error = cudaSuccess;
  visit([&](auto element) { error = launch(KernelsOf<typename decltype(element)::type>{}); },
        problem.element);
  return error;
}

}  // namespace

cudaError_t forward(const Problem& problem, const Launch& launch, const RandomState& random,
                    void* penalty, Workspace* workspace) {
  return dispatch(problem, [&](auto kernels) {
    return kernels.forward(problem, launch, random, penalty, workspace);
  });
}

cudaError_t backward(const Problem& problem, const Launch& launch, const RandomState& random,
                     const void* dpenalty, bool dy_is_scalar) {
  return dispatch(problem, [&](auto kernels) {
    return kernels.backward(problem, launch, random, dpenalty, dy_is_scalar);
  });
}

cudaError_t backward_bits(const Problem& problem, const TwoSlopes& slopes, const Launch& launch,
                          const RandomState& random, const void* dpenalty, bool dy_is_scalar) {
  return dispatch(problem, [&](auto kernels) {
    return kernels.backward_bits(problem, slopes, launch, random, dpenalty, dy_is_scalar);
  });
}

}  // namespace cuda
}  // namespace actreg
