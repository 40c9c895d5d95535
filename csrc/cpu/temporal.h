// The loops of the temporal penalty. Layer: cpu. loops.h includes this file like simd.h.

// Neighbouring pairs that have the same weight: `count` pairs, from the given one on.
struct Run {
  double weight;
  int64_t count;
};
template <class S>
ACTREG_HD Run run_at(const Temporal& task, int64_t i) {
  const int64_t outer = i / task.row(), at = i % task.row();
  if (at >= task.pairs()) return {0, task.row() - at};
  if (!task.weight) return {1, task.pairs() - at};
  const int64_t middle = task.inner / task.channels;
  const S* weight = static_cast<const S*>(task.weight) + outer / task.repeat * task.time * middle +
                    at / task.channels;
  return {weight[0] * weight[middle], task.channels - at % task.channels};
}
// The run of the pairs that end at element i and behind it.
template <class S>
ACTREG_HD Run run_before(const Temporal& task, int64_t i) {
  return i < task.inner ? Run{0, task.inner - i} : run_at<S>(task, i - task.inner);
}

// Writes the weights of the pairs [i, i + count). Where an element begins no pair, the weight is 0.
template <class S>
ACTREG_OUT_OF_LINE void write_weights(const Temporal& task, int64_t i, int64_t count, S* to) {
  const int64_t middle = task.inner / task.channels;
  int64_t outer = i / task.row(), begin = i % task.row();
  for (const S* stop = to + count; to < stop; ++outer, begin = 0) {
    const S* weight = static_cast<const S*>(task.weight);
    if (weight) weight += outer / task.repeat * task.time * middle;
    const int64_t end = std::min<int64_t>(begin + (stop - to), task.row());
    const int64_t pairs = std::min(end, task.pairs());
    int64_t at = begin;
    if (!weight) {
      for (; at < pairs; ++at) *to++ = 1;
    } else if (task.channels == 1) {
      for (; at < pairs; ++at) *to++ = weight[at] * weight[at + middle];
    } else {
      for (int64_t k = at / task.channels; at < pairs; ++k) {
        const S product = weight[k] * weight[k + middle];
        for (const int64_t last = std::min(pairs, (k + 1) * task.channels); at < last; ++at) {
          *to++ = product;
        }
      }
    }
    for (; at < end; ++at) *to++ = 0;
  }
}

// The weights of the pairs of a block, where runs are short. If h has no weights and short rows,
// the same weights repeat in each row, and are written only once.
template <class S>
class PairWeights {
 public:
  explicit ACTREG_HD PairWeights(const Temporal& task)
      : task_(task), is_periodic_(!task.weight && task.row() <= kBlock) {
    if (is_periodic_) write_weights(task_, 0, kBlock + task_.row(), after_);
  }
  // Of the pairs that begin at element i and behind it.
  ACTREG_HD const S* after(int64_t i, int64_t count) {
    if (is_periodic_) return after_ + i % task_.row();
    write_weights(task_, i, count, after_);
    return after_;
  }
  // Of the pairs that end there.
  ACTREG_HD const S* before(int64_t i, int64_t count) {
    if (is_periodic_) return after_ + (i + task_.pairs()) % task_.row();
    int64_t j = 0;
    for (; j < std::min(count, task_.inner - i); ++j) before_[j] = 0;
    write_weights(task_, i + j - task_.inner, count - j, before_ + j);
    return before_;
  }

 private:
  const Temporal& task_;
  const bool is_periodic_;
  alignas(64) S after_[2 * kBlock], before_[kBlock];
};

// With runs of at least this length, the weight is a constant of the loop. Not tuned.
constexpr int64_t kLongRun = 256;

