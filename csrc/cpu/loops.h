// The loops over memory: load, draw, apply the operator, store. Layer: cpu.
//
// Note [One source for each instruction set]
// avx512.cpp, avx2.cpp and default.cpp include this file, each for its own instruction set. All of
// this code is in an anonymous namespace or inlined, and the three files include no torch header,
// because they must not define weak symbols: of each weak symbol the linker keeps one copy for the
// whole library. If the linker kept a copy compiled for AVX-512, other code would crash on older
// CPUs.
#include "core/kept.h"
#include "core/operator.h"
#include "core/problem.h"
#include "core/registry.h"
#include "core/temporal.h"
#include "cpu/kernels.h"

namespace actreg {
namespace cpu {
namespace {

// For functions that dispatch: inlines everything but the loops, so that no std::get_if remains as
// a weak symbol.
#define ACTREG_FLATTEN __attribute__((flatten))
#define ACTREG_OUT_OF_LINE __attribute__((noinline))

#include "cpu/simd.h"
#include "cpu/storage.h"
#include "cpu/words.h"
// Uses the three above, so clang-format must not sort it before them.
#include "cpu/blocks.h"

// Calls step(j, u, extent) for each vector of [0, count). The vector begins at element j and adds
// to accumulator u < kUnroll. Its extent is First if fewer than kUnroll whole vectors are left,
// else Whole.
constexpr int kUnroll = 4;
template <class V, class Step>
ACTREG_HD void for_each_vector(int64_t count, Step step) {
  int64_t j = 0;
  for (; j + kUnroll * V::kLanes <= count; j += kUnroll * V::kLanes) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) step(j + u * V::kLanes, u, Whole{});
  }
  for (; j < count; j += V::kLanes) step(j, 0, First{std::min<int64_t>(count - j, V::kLanes)});
}

// Writes the bits (Task::bits) of a block. This is a second pass over the block, which is in cache:
// in forward's own loop, the sums would no longer fit into the registers.
template <bool kDrops, class E, class Act>
ACTREG_OUT_OF_LINE void mark(const Act act, const Problem& problem, const E* x, int64_t i,
                             int64_t count, const uint16_t* random) {
  using V = typename NumberOf<E>::type;
  using S = typename Plain<V>::Scalar;
  const uint32_t marked = problem.marked;
  for_each_vector<Plain<V>>(count, [&](int64_t j, int, auto extent) {
    auto on = is_on(act, load(x + j, extent));
    if constexpr (kDrops) on = on & (load_random_bits<S>(random + j) < marked);
    store_lane_bits(problem.bits, i + j, on, extent);
  });
}

template <bool kDrops, bool kHasPenalty, class E, class Act>
ACTREG_OUT_OF_LINE PenaltySums<double> forward_loop(const Act act, const Problem& problem,
                                                    int64_t begin, int64_t end) {
  using V = typename NumberOf<E>::type;
  using S = typename Plain<V>::Scalar;
  const Masks<kDrops> masks(problem);
  const V s(kDrops ? problem.dropout.scale : 1);
  PenaltySums<double> total{0, 0};
  alignas(64) uint16_t random[kBlock];
  BlockOf<E> read, written;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t count = masks.draw_block(i, end, random);
    const E* x = read_block(problem.x, problem.x_at, i, count, read);
    E* y = block_to_write(problem.out, problem.out_at, i, count, written);
    std::conditional_t<kHasPenalty, PenaltySums<V>, NoSums> sums[kUnroll] = {};
    if constexpr (kHasTwoSlopes<Act>) {
      if (problem.bits) mark<kDrops, E>(act, problem, x, i, count, random);
    }
    for_each_vector<Plain<V>>(count, [&](int64_t j, int u, auto extent) {
      const auto mask = masks.template of<S>(random + j);
      store(y + j,
            forward(act, load(x + j, extent), mask.keep, mask.counts & lanes_of<S>(extent), s,
                    sums[u]),
            extent);
    });
    write_back(problem.out, problem.out_at, i, count, y, written);
    if constexpr (kHasPenalty) {
      for (int u = 1; u < kUnroll; ++u) sums[0].l1 += sums[u].l1, sums[0].l2 += sums[u].l2;
      total.l1 += sum(plain(sums[0].l1));
      total.l2 += sum(plain(sums[0].l2));
    }
  }
  return total;
}

