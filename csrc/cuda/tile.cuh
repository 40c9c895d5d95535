// Tiles: the elements that a block works on at a time, how its threads load and store them, and
// their random bits. Layer: cuda.
#pragma once

#include <type_traits>

#include "core/philox.h"
#include "cuda/storage.cuh"

namespace actreg {
namespace cuda {

#if !defined(ACTREG_LARGE_FROM)  // the emulation sets less: short tensors then test both kinds
#define ACTREG_LARGE_FROM (1 << 21)
#endif

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Vector j of thread t is number j * kThreads + t of the tile, so a warp reads consecutive vectors.
template <class E>
struct Tile {
  static constexpr int kWidth = Vector<E>::kElements;
  // One draw serves kElementsPerDraw elements: the vectors of kSharers neighbouring lanes.
  static constexpr int kSharers = kElementsPerDraw / kWidth;
  // In a large tile each thread has 32 elements (float64: 8).
  static constexpr int kVectors = sizeof(E) == 8 ? kSharers : 4 * kSharers;
  static constexpr int kElements = kThreads * kVectors * kWidth;
  static constexpr int kElementsOfSmall = kThreads * kElementsPerDraw;

  // Note [Small tensors]
  // A tensor of 2^21 or more elements is cut into large tiles, of 8192 elements (float64: 2048).
  // These are at least 256 tiles, enough for a GPU of about 130 multiprocessors. A smaller tensor
  // is cut into small tiles of 2048 elements, where each thread draws once. The size of the tensor
  // alone decides, never the GPU, because the tiles decide the order in which the penalty is
  // summed. The bound was not tuned on a GPU.
  static ACTREG_HD bool are_large(int64_t n) { return n >= ACTREG_LARGE_FROM; }
  static ACTREG_HD int elements_of(int64_t n) {
    return are_large(n) ? kElements : kElementsOfSmall;
  }

  int64_t begin, n;  // the tile's first element; the tensor's size
  bool is_aligned;   // every pointer of the problem is a multiple of 16

  __device__ Tile(int64_t begin, int64_t n, bool is_aligned)
      : begin(begin), n(n), is_aligned(is_aligned) {}

  __device__ bool is_whole() const { return is_aligned && are_large(n) && n - begin >= kElements; }
  __device__ int vectors() const { return are_large(n) ? kVectors : kSharers; }

  __device__ int64_t first_of(int j) const {
    return begin + (j * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
  }
  // The first element of vector j of the warp's lane 0.
  __device__ int64_t row_of(int j) const {
    return first_of(j) - static_cast<int>(threadIdx.x % kLanes) * kWidth;
  }
  // Whether each lane of the warp can load and store its vector j as 16 aligned bytes.
  __device__ bool has_row(int j) const { return is_aligned && n - row_of(j) >= kLanes * kWidth; }
  // How many elements of vector j belong to the tensor.
  __device__ int valid(int j) const {
    const int64_t left = n - first_of(j);
    return left < 0 ? 0 : left < kWidth ? static_cast<int>(left) : kWidth;
  }
};

// Note [Whole tiles and others]
// A tile is whole if it is large, aligned and entirely inside the tensor. A thread works on a tile
// in steps: it loads all vectors of a step before it stores the first. In a whole tile
// (kWhole = true) a step has four vectors, 64 bytes, of each input. Backward of a half type has two
// vectors per step, because already these 16 elements need 16 registers for each input. All other
// tiles (kWhole = false) have the same arithmetic in steps of kSharers vectors.
template <class E, bool kIsForward, bool kWhole>
constexpr int kVectorsAtOnce = !kWhole                         ? Tile<E>::kSharers
                               : sizeof(E) == 2 && !kIsForward ? 2
                                                               : 4;

// kMinBlocks is the second argument of __launch_bounds__: blocks per multiprocessor, which limits
// the registers of a thread. These are the largest numbers without a spill in the loop over steps,
// on sm_80, sm_90, sm_100 and sm_120 (`make cuda`). A few kernels spill outside this loop: up to
// ten instructions, once per tile or once per block.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
constexpr int kMinBlocksOfFloatForward = 2;  // with three, up to 24 kernels would spill there
#else
constexpr int kMinBlocksOfFloatForward = 3;
#endif
template <class E, bool kIsForward, bool kDrops>
constexpr int kMinBlocks = sizeof(E) == 8   ? 1
                           : sizeof(E) == 2 ? (kDrops ? 3 : 4)
                           : !kDrops        ? 3
                           : kIsForward     ? kMinBlocksOfFloatForward
                                            : 2;

// Calls visit(whole, at) for each step, whose first vector is `at`. `whole` is std::true_type if
// the tile is whole, else std::false_type. See Note [Whole tiles and others].
template <bool kIsForward, class E, class Visit>
__device__ void for_each_step(const Tile<E>& tile, Visit visit) {
  if (tile.is_whole()) {
#pragma unroll 1
    for (int at = 0; at < Tile<E>::kVectors; at += kVectorsAtOnce<E, kIsForward, true>) {
      visit(std::true_type{}, at);
    }
  } else {
#pragma unroll 1
    for (int at = 0; at < tile.vectors(); at += kVectorsAtOnce<E, kIsForward, false>) {
      visit(std::false_type{}, at);
    }
  }
}

// std::bool_constant for device code.
template <bool kValue>
struct Constant {
  __device__ constexpr operator bool() const { return kValue; }
};

// Calls visit(flag). In a whole tile the argument is a compile-time constant: the flag is tested
// once per step instead of once per element.
template <bool kWhole, class Visit>
__device__ void with_flag(bool flag, Visit visit) {
  if constexpr (!kWhole) {
    visit(flag);
  } else if (flag) {
    visit(Constant<true>{});
  } else {
    visit(Constant<false>{});
  }
}

// Shared memory for load() and store(): a row of vectors for each warp, which moves them between
// this row and global memory element by element.
template <class E>
__device__ Vector<E> (*staging()) [kLanes] {
  __shared__ Vector<E> buffer[kThreads / kLanes][kLanes];
  return buffer;
}

// Loads the thread's vectors `at`, `at` + 1, ... of the tile. Elements beyond the tensor are 0.
template <bool kWhole, class E, int kCount>
__device__ void load(const Tile<E>& tile, const E* from, int at, Vector<E> (&to)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (kWhole || tile.has_row(at + j)) {
      to[j] = *reinterpret_cast<const Vector<E>*>(from + tile.first_of(at + j));
      continue;
    }
    const int lane = threadIdx.x % kLanes;
    const int64_t first = tile.row_of(at + j);
    Vector<E>* row = staging<E>()[threadIdx.x / kLanes];
    E* element = reinterpret_cast<E*>(row);
#pragma unroll
    for (int k = 0; k < Tile<E>::kWidth; ++k) {
      const int i = k * kLanes + lane;
      element[i] = first + i < tile.n ? from[first + i] : E{};
    }
    __syncwarp();
    to[j] = row[lane];
    __syncwarp();
  }
}

template <bool kWhole, class E, int kCount>
__device__ void store(const Tile<E>& tile, E* to, int at, const Vector<E> (&from)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (kWhole || tile.has_row(at + j)) {
      store_at_once(to + tile.first_of(at + j), from[j]);
      continue;
    }
    const int lane = threadIdx.x % kLanes;
    const int64_t first = tile.row_of(at + j);
    Vector<E>* row = staging<E>()[threadIdx.x / kLanes];
    const E* element = reinterpret_cast<E*>(row);
    row[lane] = from[j];
    __syncwarp();
#pragma unroll
    for (int k = 0; k < Tile<E>::kWidth; ++k) {
      const int i = k * kLanes + lane;
      if (first + i < tile.n) to[first + i] = element[i];
    }
    __syncwarp();
  }
}

// Stores the bits of the thread's vector j: one per element, in the low bits of `mine`. kSharers
// neighbouring lanes together have the bits of one byte.
template <class E>
__device__ void store_bits(const Tile<E>& tile, uint8_t* to, int j, unsigned mine) {
  constexpr int kSharers = Tile<E>::kSharers;
  mine <<= threadIdx.x % kSharers * Tile<E>::kWidth;
#pragma unroll
  for (int step = 1; step < kSharers; step *= 2) mine |= __shfl_xor_sync(kAllLanes, mine, step);
  const int64_t first = tile.first_of(j);
  if (threadIdx.x % kSharers == 0 && first < tile.n) to[first / 8] = static_cast<uint8_t>(mine);
}
// Loads the bits of the thread's vector j into the low bits. If `from` is null, every bit is 1.
template <class E>
__device__ unsigned load_bits(const Tile<E>& tile, const uint8_t* from, int j) {
  const int64_t first = tile.first_of(j);
  if (!from || first >= tile.n) return ~0u;
  return from[first / 8] >> (first % 8);
}

// r of a vector's elements: 16 bits each, two in each word.
template <class E>
struct RandomBits {
  uint32_t word[Vector<E>::kElements / 2];

