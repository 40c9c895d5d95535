// The kernels of the temporal penalty, of every instruction set and on the emulated CUDA device,
// against one element at a time. Every buffer ends with its tensor, so sanitizers detect any access
// beyond.
#include <string>
#include <vector>

#include "core/temporal.h"
#include "cpu/kernels.h"
#include "cuda/temporal.h"
#include "expected.h"

namespace actreg {
namespace {

constexpr double kDsum = 0.75;

template <class E>
E infinity() {
  if constexpr (kIsHalf<E>) {
    return {static_cast<uint16_t>(std::is_same_v<E, Half> ? 0x7C00 : 0x7F80)};
  } else {
    return std::numeric_limits<E>::infinity();
  }
}

// h, weights and expected results. h is infinite where the weights are 0.
template <class E>
struct Case {
  using S = typename Format<E>::Scalar;
  Temporal task;
  Array<E> h, dh;
  Array<S> weights;
  std::vector<double> expected;
  double sum = 0;

  Case(int64_t outer, int64_t time, int64_t inner, int64_t repeat, int64_t channels)
      : h(outer * time * inner, inner % 2),
        dh(outer * time * inner, inner % 2),
        weights(outer / repeat * time * inner / channels, 0) {
    const bool is_weighted = repeat * channels > 1;
    task.element = ElementType<E>{};
    task.outer = outer, task.time = time, task.inner = inner;
    task.repeat = repeat, task.channels = channels, task.slope = 2 * kDsum;
    task.h = h.data(), task.dh = dh.data();
    if (is_weighted) task.weight = weights.data();
    std::mt19937 generator(7);
    const int64_t of_weights = outer / repeat * time * inner / channels;
    for (int64_t i = 0; i < of_weights; ++i) weights.data()[i] = S(generator() % 3) / 2;
    const int64_t n = task.size();
    std::vector<double> value(n), weight(n, 1), slope(n, 0);
    for (int64_t i = 0; i < n; ++i) {
      if (is_weighted) {
        weight[i] =
            weights.data()[(i / task.row() / repeat * task.row() + i % task.row() - i % inner) /
                               channels +
                           i % inner / channels];
      }
      value[i] = 1 + static_cast<int>(generator() % 32) / 8.0;  // exact in every type
      h.data()[i] = weight[i] == 0 ? infinity<E>() : Format<E>::encode(value[i]);
    }
    for (int64_t i = 0; i + inner < n; ++i) {
      if (i % task.row() >= task.pairs()) continue;
      const double pair = weight[i] * weight[i + inner], difference = value[i + inner] - value[i];
      sum += pair * difference * difference;
      slope[i] -= pair * difference, slope[i + inner] += pair * difference;
    }
    for (int64_t i = 0; i < n; ++i) expected.push_back(2 * kDsum * slope[i]);
  }

  bool agrees(double got) {
    bool equal = h.front_is_untouched() && dh.front_is_untouched() && is_near(got, sum, 1e-5);
    for (int64_t i = 0; i < task.size(); ++i) {
      const double dh_i = Format<E>::decode(dh.data()[i]);
      equal &= dh_i == expected[i] || is_close<E>(dh_i, expected[i], 64);
    }
    return equal;
  }
};

template <class E, class Run>
void test(const std::string& what, Run run) {
  bool equal = true;
  for (int64_t inner : {1, 3, 8, 63, 1024, 2050}) {
    for (int64_t time : {1, 2, 9, 67}) {
      if (inner > 1000 && time > 9) continue;
      for (int64_t channels : {int64_t{1}, inner % 3 == 0 ? int64_t{3} : inner}) {
        for (int64_t repeat : {1, 2}) {
          Case<E> one(inner > 1000 ? 2 : 6, time, inner, repeat, channels);
          equal &= one.agrees(run(one.task));
        }
      }
    }
  }
  check(equal, what + ": the temporal penalty against one element at a time");
}

template <class E>
void test_cpu(const cpu::Kernels& kernels, const char* element) {
  test<E>(std::string(kernels.name) + " " + element, [&](const Temporal& task) {
    double sum = 0;
    for (int64_t begin = 0, end = 0; begin < task.size(); begin = end) {
      end = std::min(task.size(), begin + 1500);
      sum += kernels.temporal(task, begin, end);
      kernels.temporal_backward(task, begin, end);
    }
    return sum;
  });
}

template <class E>
void test_cuda(const char* element) {
  using Sum = std::conditional_t<std::is_same_v<E, double>, double, float>;
  test<E>(std::string("CUDA ") + element, [](const Temporal& task) {
    static cuda::Workspace workspace{};
    const cuda::Launch launch{task.size(), 0, 3, nullptr};
    Sum sum = -1;
    const Sum dsum = kDsum;
    cuda::temporal(task, launch, &sum, &workspace);
    cuda::temporal_backward(task, launch, &dsum);
    return workspace.finished == 0 ? sum : NAN;
  });
}

}  // namespace

void test_temporal() {
  for (const cpu::Kernels* kernels : cpu::kAllKernels) {
    if (!kernels->is_supported()) continue;
    test_cpu<float>(*kernels, "float32");
    test_cpu<double>(*kernels, "float64");
    test_cpu<Half>(*kernels, "float16");
    test_cpu<BFloat16>(*kernels, "bfloat16");
  }
  test_cuda<float>("float32");
  test_cuda<double>("float64");
  test_cuda<Half>("float16");
  test_cuda<BFloat16>("bfloat16");
}

}  // namespace actreg
