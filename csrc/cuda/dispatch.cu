// From a problem's element to the kernels made for it. Layer: cuda.
#include "core/registry.h"
#include "cuda/kernels.h"

namespace actreg {
namespace cuda {

// float32.cu, float64.cu, float16.cu and bfloat16.cu have them.
template <class E>
cudaError_t forward_of(const Problem&, const Launch&, const RandomState&, void*, Workspace*);
template <class E>
cudaError_t backward_of(const Problem&, const Launch&, const RandomState&, const void*, bool);

cudaError_t forward(const Problem& problem, const Launch& launch, const RandomState& random,
                    void* penalty, Workspace* workspace) {
  cudaError_t error = cudaSuccess;
  visit(
      [&](auto element) {
        using E = typename decltype(element)::type;
        error = forward_of<E>(problem, launch, random, penalty, workspace);
      },
      problem.element);
  return error;
}

cudaError_t backward(const Problem& problem, const Launch& launch, const RandomState& random,
                     const void* dpenalty, bool dy_is_scalar) {
  cudaError_t error = cudaSuccess;
  visit(
      [&](auto element) {
        using E = typename decltype(element)::type;
        error = backward_of<E>(problem, launch, random, dpenalty, dy_is_scalar);
      },
      problem.element);
  return error;
}

}  // namespace cuda
}  // namespace actreg
