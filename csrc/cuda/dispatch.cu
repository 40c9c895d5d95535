// Calls the kernels of a problem's element type. Layer: cuda.
#include "core/registry.h"
#include "cuda/kernels.h"

namespace actreg {
namespace cuda {

// float32.cu, float64.cu, float16.cu and bfloat16.cu instantiate these.
template <class E>
cudaError_t forward_of(const Problem&, const Launch&, const RandomState&, void*, Workspace*);
template <class E>
cudaError_t backward_of(const Problem&, const Launch&, const RandomState&, const void*, bool);
template <class E>
cudaError_t backward_bits_of(const Problem&, const TwoSlopes&, const Launch&, const RandomState&,
                             const void*, bool);

namespace {

// Returns launch(element).
template <class F>
cudaError_t dispatch(const Problem& problem, F launch) {
  cudaError_t error = cudaSuccess;
  visit([&](auto element) { error = launch(element); }, problem.element);
  return error;
}

}  // namespace

cudaError_t forward(const Problem& problem, const Launch& launch, const RandomState& random,
                    void* penalty, Workspace* workspace) {
  return dispatch(problem, [&](auto element) {
    using E = typename decltype(element)::type;
    return forward_of<E>(problem, launch, random, penalty, workspace);
  });
}

cudaError_t backward(const Problem& problem, const Launch& launch, const RandomState& random,
                     const void* dpenalty, bool dy_is_scalar) {
  return dispatch(problem, [&](auto element) {
    using E = typename decltype(element)::type;
    return backward_of<E>(problem, launch, random, dpenalty, dy_is_scalar);
  });
}

cudaError_t backward_bits(const Problem& problem, const TwoSlopes& slopes, const Launch& launch,
                          const RandomState& random, const void* dpenalty, bool dy_is_scalar) {
  return dispatch(problem, [&](auto element) {
    using E = typename decltype(element)::type;
    return backward_bits_of<E>(problem, slopes, launch, random, dpenalty, dy_is_scalar);
  });
}

}  // namespace cuda
}  // namespace actreg
