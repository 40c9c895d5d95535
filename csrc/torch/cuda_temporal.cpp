// The temporal penalty on CUDA: memory and streams. Layer: torch.
#include <ATen/Functions.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/temporal.h"
#include "torch/cuda_workspaces.h"
#include "torch/operators.h"
#include "torch/temporal.h"

namespace actreg {
namespace {

cuda::Launch launch_for(const Tensor& h) {
  const c10::DeviceIndex device = h.device().index();
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  return {h.numel(), device, multiprocessors, c10::cuda::getCurrentCUDAStream(device)};
}

Tensor temporal_cuda(const Tensor& h, const OptionalTensor& weight, int64_t dim,
                     at::IntArrayRef order) {
  [[maybe_unused]] const c10::cuda::CUDAGuard guard(h.device());
  const TemporalInputs inputs = temporal_inputs(h, weight, dim, order);
  const Tensor sum = at::empty({}, h.options().dtype(accumulation_type(h)));
  const cuda::Launch launch = launch_for(h);
  C10_CUDA_CHECK(cuda::temporal(inputs.task, launch, sum.mutable_data_ptr(),
                                workspace_of(launch.device, launch.stream)));
  return sum;
}

Tensor temporal_backward_cuda(const Tensor& dsum, const Tensor& h, const OptionalTensor& weight,
                              int64_t dim, at::IntArrayRef order) {
  [[maybe_unused]] const c10::cuda::CUDAGuard guard(h.device());
  TemporalInputs inputs = temporal_inputs(h, weight, dim, order);
  const Tensor dh = at::empty_strided(h.sizes(), strides_of(h.sizes(), order), h.options());
  const Tensor slope = dsum.to(h.options().dtype(accumulation_type(h)));
  inputs.task.dh = dh.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::temporal_backward(inputs.task, launch_for(h), slope.const_data_ptr()));
  return dh;
}

}  // namespace

TORCH_LIBRARY_IMPL(actreg, CUDA, m) {
  m.impl("temporal", &temporal_cuda);
  m.impl("temporal_backward", &temporal_backward_cuda);
}

}  // namespace actreg
