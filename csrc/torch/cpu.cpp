// The operators on the CPU: memory, threads, the generator, the choice of instruction set.
// Layer: torch.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <mutex>
#include <string>

#include "cpu/kernels.h"
#include "torch/cpu_capability.h"
#include "torch/cpu_memory.h"
#include "torch/operators.h"

namespace actreg {

// The best that the CPU has, and not beyond what torch uses, which ATEN_CPU_CAPABILITY limits.
const cpu::Kernels& cpu_kernels() {
  static const cpu::Kernels& chosen = []() -> const cpu::Kernels& {
    const std::string limit = at::get_cpu_capability();
    bool allowed = limit != "AVX512" && limit != "AVX2" && limit != "DEFAULT";  // not x86-64
    for (const cpu::Kernels* kernels : cpu::kAllKernels) {
      allowed = allowed || limit == kernels->name;
      if (allowed && kernels->is_supported()) return *kernels;
    }
    return cpu::kDefault;
  }();
  return chosen;
}

namespace {

// A partial sum's share, and a thread's least. Fixed, so that the sums do not depend on the number
// of threads. Half as many cost a thread 1 % (48 K to 1 M elements), these at most 0.4.
constexpr int64_t kChunk = 8 * cpu::kBlock;

// Elements beyond which a second thread pays, and chunks for each thread. To wake one takes 1 us:
// it breaks even at 2 us of work, below 8 K elements that draw a mask and at 20 to 24 K of relu.
int64_t worth_sharing(bool draws) { return draws ? 12288 : 28672; }
int64_t grain(bool draws) { return draws ? 1 : 3; }

// Calls f(chunk, begin, end) for each chunk of [0, n), in parallel if there are enough.
template <class F>
void for_each_chunk(int64_t n, bool draws, F f) {
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      f(chunk, chunk * kChunk, std::min(n, (chunk + 1) * kChunk));
    }
  };
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  if (n > worth_sharing(draws)) {
    at::parallel_for(0, chunks, grain(draws), run);
  } else {
    run(0, chunks);
  }
}

// One 64-bit draw: what torch.randint(-2**63, 2**63 - 1, ()) returns, without its overhead.
int64_t draw_seed() {
  auto* generator = at::check_generator<at::CPUGeneratorImpl>(at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  const uint64_t range = ~uint64_t{0}, lowest = uint64_t{1} << 63;
  return static_cast<int64_t>(generator->random64() % range + lowest);
}

// {seed, offset} where there is dropout, once they are known to be there.
void read_rng_state(Problem& problem, const OptionalTensor& rng_state) {
  if (!problem.drops()) return;
  check_rng_state(rng_state, at::kCPU);
  const Tensor contiguous = rng_state->contiguous();
  const int64_t* state = contiguous.const_data_ptr<int64_t>();
  problem.dropout.seed = static_cast<uint64_t>(state[0]);
  problem.dropout.offset = static_cast<uint64_t>(state[1]);
}

void read_gradient(Problem& problem, const OptionalTensor& dpenalty) {
  if (!dpenalty || !dpenalty->defined()) return;
  const Tensor wide = dpenalty->to(at::kDouble).contiguous();
  const PenaltySums<double> c = problem.penalty.slopes(wide.const_data_ptr<double>());
  problem.c1 = c.l1;
  problem.c2_twice = 2 * c.l2;
}

struct Results {
  Tensor y, penalty, bits;
};

// A new tensor, in that order.
Tensor like(const Tensor& x, at::IntArrayRef order) {
  return new_dense(x.sizes(), strides_of(x.sizes(), order), x.scalar_type());
}

// Into a new tensor, or into `into`, which may be the input.
Results run_forward(Problem& problem, const Tensor& input, const Attributes& attributes,
                    bool with_bits = false, const Tensor& into = Tensor()) {
  if (with_bits) bits_state(problem, attributes);
  const Tensor x = in_order(input, attributes.order);
  Tensor y = into.defined() ? into : like(x, attributes.order), bits,
         penalty = at::detail::empty_cpu(penalty_shape(attributes), accumulation_type(x));
  problem.x = x.const_data_ptr();
  problem.out = y.mutable_data_ptr();
  if (with_bits) {
    bits = at::detail::empty_cpu({bytes_of_bits(x.numel())}, at::kByte);
    problem.bits = bits.mutable_data_ptr<uint8_t>();
  }
  const int64_t n = x.numel();
  c10::SmallVector<PenaltySums<double>, 64> partial((n + kChunk - 1) / kChunk);
  for_each_chunk(n, problem.drops(), [&](int64_t chunk, int64_t begin, int64_t end) {
    partial[chunk] = cpu_kernels().forward(problem, begin, end);
  });
  PenaltySums<double> total{0, 0};
  for (const auto& sums : partial) total.l1 += sums.l1, total.l2 += sums.l2;
  if (penalty.scalar_type() == at::kDouble) {
    problem.penalty.finish(total, penalty.mutable_data_ptr<double>());
  } else {
    problem.penalty.finish(total, penalty.mutable_data_ptr<float>());
  }
  return {std::move(y), std::move(penalty), std::move(bits)};
}

Results run_given(const Tensor& x, const OptionalTensor& rng_state, const Attributes& attributes,
                  bool with_bits, const Tensor& into = Tensor()) {
  Problem problem = forward_problem(x, attributes);
  read_rng_state(problem, rng_state);
  return run_forward(problem, x, attributes, with_bits, into);
}
std::pair<Results, Tensor> run_random(const Tensor& x, const Attributes& attributes,
                                      bool with_bits) {
  Problem problem = forward_problem(x, attributes);  // throws before the generator moves
  Tensor rng_state = at::detail::empty_cpu({2}, at::kLong);
  int64_t* state = rng_state.mutable_data_ptr<int64_t>();
  state[0] = draw_seed();
  state[1] = 0;
  read_rng_state(problem, rng_state);
  return {run_forward(problem, x, attributes, with_bits), std::move(rng_state)};
}

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& x, const OptionalTensor& rng_state,
                                       ACTREG_ATTRIBUTES) {
  auto [y, penalty, none] = run_given(x, rng_state, {ACTREG_ATTRIBUTE_NAMES}, false);
  return {std::move(y), std::move(penalty)};
}
std::tuple<Tensor, Tensor, Tensor> forward_random_cpu(const Tensor& x, ACTREG_ATTRIBUTES) {
  auto [results, rng_state] = run_random(x, {ACTREG_ATTRIBUTE_NAMES}, false);
  return {std::move(results.y), std::move(results.penalty), std::move(rng_state)};
}
std::tuple<Tensor, Tensor, Tensor> forward_bits_cpu(const Tensor& x,
                                                    const OptionalTensor& rng_state,
                                                    ACTREG_ATTRIBUTES) {
  auto [y, penalty, bits] = run_given(x, rng_state, {ACTREG_ATTRIBUTE_NAMES}, true);
  return {std::move(y), std::move(penalty), std::move(bits)};
}
std::tuple<Tensor, Tensor, Tensor, Tensor> forward_random_bits_cpu(const Tensor& x,
                                                                   ACTREG_ATTRIBUTES) {
  auto [results, rng_state] = run_random(x, {ACTREG_ATTRIBUTE_NAMES}, true);
  return {std::move(results.y), std::move(results.penalty), std::move(rng_state),
          std::move(results.bits)};
}