  // r < threshold for element k, with threshold < 65536. Both are compared in the upper half of a
  // word. For an odd k the lower half of the word does not matter, because the lower half of
  // threshold << 16 is 0.
  __device__ bool is_below(uint32_t threshold, int k) const {
    return k % 2 ? word[k / 2] < threshold << 16 : word[k / 2] << 16 < threshold << 16;
  }
  // Whether dropout keeps element k: Always without dropout (kDrops is false).
  template <bool kDrops>
  __device__ auto keep(const Dropout& dropout, int k) const {
    if constexpr (kDrops) {
      return is_below(dropout.threshold, k);
    } else {
      return Always{};
    }
  }
};

// Draws the random bits of the thread's vectors `at`, `at` + 1, .... One draw serves the vectors j
// of kSharers neighbouring lanes. Each of these lanes draws once, for another j, and they exchange
// the words. Example (float32, kSharers = 2): the even lane draws for vector `at` of both lanes,
// the odd lane for vector `at` + 1 of both.
template <class E, int kCount>
__device__ void draw(const Tile<E>& tile, const Dropout& dropout, int at,
                     RandomBits<E> (&bits)[kCount]) {
  constexpr int kSharers = Tile<E>::kSharers, kWords = Vector<E>::kElements / 2;
  const int sharer = threadIdx.x % kSharers;
#pragma unroll
  for (int j = 0; j < kCount; j += kSharers) {
    const int64_t first = tile.first_of(at + j + sharer) - sharer * Vector<E>::kElements;
    const uint64_t group = first / kElementsPerDraw;
    uint64_t counter[4] = {group, second_word(group), dropout.offset, dropout.offset >> 32};
    philox4x32(counter, dropout.seed);
#pragma unroll
    for (int turn = 0; turn < kSharers; ++turn) {  // exchange words with lane `other`
      const int other = sharer ^ turn;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        uint32_t word = static_cast<uint32_t>(counter[w]);
#pragma unroll
        for (int q = 1; q < kSharers; ++q) {
          word = other == q ? static_cast<uint32_t>(counter[q * kWords + w]) : word;
        }
        word = turn == 0 ? word : __shfl_xor_sync(kAllLanes, word, turn);
#pragma unroll
        for (int q = 0; q < kSharers; ++q) {
          if (other == q) bits[j + q].word[w] = word;
        }
      }
    }
  }
}

}  // namespace cuda
}  // namespace actreg
