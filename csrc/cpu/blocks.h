// The elements, the random bits and the weights of one block, where an index map says where they
// are. Layer: cpu. loops.h includes this file like simd.h. See Note [The general form].
// A block has at most kBlock elements, so a look-up of a few runs costs little.

// Elements of up to 8 bytes, for one block. The slack takes what a whole vector writes beyond.
template <class T>
struct alignas(64) BlockOf {
  T at[kBlock + ACTREG_VECTOR_BYTES / sizeof(T)];
};

// The address of the block's first element if the block is one run in memory, else null.
ACTREG_OUT_OF_LINE const char* one_run(const char* base, const IndexMap& map, int64_t i,
                                       int64_t count, int64_t bytes) {
  const char* from = nullptr;
  map.for_each_run(
      i, 1, [&](int64_t, int64_t address, int64_t, int64_t) { from = base + address * bytes; });
  const int64_t length = map.dims > 0 ? map.size[map.dims - 1] : 1;
  return map.dims < 2 || i % length + count <= length ? from : nullptr;
}
ACTREG_OUT_OF_LINE const char* gathered(const char* base, const IndexMap& map, int64_t i,
                                        int64_t count, int64_t bytes, char* buffer) {
  if (const char* whole = one_run(base, map, i, count, bytes)) return whole;
  map.for_each_run(i, count, [&](int64_t j, int64_t address, int64_t length, int64_t) {
    __builtin_memcpy(buffer + j * bytes, base + address * bytes, length * bytes);
  });
  return buffer;
}
ACTREG_OUT_OF_LINE void scatter(char* base, const IndexMap& map, int64_t i, int64_t count,
                                int64_t bytes, const char* buffer) {
  map.for_each_run(i, count, [&](int64_t j, int64_t address, int64_t length, int64_t) {
    __builtin_memcpy(base + address * bytes, buffer + j * bytes, length * bytes);
  });
}

// The elements of the block, which begins at element i: in memory if they are one run there, else
// copied to `buffer`. Without a map, element i is at base + i.
template <class E>
ACTREG_HD const E* read_block(const void* base, const IndexMap* map, int64_t i, int64_t count,
                              BlockOf<E>& buffer) {
  if (!map) return static_cast<const E*>(base) + i;
  return reinterpret_cast<const E*>(gathered(static_cast<const char*>(base), *map, i, count,
                                             sizeof(E), reinterpret_cast<char*>(buffer.at)));
}
// Where to write the elements of the block: in memory if they are one run there, else `buffer`.
// After writing, call write_back.
template <class E>
ACTREG_HD E* block_to_write(void* base, const IndexMap* map, int64_t i, int64_t count,
                            BlockOf<E>& buffer) {
  if (!map) return static_cast<E*>(base) + i;
  const char* whole = one_run(static_cast<char*>(base), *map, i, count, sizeof(E));
  return whole ? reinterpret_cast<E*>(const_cast<char*>(whole)) : buffer.at;
}
template <class E>
ACTREG_HD void write_back(void* base, const IndexMap* map, int64_t i, int64_t count,
                          const E* written, const BlockOf<E>& buffer) {
  if (!map || written != buffer.at) return;
  scatter(static_cast<char*>(base), *map, i, count, sizeof(E),
          reinterpret_cast<const char*>(buffer.at));
}

// Writes the random bits of the elements [i, i + count), whose positions a map tells; without a map
// the position of element i is i.
ACTREG_OUT_OF_LINE void draw_at(const Dropout& dropout, const IndexMap* map, int64_t i,
                                int64_t count, uint16_t* bits) {
  uint16_t some[kBlock + 2 * kDrawn], one[kDrawn];
  int64_t first_of_one = -1;
  const auto draw_run = [&](int64_t j, int64_t position, int64_t length, int64_t step) {
    if (step == 1 && length >= kDrawn / 2) {
      const int64_t skip = position % kElementsPerDraw;
      draw(dropout, position - skip, length + skip, some);
      __builtin_memcpy(bits + j, some + skip, length * sizeof *bits);
      return;
    }
    // Neighbouring runs often have neighbouring positions, so `one` serves many of them.
    for (int64_t k = 0; k < length; ++k, position += step) {
      const int64_t first = position / kDrawn * kDrawn;
      if (first != first_of_one) draw(dropout, first_of_one = first, 1, one);
      bits[j + k] = one[position - first];
      if (step != 0) continue;
      std::fill_n(bits + j, length, bits[j]);
      return;
    }
  };
  if (map) {
    map->for_each_run(i, count, draw_run);
  } else {
    draw_run(0, i, count, 1);
  }
}

// Writes from[map of element] for the elements [i, i + count).
template <class S>
ACTREG_OUT_OF_LINE void look_up(const S* from, const IndexMap& map, int64_t i, int64_t count,
                                S* to) {
  map.for_each_run(i, count, [&](int64_t j, int64_t value, int64_t length, int64_t step) {
    if (step == 0) {
      std::fill_n(to + j, length, from[value]);
    } else {
      for (int64_t k = 0; k < length; ++k) to[j + k] = from[value + k * step];
    }
  });
}

// Which elements of a vector dropout keeps, and which count towards the penalty.
template <class Condition>
struct VectorMask {
  Condition keep, counts;
};

// The masks of a problem's vectors. Without dropout (kDrops is false) both conditions are Always,
// so loops have one text for both cases.
template <bool kDrops>
struct Masks {
  Dropout dropout;
  uint32_t counted;
  const IndexMap* position_at;

  explicit ACTREG_HD Masks(const Problem& problem)
      : dropout(problem.dropout), counted(problem.counted), position_at(problem.position_at) {}

  // For the vector of S whose random bits begin at `random`.
  template <class S>
  ACTREG_HD auto of(const uint16_t* random) const {
    if constexpr (kDrops) {
      const auto r = load_random_bits<S>(random);
      return VectorMask<Mask<S>>{r < dropout.threshold, r < counted};
    } else {
      return VectorMask<Always>{};
    }
  }
  // Draws the random bits of the block that begins at element i, a multiple of kBlock; returns its
  // number of elements.
  ACTREG_HD int64_t draw_block(int64_t i, int64_t end, uint16_t* random) const {
    const int64_t count = std::min(kBlock, end - i);
    if constexpr (kDrops) {
      if (position_at) {
        draw_at(dropout, position_at, i, count, random);
      } else {
        draw(dropout, i, count, random);
      }
    }
    return count;
  }
};
