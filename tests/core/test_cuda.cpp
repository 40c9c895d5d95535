// The CUDA kernels on the emulated device, compared with the operator for one element. The results
// must have the same bits for any grid, alignment and order of threads and blocks.
#include <cstdio>
#include <cstring>
#include <string>

#include "cuda/kernels.h"
#include "expected.h"

namespace actreg {
namespace {

constexpr int64_t kTile = 8192;  // kTile / 4 for double and for tensors shorter than kTile
constexpr int64_t kLongest = kTile + 333;
// Larger than on the CPU, because the kernels divide by Newton's steps.
template <class E>
constexpr double kDeviceError = (sizeof(E) == 2 ? 1 : 4) * kError<E>;

template <class E>
using Sum = std::conditional_t<std::is_same_v<E, double>, double, float>;

template <class E>
struct Results {
  Array<E> y, dx;
  Sum<E> penalty[2];
};

template <class E>
Problem problem_of(double p, bool on_output) {
  Problem problem;
  problem.element = ElementType<E>{};
  problem.dropout = Dropout(p);
  problem.dropout.seed = 0x123456789abcdef0, problem.dropout.offset = 0xfedcba9876543210;
  if (on_output) problem.counted = problem.dropout.threshold;
  problem.c1 = kC1, problem.c2_twice = p == 0 ? 0 : kC2;
  return problem;
}

template <class E>
Results<E> run(Problem problem, const Expected<E>& expected, int64_t n, int shift,
               int multiprocessors, cuda::Workspace& workspace) {
  Array<E> x(n, shift), dy(n, shift);
  std::copy_n(expected.x.begin(), n, x.data());
  std::copy_n(expected.dy.begin(), n, dy.data());
  Results<E> results{Array<E>(n, shift), Array<E>(n, shift), {-1, -1}};
  const cuda::Launch launch{n, 0, multiprocessors, nullptr};
  // Forward gets seed and offset by value, and writes them to `state` for backward.
  int64_t state[2] = {0, 0};
  cuda::RandomState random;
  random.seed = problem.dropout.seed, random.offset = problem.dropout.offset;
  random.drawn = state;
  problem.x = x.data(), problem.out = results.y.data();
  std::memset(static_cast<void*>(workspace.part), 0xFF, sizeof workspace.part);  // NaN
  cuda::forward(problem, launch, random, results.penalty, &workspace);
  cuda::RandomState again;
  again.seed_at = state, again.offset_at = state + 1;
  const Sum<E> dpenalty[] = {static_cast<Sum<E>>(problem.c1),
                             static_cast<Sum<E>>(problem.c2_twice / 2)};
  problem.dy = dy.data(), problem.out = results.dx.data();
  cuda::backward(problem, launch, again, dpenalty, false);
  return results;
}

template <class E>
bool agrees(const Problem& problem, const Expected<E>& expected, int64_t n, int shift) {
  static cuda::Workspace workspace{};
  Results<E> got = run(problem, expected, n, shift, 3, workspace);
  bool equal = got.y.front_is_untouched() && got.dx.front_is_untouched();
  equal &= workspace.finished == 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto close = [&](E value, double want) {
      return is_close<E>(Format<E>::decode(value), want, expected.size[i], kDeviceError<E>);
    };
    equal &= close(got.y.data()[i], expected.y[i]) && close(got.dx.data()[i], expected.dx[i]);
  }
  const double l1 = expected.l1[n], l2 = expected.l2[n];
  // The expected sums add one element at a time, which makes an error of half an ulp each time.
  const double error = kDeviceError<E> + n * std::numeric_limits<double>::epsilon() / 2;
  return equal && (!std::isfinite(l1) ||
                   (is_near(got.penalty[0], l1, error) && is_near(got.penalty[1], l2, error)));
}

template <class E>
void test_values(const char* element) {
  for_each_usable_activation([&](auto act) {
    bool equal = true;
    for (double p : {0.0, 0.3}) {
      for (bool on_output : {false, true}) {
        if (p == 0 && on_output) continue;
        Problem problem = problem_of<E>(p, on_output);
        problem.activation = act;
        const Expected<E> expected(act, problem, kLongest, kLongest - 70);
        for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{13}, kTile / 4 + 13, kLongest}) {
          equal &= agrees(problem, expected, n, (n + on_output) % 2);
        }
      }
    }
    check(equal,
          "CUDA " + std::string(element) + " " + act.name + ": kernels against the operator");
  });
}

