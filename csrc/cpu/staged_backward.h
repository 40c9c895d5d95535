// The backward of the general form in stages of one block. Layer: cpu. loops.h includes this file
// like staged.h.

template <class E, class Act>
ACTREG_OUT_OF_LINE void jet_stage(const void* act, const void* x, int64_t count, void* a,
                                  void* slope) {
  using V = typename NumberOf<E>::type;
  const Act f = *static_cast<const Act*>(act);
  for_each_vector<Plain<V>>(count, [&](int64_t j, int, auto extent) {
    const Jet<V> jet = f(load(static_cast<const E*>(x) + j, extent));
    store(static_cast<Real<E>*>(a) + j, plain(jet.value));
    store(static_cast<Real<E>*>(slope) + j, plain(jet.slope));
  });
}

// The slope and the value that jet_stage has left, as an activation.
template <class V>
struct StagedJet {
  V a, slope;
  template <class T>
  ACTREG_HD Jet<T> operator()(T) const {
    return {a, slope};
  }
};

// The coefficients of a block's elements: pointers into those of the channels, or to copies.
template <class S>
struct BlockCoefficients {
  const S *c1 = nullptr, *c2_twice = nullptr;
  BlockOf<S> buffer[2];

  ACTREG_HD void read(const Rows& rows, const IndexMap& channel_at, int64_t i, int64_t count) {
    c1 = static_cast<const S*>(rows.c1), c2_twice = static_cast<const S*>(rows.c2_twice);
    if (rows.inner == 1) {
      c1 += i % rows.channels, c2_twice += i % rows.channels;
      return;
    }
    look_up(c1, channel_at, i, count, buffer[0].at);
    look_up(c2_twice, channel_at, i, count, buffer[1].at);
    c1 = buffer[0].at, c2_twice = buffer[1].at;
  }
};

template <bool kDrops, class E>
ACTREG_OUT_OF_LINE void backward_stages(const Problem& problem, int64_t begin, int64_t end,
                                        Stage stage, const void* act) {
  using V = typename NumberOf<E>::type;
  using S = Real<E>;
  const Masks<kDrops> masks(problem);
  const Vec<S> s(kDrops ? problem.dropout.scale : 1), zero(0);
  const IndexMap channel_at = problem.rows->channel_at();
  BlockOf<S> a, slope;
  BlockOf<E> read_x, read_dy, written;
  BlockOf<uint16_t> random;
  BlockWeights<S> weights;
  BlockCoefficients<S> coefficients;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t count = masks.draw_block(i, end, random.at);
    const E* x = read_block(problem.x, problem.x_at, i, count, read_x);
    const E* dy = read_block(problem.dy, problem.dy_at, i, count, read_dy);
    E* dx = block_to_write(problem.out, problem.out_at, i, count, written);
    stage(act, x, count, a.at, slope.at);
    weights.read(problem.rows, i, count);
    coefficients.read(*problem.rows, channel_at, i, count);
    const S *c1 = coefficients.c1, *c2_twice = coefficients.c2_twice;
    for_each_vector<Vec<S>>(count, [&](int64_t j, int, auto extent) {
      const Vec<S> w = weights.of(j);
      const auto weighted = [&](const S* c) { return select(w != zero, w * load(c + j), zero); };
      const Vec<S> c2 = weighted(c2_twice);
      const Slopes<Vec<S>, Mask<S>> c{weighted(c1), c2, c2 != zero};
      const auto mask = masks.template of<S>(random.at + j);
      const StagedJet<Vec<S>> jet{load(a.at + j), load(slope.at + j)};
      store(dx + j,
            V(backward(jet, zero, plain(load(dy + j, extent)), mask.keep, mask.counts, s, c)),
            extent);
    });
    write_back(problem.out, problem.out_at, i, count, dx, written);
  }
}

ACTREG_FLATTEN void backward_rows(const Problem& problem, int64_t begin, int64_t end) {
  visit_of_x(
      [&](auto act) {
        using Act = decltype(act);
        visit(
            [&](auto element) {
              using E = typename decltype(element)::type;
              // Half types never keep an output that has a slope_of_output: see kIsChosen.
              if constexpr (kIsChosen<Act, E, false>) {
                const auto run =
                    problem.drops() ? &backward_stages<true, E> : &backward_stages<false, E>;
                run(problem, begin, end, &jet_stage<E, Act>, &act);
              }
            },
            problem.element);
      },
      problem);
}
