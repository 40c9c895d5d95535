// The temporal penalty on the CPU: memory, threads, the choice of instruction set. Layer: torch.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "torch/cpu_capability.h"
#include "torch/cpu_memory.h"
#include "torch/operators.h"
#include "torch/temporal.h"

namespace actreg {
namespace {

using cpu::kChunk;
// A time step with more elements is wide. At 65536 float32 elements a part in a row is 10 % faster,
// at 262144 elements the part of a wide step (2 MB of second-level cache).
constexpr int64_t kWide = 65536;
// Time steps that one part of a wide tensor takes.
constexpr int64_t kSteps = 64;
// With fewer elements one thread does all.
constexpr int64_t kWorthSharing = 28672;

// Note [Wide steps]
// How the elements are cut into parts: a part has its own partial sum, and one thread computes it.
// The cut depends on the shape alone, so the sum is the same for any number of threads.
// A part is kChunk elements in a row, in memory order. Then the loop reads h at two places that are
// one time step apart. If a time step is wide, its elements have left the cache before the loop
// comes to the next step, and memory would be read twice. Then a part is kChunk elements of a step,
// in kSteps steps.
class Parts {
 public:
  explicit Parts(const Temporal& task) : task_(task), is_wide_(task.inner > kWide) {}

  // Calls f(part, begin, end) for all ranges of elements, in parallel if there are many elements.
  template <class F>
  void for_each_range(F f) const {
    const auto run = [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) ranges_of(part, f);
    };
    if (task_.size() > kWorthSharing) {
      at::parallel_for(0, count(), 1, run);
    } else {
      run(0, count());
    }
  }
  int64_t count() const {
    if (!is_wide_) return (task_.size() + kChunk - 1) / kChunk;
    return task_.outer * panels() * blocks();
  }

 private:
  const Temporal& task_;
  bool is_wide_;

  int64_t panels() const { return (task_.inner + kChunk - 1) / kChunk; }
  int64_t blocks() const { return (task_.time + kSteps - 1) / kSteps; }

  template <class F>
  void ranges_of(int64_t part, F f) const {
    if (!is_wide_) return f(part, part * kChunk, std::min(task_.size(), (part + 1) * kChunk));
    const int64_t block = part % blocks(), panel = part / blocks() % panels();
    const int64_t outer = part / blocks() / panels();
    const int64_t last = std::min(task_.time, (block + 1) * kSteps);
    for (int64_t t = block * kSteps; t < last; ++t) {
      const int64_t step = (outer * task_.time + t) * task_.inner;
      f(part, step + panel * kChunk, step + std::min(task_.inner, (panel + 1) * kChunk));
    }
  }
};

Tensor temporal_cpu(const Tensor& h, const OptionalTensor& weight, int64_t dim,
                    at::IntArrayRef order) {
  const TemporalInputs inputs = temporal_inputs(h, weight, dim, order);
  const Parts parts(inputs.task);
  std::vector<double> partial(parts.count());
  parts.for_each_range([&](int64_t part, int64_t begin, int64_t end) {
    partial[part] += cpu_kernels().temporal(inputs.task, begin, end);
  });
  double total = 0;
  for (const double part : partial) total += part;
  const Tensor sum = at::detail::empty_cpu({}, accumulation_type(h));
  if (sum.scalar_type() == at::kDouble) {
    *sum.mutable_data_ptr<double>() = total;
  } else {
    *sum.mutable_data_ptr<float>() = static_cast<float>(total);
  }
  return sum;
}

Tensor temporal_backward_cpu(const Tensor& dsum, const Tensor& h, const OptionalTensor& weight,
                             int64_t dim, at::IntArrayRef order) {
  TemporalInputs inputs = temporal_inputs(h, weight, dim, order);
  const Tensor dh = new_dense(h.sizes(), strides_of(h.sizes(), order), h.scalar_type());
  inputs.task.dh = dh.mutable_data_ptr();
  inputs.task.slope = 2 * dsum.item<double>();
  Parts(inputs.task).for_each_range([&](int64_t, int64_t begin, int64_t end) {
    cpu_kernels().temporal_backward(inputs.task, begin, end);
  });
  return dh;
}

}  // namespace

TORCH_LIBRARY_IMPL(actreg, CPU, m) {
  m.impl("temporal", &temporal_cpu);
  m.impl("temporal_backward", &temporal_backward_cpu);
}

}  // namespace actreg
