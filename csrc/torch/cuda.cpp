// The operators on CUDA: memory, streams, the generator. Layer: torch. What CUDA shares with other
// devices is in backend.h. Only the first call on a stream waits for the device. Every call may be
// captured into a graph.
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/EmptyTensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <mutex>

#include "cuda/kernels.h"
#include "torch/backend.h"
#include "torch/cuda_workspaces.h"

namespace actreg {
namespace {

cuda::Launch launch(const Tensor& x) {
  const c10::DeviceIndex device = x.device().index();
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  return {x.numel(), device, multiprocessors, c10::cuda::getCurrentCUDAStream(device)};
}

// Draws from the default generator of the device of rng_state. The kernel will write the draw to
// rng_state.
cuda::RandomState draw(const Tensor& rng_state) {
  auto* generator = at::check_generator<at::CUDAGeneratorImpl>(
      at::cuda::detail::getDefaultCUDAGenerator(rng_state.device().index()));
  at::PhiloxCudaState state;
  {
    const std::lock_guard<std::mutex> lock(generator->mutex_);
    state = generator->philox_cuda_state(4);  // the smallest step that the generator allows
  }
  cuda::RandomState random;
  if (state.captured_) {
    random.seed_at = state.seed_.ptr;
    random.offset_at = state.offset_.ptr;
    random.offset = state.offset_intragraph_;
  } else {
    random.seed = state.seed_.val;
    random.offset = state.offset_.val;
  }
  random.drawn = rng_state.mutable_data_ptr<int64_t>();
  return random;
}

// The kernel will read {seed, offset} from `state`.
cuda::RandomState given(const OptionalTensor& state) {
  cuda::RandomState random;
  if (state) {
    random.seed_at = state->const_data_ptr<int64_t>();
    random.offset_at = random.seed_at + 1;
  }
  return random;
}

// Whether dy is one number for all elements, as y.sum().backward() makes it by expanding. A kernel
// then reads the number, and no tensor of the shape of y has to be written.
bool is_scalar(const OptionalTensor& dy, const Tensor& dx) {
  if (!dy || !dy->defined() || dy->numel() < 2 || dy->scalar_type() != dx.scalar_type()) {
    return false;
  }
  for (int64_t dim = 0; dim < dy->dim(); ++dim) {
    if (dy->size(dim) > 1 && dy->stride(dim) != 0) return false;
  }
  return true;
}

// The package computes the general form in PyTorch's operations. The operator itself refuses it:
// the flat kernels would ignore what makes it general.
void check_flat(const Problem& problem) {
  TORCH_CHECK_NOT_IMPLEMENTED(!problem.is_general,
                              "actreg: on CUDA there is no kernel for channel_dim, shared_dims, "
                              "shards, alpha dropout, or p in rng_state");
}

struct Cuda {  // see Note [Backends]
  static constexpr bool kReadsInPlace = false;
  using Guard = c10::cuda::CUDAGuard;
  static Tensor empty(at::IntArrayRef sizes, at::ScalarType type, at::Device device) {
    return at::detail::empty_cuda(sizes, type, device, std::nullopt);
  }
  static Tensor dense(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type,
                      at::Device device) {
    return at::detail::empty_strided_cuda(sizes, strides, type, device);
  }

  static void forward(const Problem& problem, const Tensor& x, const OptionalTensor& state,
                      Results& results) {
    check_flat(problem);
    const cuda::Launch grid = launch(x);
    cuda::Workspace* workspace = workspace_of(x.device().index(), grid.stream);
    const cuda::RandomState random =  // draws only after the last allocation, the workspace
        results.rng_state.defined() ? draw(results.rng_state) : given(state);
    C10_CUDA_CHECK(
        cuda::forward(problem, grid, random, results.penalty.mutable_data_ptr(), workspace));
  }

  static auto backward_kernel() { return &cuda::backward; }
  static auto curvature_kernel() { return &cuda::curvature; }
  static auto backward_bits_kernel(const TwoSlopes& slopes) {
    return [slopes](const Problem& problem, const auto&... rest) {
      return cuda::backward_bits(problem, slopes, rest...);
    };
  }
  template <class Kernel>
  static void run_backward(Kernel kernel, Problem& problem, const OptionalTensor& state,
                           const OptionalTensor& dy, const OptionalTensor& dpenalty,
                           const Tensor& dx, at::IntArrayRef order) {
    check_flat(problem);
    const bool dy_is_scalar = is_scalar(dy, dx);
    Tensor gradient, slope;
    if (dy && dy->defined()) gradient = dy_is_scalar ? *dy : in_order_of(dx, dy, order);
    if (dpenalty && dpenalty->defined()) slope = dpenalty->to(accumulation_type(dx)).contiguous();
    problem.dy = gradient.defined() ? gradient.const_data_ptr() : nullptr;
    problem.out = dx.mutable_data_ptr();
    C10_CUDA_CHECK(kernel(problem, launch(dx), given(state),
                          slope.defined() ? slope.const_data_ptr() : nullptr, dy_is_scalar));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(actreg, CUDA, m) { implement_backend<Cuda>(m); }

}  // namespace actreg