template <class E>
ACTREG_OUT_OF_LINE double temporal_loop(const Temporal& task, int64_t begin, int64_t end) {
  using V = Plain<typename NumberOf<E>::type>;
  using S = typename V::Scalar;
  end = std::min(end, task.size() - task.inner);  // behind the last pair
  double total = 0;
  PairWeights<S> weights(task);
  for (int64_t i = begin, count; i < end; i += count) {
    const E *h = static_cast<const E*>(task.h) + i, *next = h + task.inner;
    V sums[kUnroll] = {};
    const auto add = [&](V weight, int64_t j, int u, auto extent) {
      sums[u] =
          add_temporal(sums[u], weight, plain(load(h + j, extent)), plain(load(next + j, extent)));
    };
    const Run run = run_at<S>(task, i);
    const int64_t block = std::min(kBlock, end - i);
    count = std::min(run.count, block);
    if (count >= std::min(kLongRun, block)) {
      if (run.weight == 0) continue;
      const auto add_all = [&](V weight) {
        for_each_vector<V>(count,
                           [&](int64_t j, int u, auto extent) { add(weight, j, u, extent); });
      };
      run.weight == 1 ? add_all(V(1)) : add_all(V(run.weight));
    } else {
      count = block;
      const S* weight = weights.after(i, count);
      for_each_vector<V>(count, [&](int64_t j, int u, auto extent) {
        add(load(weight + j, extent), j, u, extent);
      });
    }
    for (int u = 1; u < kUnroll; ++u) sums[0] += sums[u];
    total += sum(sums[0]);
  }
  return total;
}

template <class E>
ACTREG_OUT_OF_LINE void temporal_backward_loop(const Temporal& task, int64_t begin, int64_t end) {
  using V = Plain<typename NumberOf<E>::type>;
  using S = typename V::Scalar;
  const V slope(task.slope);
  const int64_t inner = task.inner, last = task.size() - inner;
  PairWeights<S> weights(task);
  for (int64_t i = begin, count; i < end; i += count) {
    // The first `inner` elements of h have no previous one, and the last have no next one. There
    // the weight is 0, and the pointers are to h itself. A block is on one side of these borders.
    const bool is_first = i < inner, is_last = i >= last;
    int64_t block = std::min(kBlock, end - i);
    if (is_first) block = std::min(block, inner - i);
    if (!is_last) block = std::min(block, last - i);
    const E* h = static_cast<const E*>(task.h) + i;
    const E *previous = is_first ? h : h - inner, *next = is_last ? h : h + inner;
    E* dh = static_cast<E*>(task.dh) + i;
    const auto write = [&](V before, V after, int64_t j, auto extent) {
      const V dh_j =
          temporal_gradient(slope, before, plain(load(previous + j, extent)),
                            plain(load(h + j, extent)), after, plain(load(next + j, extent)));
      store(dh + j, dh_j, extent);
    };
    const Run of_before = run_before<S>(task, i), of_after = run_at<S>(task, i);
    count = std::min({of_before.count, of_after.count, block});
    if (count >= std::min(kLongRun, block)) {
      const auto write_all = [&](V before, V after) {
        for_each_vector<V>(count,
                           [&](int64_t j, int, auto extent) { write(before, after, j, extent); });
      };
      if (of_before.weight == 1 && of_after.weight == 1) {
        write_all(V(1), V(1));
      } else {
        write_all(V(of_before.weight), V(of_after.weight));
      }
    } else {
      count = block;
      const S *before = weights.before(i, count), *after = weights.after(i, count);
      for_each_vector<V>(count, [&](int64_t j, int, auto extent) {
        write(load(before + j, extent), load(after + j, extent), j, extent);
      });
    }
  }
}

ACTREG_FLATTEN double temporal(const Temporal& task, int64_t begin, int64_t end) {
  double sum = 0;
  visit(
      [&](auto element) {
        sum = temporal_loop<typename decltype(element)::type>(task, begin, end);
      },
      task.element);
  return sum;
}

ACTREG_FLATTEN void temporal_backward(const Temporal& task, int64_t begin, int64_t end) {
  visit(
      [&](auto element) {
        temporal_backward_loop<typename decltype(element)::type>(task, begin, end);
      },
      task.element);
}
