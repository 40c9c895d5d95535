// The general form in stages of one block, which stays in the first cache: activation, sums,
// dropout. Layer: cpu. loops.h includes this file inside its anonymous namespace.
// See Note [The general form] and Note [Sums over rows]. Only the first stage is a template over
// the activation. Values between the stages are float, or double for double elements.

template <class E>
using Real = typename Plain<typename NumberOf<E>::type>::Scalar;

// The first stage: a = act(x) and, for backward, the slope. `act` points to the activation.
using Stage = void (*)(const void* act, const void* x, int64_t count, void* a, void* slope);

template <class E, class Act>
ACTREG_OUT_OF_LINE void value_stage(const void* act, const void* x, int64_t count, void* a, void*) {
  using V = typename NumberOf<E>::type;
  const Act f = *static_cast<const Act*>(act);
  for_each_vector<Plain<V>>(count, [&](int64_t j, int, auto extent) {
    store(static_cast<Real<E>*>(a) + j, plain(f(load(static_cast<const E*>(x) + j, extent)).value));
  });
}

// The weights of a block: one number for all its elements, or one for each.
template <class S>
struct BlockWeights {
  S same = 1;
  const S* each = nullptr;
  BlockOf<S> buffer;

  ACTREG_HD void read(const Rows* rows, int64_t i, int64_t count) {
    if (!rows || !rows->weight) return;
    const S* weight = static_cast<const S*>(rows->weight);
    const IndexMap& map = rows->weight_at;
    const int last = map.dims - 1;
    each = nullptr;
    if (last < 0 || (map.stride[last] == 0 && i % map.size[last] + count <= map.size[last])) {
      same = weight[map.at(i)];
    } else {
      look_up(weight, map, i, count, buffer.at);
      each = buffer.at;
    }
  }
  ACTREG_HD Vec<S> of(int64_t j) const { return each ? load(each + j) : Vec<S>(same); }
};

// The sums of the columns of a panel: for each vector of columns first S1, then S2, then N. Three
// arrays of kBlock numbers would lie 4 KB apart; a load right after a store to another address with
// the same low 12 bits waits for the store.
template <class S>
struct Panel {
  static constexpr int kLanes = Vec<S>::kLanes;
  alignas(64) S at[3 * (kBlock + kLanes)];

  ACTREG_HD void clear(int64_t width) { std::fill_n(at, 3 * (width + kLanes), S(0)); }
  // Adds the panel to the sums of the columns: `width` numbers for S1, for S2 and for N.
  ACTREG_HD void add_to(double* sums, int64_t width) const {
    for (int of = 0; of < 3; ++of, sums += width) {
      const S* from = at + of * kLanes;
      for (int64_t q = 0; q < width; q += kLanes, from += 3 * kLanes) {
        const int64_t count = std::min<int64_t>(kLanes, width - q);
        for (int64_t k = 0; k < count; ++k) sums[q + k] += from[k];
      }
    }
  }
};

// What a vector of elements adds to the sums.
template <class S>
struct Penalized {
  Vec<S> l1, l2, n;
};
// Of the elements at `a`, with the weights at `each`, or all with the weight `same` (kEach false).
// A weight of 0 leaves its row out, even if a is infinite or NaN there.
template <bool kEach, class S, class Extent>
ACTREG_HD Penalized<S> penalized(const S* a, const S* each, Vec<S> same, Extent extent) {
  using V = Vec<S>;
  const V zero(0);
  V t = select(lanes_of<S>(extent), load(a), zero), w = same;
  if constexpr (kEach) {
    w = select(lanes_of<S>(extent), load(each), zero);
    t = select(w != zero, t, zero);
  }
  return {w * abs(t), w * (t * t), select(t != zero, V(1), zero)};
}

// Adds the sums of a block to the sums of its columns.
template <bool kEach, class S>
ACTREG_OUT_OF_LINE void add_to_columns(const S* a, const BlockWeights<S>& weights, int64_t count,
                                       Panel<S>& panel) {
  using V = Vec<S>;
  if (!kEach && weights.same == 0) return;
  const V same(weights.same);
  for_each_vector<V>(count, [&](int64_t j, int, auto extent) {
    const auto added = penalized<kEach>(a + j, weights.each + j, same, extent);
    S* sums = panel.at + 3 * j;
    store(sums, load(sums) + added.l1);
    store(sums + V::kLanes, load(sums + V::kLanes) + added.l2);
    store(sums + 2 * V::kLanes, load(sums + 2 * V::kLanes) + added.n);
  });
}

// Adds the sums of a run of at most kBlock elements to sums[0], sums[1] and sums[2].
template <bool kEach, class S>
ACTREG_OUT_OF_LINE void add_run(const S* a, const S* each, S same, int64_t count, double* sums) {
  using V = Vec<S>;
  if (!kEach && same == 0) return;
  V l1[kUnroll] = {}, l2[kUnroll] = {}, n[kUnroll] = {};
  for_each_vector<V>(count, [&](int64_t j, int u, auto extent) {
    const auto added = penalized<kEach>(a + j, each + j, V(same), extent);
    l1[u] += added.l1;
    l2[u] += added.l2;
    n[u] += added.n;
  });
  for (int u = 1; u < kUnroll; ++u) l1[0] += l1[u], l2[0] += l2[u], n[0] += n[u];
  sums[0] += sum(l1[0]), sums[1] += sum(l2[0]), sums[2] += sum(n[0]);
}

