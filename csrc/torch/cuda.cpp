// The operators on CUDA: memory, streams, the generator. Layer: torch.
// Nothing here waits for the device, but the first call on a stream, and all of it may be captured
// into a graph.
#include <ATen/Functions.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/EmptyTensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <mutex>

#include "cuda/kernels.h"
#include "torch/cuda_workspaces.h"
#include "torch/operators.h"

namespace actreg {
namespace {

Tensor empty(at::IntArrayRef shape, at::ScalarType type, const Tensor& on) {
  return at::detail::empty_cuda(shape, type, on.device(), std::nullopt);
}
Tensor like(const Tensor& x, at::IntArrayRef order) {
  return at::detail::empty_strided_cuda(x.sizes(), strides_of(x.sizes(), order), x.scalar_type(),
                                        x.device());
}

cuda::Launch launch(const Tensor& x, cudaStream_t stream) {
  const int device = x.device().index();
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  return {x.numel(), device, multiprocessors, stream};
}

// The state of the default generator of x's device, which moves on.
cuda::RandomState draw(const Tensor& x, const Tensor& rng_state) {
  auto* generator = at::check_generator<at::CUDAGeneratorImpl>(
      at::cuda::detail::getDefaultCUDAGenerator(x.device().index()));
  at::PhiloxCudaState state;
  {
    const std::lock_guard<std::mutex> lock(generator->mutex_);
    state = generator->philox_cuda_state(4);  // the least step that it allows
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

cuda::RandomState given(const Problem& problem, const OptionalTensor& rng_state) {
  cuda::RandomState random;
  if (problem.drops()) {
    random.seed_at = rng_state->const_data_ptr<int64_t>();
    random.offset_at = random.seed_at + 1;
  }
  return random;
}

struct Results {
  Tensor y, penalty, bits;
};

// Into a new tensor, or into `into`, which may be the input. Everything is
// allocated before the generator moves, and that before the launch.
template <class Random>
Results run_forward(Problem& problem, const Tensor& input, const Attributes& attributes,
                    bool with_bits, Random random, const Tensor& into = Tensor()) {
  if (with_bits) bits_state(problem, attributes);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto stream = c10::cuda::getCurrentCUDAStream(input.device().index());
  const Tensor x = in_order(input, attributes.order);
  Tensor y = into.defined() ? into : like(x, attributes.order), bits,
         penalty = empty(penalty_shape(attributes), accumulation_type(x), x);
  if (with_bits) {
    bits = empty({bytes_of_bits(x.numel())}, at::kByte, x);
    problem.bits = bits.mutable_data_ptr<uint8_t>();
  }
  cuda::Workspace* workspace = workspace_of(x.device().index(), stream);
  problem.x = x.const_data_ptr();
  problem.out = y.mutable_data_ptr();
  const cuda::Launch grid = launch(x, stream);
  C10_CUDA_CHECK(cuda::forward(problem, grid, random(), penalty.mutable_data_ptr(), workspace));
  return {std::move(y), std::move(penalty), std::move(bits)};
}

Results run_given(const Tensor& x, const OptionalTensor& rng_state, const Attributes& attributes,
                  bool with_bits, const Tensor& into = Tensor()) {
  Problem problem = forward_problem(x, attributes);
  if (problem.drops()) check_rng_state(rng_state, x.device());
  const OptionalTensor state = contiguous(rng_state);
  return run_forward(
      problem, x, attributes, with_bits, [&] { return given(problem, state); }, into);
}
std::pair<Results, Tensor> run_random(const Tensor& x, const Attributes& attributes,
                                      bool with_bits) {
  Problem problem = forward_problem(x, attributes);
  Tensor rng_state = empty({2}, at::kLong, x);
  return {run_forward(problem, x, attributes, with_bits, [&] { return draw(x, rng_state); }),
          rng_state};
}

std::tuple<Tensor, Tensor> forward_cuda(const Tensor& x, const OptionalTensor& rng_state,
                                        ACTREG_ATTRIBUTES) {
  auto [y, penalty, none] = run_given(x, rng_state, {ACTREG_ATTRIBUTE_NAMES}, false);
  return {std::move(y), std::move(penalty)};
}
std::tuple<Tensor, Tensor, Tensor> forward_random_cuda(const Tensor& x, ACTREG_ATTRIBUTES) {
  auto [results, rng_state] = run_random(x, {ACTREG_ATTRIBUTE_NAMES}, false);
  return {std::move(results.y), std::move(results.penalty), std::move(rng_state)};
}
std::tuple<Tensor, Tensor, Tensor> forward_bits_cuda(const Tensor& x,
                                                     const OptionalTensor& rng_state,
                                                     ACTREG_ATTRIBUTES) {
  auto [y, penalty, bits] = run_given(x, rng_state, {ACTREG_ATTRIBUTE_NAMES}, true);
  return {std::move(y), std::move(penalty), std::move(bits)};
}
std::tuple<Tensor, Tensor, Tensor, Tensor> forward_random_bits_cuda(const Tensor& x,
                                                                    ACTREG_ATTRIBUTES) {
  auto [results, rng_state] = run_random(x, {ACTREG_ATTRIBUTE_NAMES}, true);
  return {std::move(results.y), std::move(results.penalty), std::move(rng_state),
          std::move(results.bits)};
}

std::tuple<Tensor, Tensor> forward_in_place_cuda(const Tensor& x, const OptionalTensor& rng_state,
                                                 ACTREG_ATTRIBUTES, bool with_bits) {
  check_order(order, x.dim());
  auto [y, penalty, bits] =
      run_given(x, rng_state, {ACTREG_ATTRIBUTE_NAMES}, with_bits, writable(x, order));
  if (!y.is_same(x)) x.copy_(y);
  if (!with_bits)
    bits = empty({0}, at::kByte, x);  // takes no memory, so nothing can fail after x is written
  return {std::move(penalty), std::move(bits)};
}

// y.sum().backward() expands one number to the shape of y: no need to write it out.
bool is_scalar(const OptionalTensor& dy, const Tensor& x) {
  if (!dy || !dy->defined() || dy->numel() < 2 || dy->scalar_type() != x.scalar_type()) {
    return false;
  }
  for (int64_t dim = 0; dim < dy->dim(); ++dim) {
    if (dy->size(dim) > 1 && dy->stride(dim) != 0) return false;
  }
  return true;
}

// Fills dx by kernel(launch, dpenalty, dy_is_scalar).
template <class Kernel>
Tensor launch_backward(Problem& problem, const OptionalTensor& dy, const OptionalTensor& dpenalty,
                       const Tensor& dx, at::IntArrayRef order, Kernel kernel) {
  const auto stream = c10::cuda::getCurrentCUDAStream(dx.device().index());
  const bool dy_is_scalar = is_scalar(dy, dx);
  Tensor gradient, slope;
  if (dy && dy->defined()) gradient = dy_is_scalar ? *dy : in_order_of(dx, dy, order);
  if (dpenalty && dpenalty->defined()) slope = dpenalty->to(accumulation_type(dx)).contiguous();
  problem.dy = gradient.defined() ? gradient.const_data_ptr() : nullptr;
  problem.out = dx.mutable_data_ptr();
  C10_CUDA_CHECK(
      kernel(launch(dx, stream), slope.defined() ? slope.const_data_ptr() : nullptr, dy_is_scalar));
  return dx;
}

template <class Kernel>
Tensor run_backward(Kernel kernel, Problem problem, const OptionalTensor& dy,
                    const OptionalTensor& dpenalty, const Tensor& input,
                    const OptionalTensor& rng_state, at::IntArrayRef order) {
  if (problem.drops()) check_rng_state(rng_state, input.device());
  const c10::cuda::CUDAGuard guard(input.device());
  const OptionalTensor state = contiguous(rng_state);
  const Tensor x = in_order(input, order);
  problem.x = x.const_data_ptr();
  return launch_backward(problem, dy, dpenalty, like(x, order), order,
                         [&](const cuda::Launch& grid, const void* slope, bool dy_is_scalar) {
                           return kernel(problem, grid, given(problem, state), slope, dy_is_scalar);
                         });
}

Tensor backward_bits_cuda(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                          const OptionalTensor& bits, const OptionalTensor& rng_state,
                          const OptionalTensor&, at::IntArrayRef sizes, at::ScalarType dtype,
                          ACTREG_ATTRIBUTES) {
  BitsProblem made =
      bits_problem(dy, dpenalty, bits, rng_state, sizes, dtype, {ACTREG_ATTRIBUTE_NAMES});
  const c10::cuda::CUDAGuard guard(made.dx.device());
  const OptionalTensor state = contiguous(rng_state), marks = contiguous(bits);
  cuda::RandomState random;
  if (made.problem.draws_again()) random = given(made.problem, state);
  const Tensor dx =
      at::detail::empty_strided_cuda(sizes, strides_of(sizes, order), dtype, made.dx.device());
  made.problem.bits = address_of(marks);
  return launch_backward(made.problem, dy, dpenalty, dx, order,
                         [&](const cuda::Launch& grid, const void* slope, bool dy_is_scalar) {
                           return cuda::backward_bits(made.problem, made.slopes, grid, random,
                                                      slope, dy_is_scalar);
                         });
}

Tensor backward_cuda(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                     const OptionalTensor& rng_state, ACTREG_ATTRIBUTES, bool x_is_output) {
  return run_backward(cuda::backward,
                      backward_problem(dy, dpenalty, x, {ACTREG_ATTRIBUTE_NAMES}, x_is_output), dy,
                      dpenalty, x, rng_state, order);
}

Tensor curvature_cuda(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                      const OptionalTensor& rng_state, ACTREG_ATTRIBUTES, bool x_is_output) {
  const auto run = [&](const Problem& problem, const OptionalTensor& wide_dy,
                       const Tensor& wide_x) {
    return run_backward(cuda::curvature, problem, wide_dy, dpenalty, wide_x, rng_state, order);
  };
  return in_double(run, dy, dpenalty, x, {ACTREG_ATTRIBUTE_NAMES}, x_is_output);
}

}  // namespace

TORCH_LIBRARY_IMPL(actreg, CUDA, m) {
  m.impl("forward", &forward_cuda);
  m.impl("forward_random", &forward_random_cuda);
  m.impl("forward_bits", &forward_bits_cuda);
  m.impl("forward_random_bits", &forward_random_bits_cuda);
  m.impl("forward_", &forward_in_place_cuda);
  m.impl("backward", &backward_cuda);
  m.impl("backward_bits", &backward_bits_cuda);
  m.impl("curvature", &curvature_cuda);
}

}  // namespace actreg