template <bool kDrops, class E, class Act>
ACTREG_OUT_OF_LINE void backward_loop(const Act act, const Problem& problem, int64_t begin,
                                      int64_t end) {
  using V = typename NumberOf<E>::type;
  using S = typename Plain<V>::Scalar;
  const Masks<kDrops> masks(problem);
  const V s(kDrops ? problem.dropout.scale : 1);
  const Slopes<V, Mask<S>> c{V(problem.c1), V(problem.c2_twice),
                             every_lane<S>(problem.c2_twice != 0)};
  alignas(64) uint16_t random[kBlock];
  BlockOf<E> read_x, read_dy;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t count = masks.draw_block(i, end, random);
    const E* x = read_block(problem.x, problem.x_at, i, count, read_x);
    const E* dy = read_block(problem.dy, problem.dy_at, i, count, read_dy);
    E* dx = static_cast<E*>(problem.out) + i;
    for_each_vector<Plain<V>>(count, [&](int64_t j, int, auto extent) {
      const V in = load(x + j, extent), gradient = load(dy + j, extent);
      const auto mask = masks.template of<S>(random + j);
      store(dx + j, backward(act, in, gradient, mask.keep, mask.counts, s, c), extent);
    });
  }
}

// kDrops: the mask must be redrawn (Task::draws_again).
template <bool kDrops, class E>
ACTREG_OUT_OF_LINE void backward_bits_loop(const Problem& problem, const TwoSlopes slopes,
                                           int64_t begin, int64_t end) {
  using V = typename NumberOf<E>::type;
  using S = typename Plain<V>::Scalar;
  const Masks<kDrops> masks(problem);
  const V s(problem.dropout.scale), c1(problem.c1);
  alignas(64) uint16_t random[kBlock];
  BlockOf<E> read;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t count = masks.draw_block(i, end, random);
    const E* dy = read_block(problem.dy, problem.dy_at, i, count, read);
    E* dx = static_cast<E*>(problem.out) + i;
    for_each_vector<Plain<V>>(count, [&](int64_t j, int, auto extent) {
      const V gradient = load(dy + j, extent);
      const auto on =
          problem.bits ? load_lane_bits<S>(problem.bits, i + j, extent) : every_lane<S>(true);
      const auto mask = masks.template of<S>(random + j);
      store(dx + j, backward_from_bit(on, slopes, gradient, mask.keep, mask.counts, s, c1), extent);
    });
  }
}

// Calls launch(element, drops): the element type and whether there is dropout, both as types.
template <class Act, class Launch>
ACTREG_HD void dispatch(const Problem& problem, Launch launch) {
  visit(
      [&](auto element) {
        using E = typename decltype(element)::type;
        if (problem.drops()) {
          if constexpr (kIsChosen<Act, E, true>) launch(element, std::true_type{});
        } else {
          if constexpr (kIsChosen<Act, E, false>) launch(element, std::false_type{});
        }
      },
      problem.element);
}

ACTREG_FLATTEN PenaltySums<double> forward(const Problem& problem, int64_t begin, int64_t end) {
  PenaltySums<double> sums{0, 0};
  visit(
      [&](auto act) {
        dispatch<decltype(act)>(problem, [&](auto element, auto drops) {
          using E = typename decltype(element)::type;
          constexpr bool kDrops = decltype(drops)::value;
          sums = problem.penalty.is_off() ? forward_loop<kDrops, false, E>(act, problem, begin, end)
                                          : forward_loop<kDrops, true, E>(act, problem, begin, end);
        });
      },
      problem.activation);
  return sums;
}

ACTREG_FLATTEN void backward(const Problem& problem, int64_t begin, int64_t end) {
  visit_of_x(
      [&](auto act) {
        dispatch<decltype(act)>(problem, [&](auto element, auto drops) {
          using E = typename decltype(element)::type;
          backward_loop<decltype(drops)::value, E>(act, problem, begin, end);
        });
      },
      problem);
}

ACTREG_FLATTEN void backward_bits(const Problem& problem, const TwoSlopes& slopes, int64_t begin,
                                  int64_t end) {
  visit(
      [&](auto element) {
        using E = typename decltype(element)::type;
        if (problem.draws_again()) {
          backward_bits_loop<true, E>(problem, slopes, begin, end);
        } else {
          backward_bits_loop<false, E>(problem, slopes, begin, end);
        }
      },
      problem.element);
}

#include "cpu/staged.h"
#include "cpu/staged_backward.h"
#include "cpu/temporal.h"

// The table of these kernels.
constexpr Kernels kernels_of(const char* name, bool (*is_supported)()) {
  return {name,          is_supported,   &forward,  &backward,         &backward_bits,
          &forward_rows, &backward_rows, &temporal, &temporal_backward};
}

}  // namespace
}  // namespace cpu
}  // namespace actreg
