// The kernels of all operators for one device, as far as devices are alike. Layer: torch.
//
// Note [Backends]
// A backend is a struct B with the static members below. From B, implement_backend<B>(library)
// registers all operators of a device.
//   Guard guard(device)                 makes `device` the current device while the guard lives
//   empty(sizes, type, device)          a new contiguous tensor
//   dense(sizes, strides, type, device) a new dense tensor, every element of which will be written
//   forward(problem, x, state, results) fills the tensors of `results`; if results.rng_state is
//                                       defined, draws the rng_state first
//   run_backward(kernel, problem, state, dy, dpenalty, dx, order)   fills dx by running `kernel`,
//                                       which is the result of one of the next three members
//   backward_kernel(), curvature_kernel(), backward_bits_kernel(slopes)
//   kReadsInPlace                       whether the kernels know Problem::x_at, dy_at and out_at
// `state` is rng_state, checked and contiguous. It is absent if the call needs no mask.
#pragma once

#include <tuple>
#include <vector>

#include "torch/dispatch.h"
#include "torch/rows.h"

namespace actreg {

// x itself if the kernels can read it, else a copy. Sets `at` to `map` if an address is needed.
template <class B>
Tensor readable(const Tensor& x, at::IntArrayRef order, IndexMap& map, const IndexMap*& at) {
  if (B::kReadsInPlace && !is_in_order(x, order) && x.numel() > 0 && address(x, order, map)) {
    at = &map;
    return x;
  }
  return in_order(x, order);
}

// A tensor that was saved for backward may come back with other strides. An undefined tensor counts
// as absent.
inline OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor && tensor->defined() ? OptionalTensor(tensor->contiguous()) : std::nullopt;
}

// `state` of Note [Backends].
inline OptionalTensor checked_state(const Problem& problem, bool is_needed,
                                    const OptionalTensor& rng_state, at::Device device) {
  if (!is_needed) return std::nullopt;
  check_rng_state(rng_state, device, problem.reads_threshold);
  return rng_state->contiguous();
}

// Writes y into `into`, which may be the input, or into a new tensor if `into` is undefined. If
// rng_state is null, the backend draws one, after all checks: a refused call does not move the
// generator.
template <class B>
Results forward_into(const Tensor& into, const Tensor& input, const OptionalTensor& row_weight,
                     const OptionalTensor* rng_state, const Attributes& attributes,
                     bool with_bits) {
  Problem problem = forward_problem(input, attributes);
  const at::Device device = input.device();
  General general;
  set_general(problem, general, input.sizes(), device, row_weight, attributes);
  OptionalTensor state;
  TORCH_CHECK_VALUE(rng_state || !problem.reads_threshold,
                    "actreg: forward_random needs p, because it draws no threshold");
  if (rng_state) state = checked_state(problem, problem.drops(), *rng_state, device);
  if (with_bits) bits_state(problem, attributes);
  [[maybe_unused]] const typename B::Guard guard(device);
  IndexMap address;
  const Tensor x = readable<B>(input, attributes.order, address, problem.x_at);
  if (into.defined()) problem.out_at = problem.x_at;
  Results results;
  results.y = into.defined() ? into
                             : B::dense(x.sizes(), strides_of(x.sizes(), attributes.order),
                                        x.scalar_type(), device);
  const auto shape = penalty_shape(attributes, x.sizes());
  results.penalty = B::empty(shape, penalty_type(x, attributes), device);
  if (!rng_state) results.rng_state = B::empty({2}, at::kLong, device);
  if (with_bits) {
    results.bits = B::empty({bytes_of_bits(x.numel())}, at::kByte, device);
    problem.bits = results.bits.template mutable_data_ptr<uint8_t>();
  }
  problem.x = x.const_data_ptr();
  problem.out = results.y.mutable_data_ptr();
  B::forward(problem, x, state, results);
  return results;
}

template <class B>
Results forward_on(const Tensor& x, const OptionalTensor& row_weight,
                   const OptionalTensor* rng_state, const Attributes& attributes, bool with_bits) {
  return forward_into<B>(Tensor(), x, row_weight, rng_state, attributes, with_bits);
}

template <class B>
std::tuple<Tensor, Tensor> forward_in_place_on(const Tensor& x, const OptionalTensor& rng_state,
                                               const Attributes& attributes, bool with_bits,
                                               const OptionalTensor& row_weight) {
  check_order(attributes.order, x.dim());
  Tensor into = writable(x, attributes.order);
  IndexMap map;
  if (B::kReadsInPlace && !into.defined() && x.numel() > 0 && address(x, attributes.order, map)) {
    into = x;
  }
  Results results = forward_into<B>(into, x, row_weight, &rng_state, attributes, with_bits);
  if (!results.y.is_same(x)) x.copy_(results.y);
  // An empty tensor takes no memory. So this cannot fail, now that x is overwritten.
  if (!with_bits) results.bits = B::empty({0}, at::kByte, x.device());
  return {std::move(results.penalty), std::move(results.bits)};
}