std::tuple<Tensor, Tensor> forward_in_place_cpu(const Tensor& x, const OptionalTensor& rng_state,
                                                ACTREG_ATTRIBUTES, bool with_bits) {
  check_order(order, x.dim());
  auto [y, penalty, bits] =
      run_given(x, rng_state, {ACTREG_ATTRIBUTE_NAMES}, with_bits, writable(x, order));
  if (!y.is_same(x)) x.copy_(y);
  if (!with_bits)
    bits = at::detail::empty_cpu(
        {0}, at::kByte);  // takes no memory, so nothing can fail after x is written
  return {std::move(penalty), std::move(bits)};
}

template <class Kernel>
Tensor run_backward(Kernel kernel, Problem problem, const OptionalTensor& dy,
                    const OptionalTensor& dpenalty, const Tensor& input,
                    const OptionalTensor& rng_state, at::IntArrayRef order) {
  read_rng_state(problem, rng_state);
  read_gradient(problem, dpenalty);
  const Tensor x = in_order(input, order), gradient = in_order_of(x, dy, order);
  Tensor dx = like(x, order);
  problem.x = x.const_data_ptr();
  problem.dy = gradient.const_data_ptr();
  problem.out = dx.mutable_data_ptr();
  for_each_chunk(x.numel(), problem.drops(),
                 [&](int64_t, int64_t begin, int64_t end) { kernel(problem, begin, end); });
  return dx;
}

Tensor backward_cpu(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                    const OptionalTensor& rng_state, ACTREG_ATTRIBUTES, bool x_is_output) {
  return run_backward(cpu_kernels().backward,
                      backward_problem(dy, dpenalty, x, {ACTREG_ATTRIBUTE_NAMES}, x_is_output), dy,
                      dpenalty, x, rng_state, order);
}

Tensor backward_bits_cpu(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                         const OptionalTensor& bits, const OptionalTensor& rng_state,
                         const OptionalTensor&, at::IntArrayRef sizes, at::ScalarType dtype,
                         ACTREG_ATTRIBUTES) {
  BitsProblem made =
      bits_problem(dy, dpenalty, bits, rng_state, sizes, dtype, {ACTREG_ATTRIBUTE_NAMES});
  Problem& problem = made.problem;
  if (problem.draws_again()) read_rng_state(problem, rng_state);
  read_gradient(problem, dpenalty);
  Tensor dx = new_dense(sizes, strides_of(sizes, order), dtype);
  const Tensor gradient = in_order_of(dx, dy, order);
  const OptionalTensor marks = contiguous(bits);
  problem.bits = address_of(marks);
  problem.dy = gradient.const_data_ptr();
  problem.out = dx.mutable_data_ptr();
  for_each_chunk(dx.numel(), problem.draws_again(), [&](int64_t, int64_t begin, int64_t end) {
    cpu_kernels().backward_bits(problem, made.slopes, begin, end);
  });
  return dx;
}

Tensor curvature_cpu(const OptionalTensor& dy, const OptionalTensor& dpenalty, const Tensor& x,
                     const OptionalTensor& rng_state, ACTREG_ATTRIBUTES, bool x_is_output) {
  const auto run = [&](const Problem& problem, const OptionalTensor& wide_dy,
                       const Tensor& wide_x) {
    return run_backward(cpu::curvature, problem, wide_dy, dpenalty, wide_x, rng_state, order);
  };
  return in_double(run, dy, dpenalty, x, {ACTREG_ATTRIBUTE_NAMES}, x_is_output);
}

}  // namespace

TORCH_LIBRARY_IMPL(actreg, CPU, m) {
  m.impl("forward", &forward_cpu);
  m.impl("forward_random", &forward_random_cpu);
  m.impl("forward_", &forward_in_place_cpu);
  m.impl("backward", &backward_cpu);
  m.impl("forward_bits", &forward_bits_cpu);
  m.impl("forward_random_bits", &forward_random_bits_cpu);
  m.impl("backward_bits", &backward_bits_cpu);
  m.impl("curvature", &curvature_cpu);
}

}  // namespace actreg