// y from a.
template <bool kDrops, class E>
ACTREG_OUT_OF_LINE void dropout_stage(const Problem& problem, const Real<E>* a,
                                      const uint16_t* random, int64_t count, E* y) {
  using V = typename NumberOf<E>::type;
  using S = Real<E>;
  const Masks<kDrops> masks(problem);
  const Vec<S> s(kDrops ? problem.dropout.scale : 1), shift(problem.dropout.shift());
  const auto for_each = [&](auto f) {
    for_each_vector<Vec<S>>(count, [&](int64_t j, int, auto extent) {
      store(y + j, V(f(load(a + j), masks.template of<S>(random + j).keep)), extent);
    });
  };
  if (kDrops && problem.is_alpha) {
    for_each([&](Vec<S> a, auto keep) { return alpha_dropped(a, keep, s, shift); });
  } else {
    for_each([&](Vec<S> a, auto keep) { return select(keep, a, Vec<S>(0)) * s; });
  }
}

// One task of forward. The blocks of a task use the same buffers.
template <bool kDrops, class E>
struct ForwardTask {
  using S = Real<E>;
  const Problem& problem;
  const Stage stage;
  const void* const act;
  BlockOf<S> a;
  BlockOf<E> read, written;
  BlockOf<uint16_t> random;
  BlockWeights<S> weights;

  ACTREG_HD ForwardTask(const Problem& problem, Stage stage, const void* act)
      : problem(problem), stage(stage), act(act) {}

  // Computes y of a block; leaves t and the weights for the sums.
  ACTREG_HD void run(int64_t i, int64_t count) {
    const E* x = read_block(problem.x, problem.x_at, i, count, read);
    E* y = block_to_write(problem.out, problem.out_at, i, count, written);
    stage(act, x, count, a.at, nullptr);
    if constexpr (kDrops) {
      if (!problem.position_at && i % kElementsPerDraw == 0) {
        draw(problem.dropout, i, count, random.at);
      } else {
        draw_at(problem.dropout, problem.position_at, i, count, random.at);
      }
      if (problem.counted != kKeepAll) {  // dropped elements do not count
        for_each_vector<Vec<S>>(count, [&](int64_t j, int, auto) {
          const auto keep = load_random_bits<S>(random.at + j) < problem.counted;
          store(a.at + j, select(keep, load(a.at + j), Vec<S>(0)));
        });
      }
    }
    dropout_stage<kDrops>(problem, a.at, random.at, count, y);
    write_back(problem.out, problem.out_at, i, count, y, written);
    weights.read(problem.rows, i, count);
  }
};

template <bool kDrops, class E>
ACTREG_OUT_OF_LINE void sum_by_runs(const Problem& problem, const SumPlan& plan, int64_t task,
                                    Stage stage, const void* act, double* sums) {
  ForwardTask<kDrops, E> forward(problem, stage, act);
  const int64_t begin = task * kChunk, end = std::min(plan.n, begin + kChunk);
  double* run = sums + 3 * plan.first_run_of(task);
  std::fill_n(run, 3 * ((end - 1) / plan.inner - begin / plan.inner + 1), 0.0);
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t count = std::min(kBlock, end - i);
    forward.run(i, count);
    const auto& weights = forward.weights;
    for (int64_t j = 0; j < count;) {
      const int64_t left = plan.inner - (i + j) % plan.inner, length = std::min(left, count - j);
      if (weights.each) {
        add_run<true>(forward.a.at + j, weights.each + j, weights.same, length, run);
      } else {
        add_run<false>(forward.a.at + j, weights.each, weights.same, length, run);
      }
      j += length;
      if (length == left) run += 3;
    }
  }
}

template <bool kDrops, class E>
ACTREG_OUT_OF_LINE void sum_by_columns(const Problem& problem, const SumPlan& plan, int64_t task,
                                       Stage stage, const void* act, double* sums) {
  using S = Real<E>;
  ForwardTask<kDrops, E> forward(problem, stage, act);
  Panel<S> panel;
  const int64_t part = task / plan.strips, strip = task % plan.strips;
  const int64_t first = strip * kBlock, width = std::min(kBlock, plan.columns - first);
  const int64_t begin = part * plan.rows_per_part;
  const int64_t end = std::min(plan.rows, begin + plan.rows_per_part);
  sums += 3 * (part * plan.columns + first);  // width numbers for S1, for S2 and for N
  std::fill_n(sums, 3 * width, 0.0);
  for (int64_t row = begin; row < end; row += plan.kPanel) {
    panel.clear(width);
    const int64_t last = std::min(end, row + plan.kPanel);
    for (int64_t r = row; r < last; ++r) {
      const int64_t i = r * plan.columns + first, count = std::min(width, plan.n - i);
      if (count <= 0) break;  // the last row is short
      forward.run(i, count);
      if (forward.weights.each) {
        add_to_columns<true>(forward.a.at, forward.weights, count, panel);
      } else {
        add_to_columns<false>(forward.a.at, forward.weights, count, panel);
      }
    }
    panel.add_to(sums, width);
  }
}

ACTREG_FLATTEN void forward_rows(const Problem& problem, const SumPlan& plan, int64_t task,
                                 double* sums) {
  visit(
      [&](auto act) {
        using Act = decltype(act);
        visit(
            [&](auto element) {
              using E = typename decltype(element)::type;
              const Stage stage = &value_stage<E, Act>;
              const auto run = problem.drops()
                                   ? plan.by_runs ? &sum_by_runs<true, E> : &sum_by_columns<true, E>
                               : plan.by_runs ? &sum_by_runs<false, E>
                                              : &sum_by_columns<false, E>;
              run(problem, plan, task, stage, &act, sums);
            },
            problem.element);
      },
      problem.activation);
}