// dx or the curvature, computed from x.
template <class B, class Kernel>
Tensor from_x(Kernel kernel, Problem& problem, const OptionalTensor& dy,
              const OptionalTensor& dpenalty, const Tensor& input, const OptionalTensor& row_weight,
              const OptionalTensor& rng_state, const Attributes& attributes) {
  const at::Device device = input.device();
  const at::IntArrayRef order = attributes.order;
  General general;
  set_general(problem, general, input.sizes(), device, row_weight, attributes);
  const OptionalTensor state = checked_state(problem, problem.drops(), rng_state, device);
  [[maybe_unused]] const typename B::Guard guard(device);
  IndexMap address;
  const Tensor x = readable<B>(input, order, address, problem.x_at);
  const Tensor dx = B::dense(x.sizes(), strides_of(x.sizes(), order), x.scalar_type(), device);
  problem.x = x.const_data_ptr();
  B::run_backward(kernel, problem, state, dy, dpenalty, dx, order);
  return dx;
}

template <class B>
Tensor backward_on(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                   const OptionalTensor& rng_state, const Attributes& attributes, bool x_is_output,
                   const OptionalTensor& row_weight) {
  Problem problem = backward_problem(dy, dpenalty, x, attributes, x_is_output);
  return from_x<B>(B::backward_kernel(), problem, dy, dpenalty, x, row_weight, rng_state,
                   attributes);
}

// The curvature kernels exist for float64 only. So x and dy are converted to float64, and the
// result is converted to the dtype of x.
template <class B>
Tensor curvature_on(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                    const OptionalTensor& rng_state, const Attributes& attributes, bool x_is_output,
                    const OptionalTensor& row_weight) {
  Problem problem = backward_problem(dy, dpenalty, x, attributes, x_is_output);
  OptionalTensor wide_dy, wide_weight;
  if (dy) wide_dy = dy->to(at::kDouble);
  if (row_weight) wide_weight = row_weight->to(at::kDouble);
  Attributes rounded = attributes;
  std::vector<double> parameters = attributes.parameters.vec();
  if (x.scalar_type() != at::kDouble) {
    // forward and backward use the parameters as float. With the same rounding here, the kinks of
    // the activation are at the same x.
    for (double& parameter : parameters) parameter = static_cast<float>(parameter);
  }
  rounded.parameters = parameters;
  problem.activation = problem_of(rounded).activation;
  problem.element = ElementType<double>{};
  return from_x<B>(B::curvature_kernel(), problem, wide_dy, dpenalty, x.to(at::kDouble),
                   wide_weight, rng_state, attributes)
      .to(x.scalar_type());
}

template <class B>
Tensor backward_bits_on(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                        const OptionalTensor& bits, const OptionalTensor& rng_state,
                        const OptionalTensor& /*anchor*/, c10::SymIntArrayRef symbolic_sizes,
                        at::ScalarType dtype, const Attributes& attributes) {
  const at::IntArrayRef sizes = C10_AS_INTARRAYREF_SLOW(symbolic_sizes);
  BitsProblem made = bits_problem(dy, dpenalty, bits, sizes, dtype, attributes);
  const at::Device device = made.dx.device();
  const OptionalTensor state =
      checked_state(made.problem, made.problem.draws_again(), rng_state, device);
  [[maybe_unused]] const typename B::Guard guard(device);
  const OptionalTensor read = contiguous(bits);
  // Problem has one pointer to the bits: forward writes through it, backward only reads.
  if (read) made.problem.bits = const_cast<uint8_t*>(read->template const_data_ptr<uint8_t>());
  const Tensor dx = B::dense(sizes, strides_of(sizes, attributes.order), dtype, device);
  B::run_backward(B::backward_bits_kernel(made.slopes), made.problem, state, dy, dpenalty, dx,
                  attributes.order);
  return dx;
}

template <class B>
void implement_backend(torch::Library& library) {
  implement_forward<&forward_on<B>>(library);
  implement<ForwardInPlace, &forward_in_place_on<B>>(library);
  implement<Backward, &backward_on<B>>(library);
  implement<BackwardBits, &backward_bits_on<B>>(library);
  implement<Curvature, &curvature_on<B>>(library);
}

}  // namespace actreg