// Backward from the output: y is the input of the kernel, and only dx is compared.
template <class E>
void test_output(const char* element) {
  for_each_usable_activation([&](auto act) {
    using Act = decltype(act);
    if constexpr (kHasSlopeOfOutput<Act>) {
      bool equal = true;
      for (double p : {0.0, 0.3}) {
        if (p > 0 && !kIsHomogeneous<Act>) continue;
        Problem problem = problem_of<E>(p, true);
        problem.activation = act, problem.x_is_output = true;
        const Expected<E> expected(OfOutput<Act>{act}, problem, kLongest, kLongest - 70);
        static cuda::Workspace workspace{};
        Results<E> got = run(problem, expected, kLongest, 0, 3, workspace);
        for (int64_t i = 0; i < kLongest; ++i) {
          equal &= is_close<E>(Format<E>::decode(got.dx.data()[i]), expected.dx[i],
                               expected.size[i], kDeviceError<E>);
        }
      }
      check(equal, "CUDA " + std::string(element) + " " + act.name +
                       ": backward from the output against the operator");
    }
  });
}

template <class E>
void test_order(const char* element) {
  Problem problem = problem_of<E>(0.3, true);
  problem.activation = Silu{};
  const Expected<E> expected(Silu{}, problem, 3 * kTile + 3, 3 * kTile + 3);
  bool equal = true;
  for (int64_t n : {3 * kTile + 3, 2 * kTile, kTile / 4 + 1}) {
    std::vector<Results<E>> all;
    for (unsigned order : {0u, 1u, 2u, 3u}) {
      for (int multiprocessors : {0, 1, 2, 100}) {
        emulation::settings.order = order;
        static cuda::Workspace workspace{};
        const int shift = multiprocessors == 2;  // not aligned
        all.push_back(run(problem, expected, n, shift, multiprocessors, workspace));
        Results<E>& first = all[0];
        Results<E>& last = all.back();
        equal &= std::memcmp(first.y.data(), last.y.data(), n * sizeof(E)) == 0 &&
                 std::memcmp(first.dx.data(), last.dx.data(), n * sizeof(E)) == 0 &&
                 std::memcmp(first.penalty, last.penalty, sizeof first.penalty) == 0;
      }
    }
  }
  check(equal, "CUDA " + std::string(element) + ": the same bits for any grid and order");
}

// Without a penalty the sums are 0, even for infinities, and the workspace is not used.
template <class E>
void test_no_penalty(const char* element) {
  bool equal = true;
  for (double p : {0.0, 0.3}) {
    Problem problem = problem_of<E>(p, false);
    problem.activation = Identity{};
    const int64_t n = kLongest;
    const Expected<E> expected(Identity{}, problem, n, 0);  // with infinities and NaN
    static cuda::Workspace workspace{};
    Results<E> with = run(problem, expected, n, 0, 2, workspace);
    problem.penalty.is_weighted = true;
    problem.penalty.l1 = problem.penalty.l2 = 0;
    Results<E> without = run(problem, expected, n, 0, 2, workspace);
    equal &= std::memcmp(with.y.data(), without.y.data(), n * sizeof(E)) == 0;
    equal &= without.penalty[0] == 0 && without.penalty[1] == -1 && workspace.finished == 0;
    equal &= std::isnan(workspace.part[0].l1);
  }
  check(equal, "CUDA " + std::string(element) + ": no penalty");
}

}  // namespace

void test_cuda() {
  test_values<float>("float32");
  test_values<double>("float64");
  test_values<Half>("float16");
  test_values<BFloat16>("bfloat16");
  test_output<float>("float32");
  test_output<double>("float64");
  test_order<float>("float32");
  test_order<double>("float64");
  test_order<Half>("float16");
  test_order<BFloat16>("bfloat16");
  test_no_penalty<float>("float32");
  test_no_penalty<double>("float64");
  test_no_penalty<Half>("float16");
  test_no_penalty<BFloat16>("bfloat16");
}

}  // namespace actreg
