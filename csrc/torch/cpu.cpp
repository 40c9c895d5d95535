// The operators on the CPU: memory, threads, the generator, the choice of instruction set.
// Layer: torch. What the CPU shares with other devices is in backend.h.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "torch/backend.h"
#include "torch/cpu_capability.h"
#include "torch/cpu_memory.h"

namespace actreg {

// The best instruction set that the CPU has and that torch uses too. The environment variable
// ATEN_CPU_CAPABILITY limits what torch uses.
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

using cpu::kChunk;

// The number of elements above which several threads work. Waking a second thread takes about 1 us,
// so that two threads break even where one thread works for 2 us: below 8 K elements if a mask is
// drawn, at 20 to 24 K elements of relu without one.
int64_t worth_sharing(bool draws) { return draws ? 12288 : 28672; }
// The least number of chunks that a thread takes.
int64_t grain(bool draws) { return draws ? 1 : 3; }

// Calls f(chunk, begin, end) for each chunk of [0, n): in parallel if n is large enough.
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

void finish(const Penalty& penalty, const PenaltySums<double>& total, const Tensor& to) {
  if (to.scalar_type() == at::kDouble) {
    penalty.finish(total, to.mutable_data_ptr<double>());
  } else {
    penalty.finish(total, to.mutable_data_ptr<float>());
  }
}

// One 64-bit draw: what torch.randint(-2**63, 2**63 - 1, ()) returns, without its overhead.
int64_t draw_seed() {
  auto* generator = at::check_generator<at::CPUGeneratorImpl>(at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  const uint64_t range = ~uint64_t{0}, lowest = uint64_t{1} << 63;
  return static_cast<int64_t>(generator->random64() % range + lowest);
}

// rng_state is a contiguous tensor {seed, offset}, or {seed, offset, threshold}.
void read_rng_state(Problem& problem, const Tensor& rng_state) {
  problem.set_state(rng_state.const_data_ptr<int64_t>());
}

// Returns the memory of the coefficients, if there are channels.
Tensor read_gradient(Problem& problem, const OptionalTensor& dpenalty) {
  if (Rows* rows = problem.rows) {
    const Tensor both = coefficients_of(problem, *rows, dpenalty.value_or(Tensor()));
    rows->c1 = both.const_data_ptr();
    rows->c2_twice = both.select(0, 1).const_data_ptr();
    return both;
  }
  if (!dpenalty || !dpenalty->defined()) return {};
  const Tensor wide = dpenalty->to(at::kDouble).contiguous();
  const PenaltySums<double> c = problem.penalty.slopes(wide.const_data_ptr<double>());
  problem.c1 = c.l1;
  problem.c2_twice = 2 * c.l2;
  return {};
}

// Forward of a problem with channels, weights or alpha dropout: see Note [Sums over rows].
void forward_rows(const Problem& problem, int64_t n, Results& results) {
  const Rows rows = problem.rows ? *problem.rows : Rows();
  const cpu::SumPlan plan(n, rows.channels, rows.inner);
  const std::unique_ptr<double[]> sums(new double[plan.doubles()]);
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      cpu_kernels().forward_rows(problem, plan, task, sums.get());
    }
  };
  if (n > worth_sharing(problem.drops())) {
    at::parallel_for(0, plan.tasks(), 1, run);
  } else {
    run(0, plan.tasks());
  }
  const Penalty& penalty = problem.penalty;
  if (penalty.is_weighted || !problem.rows) {
    std::vector<double> folded(3 * rows.channels);
    plan.fold(sums.get(), {&folded[0], &folded[rows.channels], &folded[2 * rows.channels]});
    PenaltySums<double> total{0, 0};
    for (int64_t c = 0; c < rows.channels; ++c) {
      total.l1 += folded[c], total.l2 += folded[rows.channels + c];
    }
    finish(penalty, total, results.penalty);
    return;
  }
  double* out = results.penalty.mutable_data_ptr<double>();
  plan.fold(sums.get(), {out, out + rows.channels, out + 2 * rows.channels});
  for (int64_t c = 0; c < rows.channels; ++c) {
    out[c] *= penalty.s, out[rows.channels + c] *= penalty.s * penalty.s;
  }
}

struct Cpu {  // see Note [Backends]
  static constexpr bool kReadsInPlace = true;
  struct Guard {
    explicit Guard(at::Device) {}
  };
  static Tensor empty(at::IntArrayRef sizes, at::ScalarType type, at::Device) {
    return at::detail::empty_cpu(sizes, type);
  }
  static Tensor dense(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type,
                      at::Device) {
    return new_dense(sizes, strides, type);
  }

  static void forward(Problem& problem, const Tensor& x, const OptionalTensor& state,
                      Results& results) {
    if (state) read_rng_state(problem, *state);
    if (results.rng_state.defined()) {
      int64_t* drawn = results.rng_state.mutable_data_ptr<int64_t>();
      drawn[0] = draw_seed();
      drawn[1] = 0;
      read_rng_state(problem, results.rng_state);
    }
    const int64_t n = x.numel();
    if (n == 0) {
      results.penalty.zero_();
      return;
    }
    if (problem.rows || problem.is_alpha) return forward_rows(problem, n, results);
    c10::SmallVector<PenaltySums<double>, 64> partial((n + kChunk - 1) / kChunk);
    for_each_chunk(n, problem.drops(), [&](int64_t chunk, int64_t begin, int64_t end) {
      partial[chunk] = cpu_kernels().forward(problem, begin, end);
    });
    PenaltySums<double> total{0, 0};
    for (const auto& sums : partial) total.l1 += sums.l1, total.l2 += sums.l2;
    finish(problem.penalty, total, results.penalty);
  }

  static auto backward_kernel() {
    return [](const Problem& problem, int64_t begin, int64_t end) {
      const auto& kernels = cpu_kernels();
      (problem.rows ? kernels.backward_rows : kernels.backward)(problem, begin, end);
    };
  }
  static auto curvature_kernel() { return &cpu::curvature; }
  static auto backward_bits_kernel(const TwoSlopes& slopes) {
    return [slopes](const Problem& problem, int64_t begin, int64_t end) {
      cpu_kernels().backward_bits(problem, slopes, begin, end);
    };
  }
  template <class Kernel>
  static void run_backward(Kernel kernel, Problem& problem, const OptionalTensor& state,
                           const OptionalTensor& dy, const OptionalTensor& dpenalty,
                           const Tensor& dx, at::IntArrayRef order) {
    if (dx.numel() == 0) return;
    if (state) read_rng_state(problem, *state);
    const Tensor coefficients = read_gradient(problem, dpenalty);
    IndexMap address;
    const bool has_same_type = dy && dy->defined() && dy->scalar_type() == dx.scalar_type();
    const Tensor gradient = has_same_type ? readable<Cpu>(*dy, order, address, problem.dy_at)
                                          : in_order_of(dx, dy, order);
    problem.dy = gradient.const_data_ptr();
    problem.out = dx.mutable_data_ptr();
    for_each_chunk(dx.numel(), state.has_value(),
                   [&](int64_t, int64_t begin, int64_t end) { kernel(problem, begin, end); });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(actreg, CPU, m) { implement_backend<Cpu>(m); }

}  // namespace actreg
