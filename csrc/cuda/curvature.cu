// Second derivatives: each thread calls core/curvature.h for one element at a time. Layer: cuda.
// Second derivatives are rare, so this code is short rather than fast.
#include "core/curvature.h"
#include "cuda/launch.cuh"

namespace actreg {
namespace cuda {
namespace {

template <class Act>
__global__ void __launch_bounds__(kThreads)
    curvature_kernel(const Act act, const Task task, const int64_t n, const RandomState random,
                     const double* dpenalty, const bool dy_is_scalar) {
  const Dropout dropout = drawn(task.dropout, random);
  const PenaltySums<double> slopes = task.penalty.slopes(dpenalty);
  const double *x = static_cast<const double*>(task.x), *dy = static_cast<const double*>(task.dy);
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += step) {
    const double gradient = dy ? dy[dy_is_scalar ? 0 : i] : 0;
    const uint32_t r = task.drops() ? random_bits(dropout, i) : 0;
    static_cast<double*>(task.out)[i] =
        actreg::curvature(act, x[i], gradient, r < dropout.threshold, r < task.counted,
                          dropout.scale, slopes.l1, 2 * slopes.l2);
  }
}

}  // namespace

cudaError_t curvature(const Problem& problem, const Launch& launch, const RandomState& random,
                      const void* dpenalty, bool dy_is_scalar) {
  cudaError_t error = cudaSuccess;
  visit_of_x(
      [&](auto act) {
        error = run<curvature_kernel<decltype(act)>>(
            (launch.n + kThreads - 1) / kThreads, launch, act, static_cast<const Task&>(problem),
            launch.n, random, static_cast<const double*>(dpenalty), dy_is_scalar);
      },
      problem);
  return error;
}

}  // namespace cuda
}  // namespace actreg
