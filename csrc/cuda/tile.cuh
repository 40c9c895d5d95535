// What a block works on at a time: which element is whose, loads, stores, the mask. Layer: cuda.
#pragma once

#include "core/philox.h"
#include "cuda/storage.cuh"

namespace actreg {
namespace cuda {

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Vector j of thread t is number j * kThreads + t of the tile, so that a warp reads without gaps.
template <class E>
struct Tile {
  static constexpr int kWidth = Vector<E>::kElements;
  // One draw serves kElementsPerDraw elements: the vectors of so many neighbouring lanes.
  static constexpr int kSharers = kElementsPerDraw / kWidth;
  // Two draws for each thread, of double one. Twice as many for 16-bit elements would save 7 % of
  // the instructions and take 68 to 88 registers instead of 48 to 60 (`make cuda`, sm_90, dropout).
  static constexpr int kVectors = kSharers < 4 ? 2 * kSharers : 4;
  static constexpr int kElements = kThreads * kVectors * kWidth;

  int64_t begin, n;  // the tile's first element; the tensor's size
  bool is_whole;     // and every pointer a multiple of 16

  __device__ Tile(int64_t index, int64_t n, bool is_aligned)
      : begin(index * kElements), n(n), is_whole(is_aligned && n - begin >= kElements) {}

  __device__ int64_t first_of(int j) const {
    return begin + (j * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
  }
  // Of vector j, how many elements are the tensor's.
  __device__ int valid(int j) const {
    if (is_whole) return kWidth;
    const int64_t left = n - first_of(j);
    return left < 0 ? 0 : left < kWidth ? static_cast<int>(left) : kWidth;
  }
};

// For __launch_bounds__. Left to itself (0) the compiler spills a few registers of double kernels
// for sm_80, as it does for both architectures if it is to fit two or more blocks.
template <class E>
constexpr int kMinBlocks = sizeof(E) == 8 ? 1 : 0;

// A warp's share of a tile on its way from or to memory element by element, for tensors that are
// not aligned and for the end of every tensor.
template <class E>
__device__ Vector<E> (*staging()) [kLanes] {
  __shared__ Vector<E> buffer[kThreads / kLanes][kLanes];
  return buffer;
}

template <class E>
__device__ void load(const Tile<E>& tile, const E* from, Vector<E> (&to)[Tile<E>::kVectors]) {
  if (tile.is_whole) {
#pragma unroll
    for (int j = 0; j < Tile<E>::kVectors; ++j) {
      to[j] = *reinterpret_cast<const Vector<E>*>(from + tile.first_of(j));
    }
    return;
  }
  const int lane = threadIdx.x % kLanes;
  Vector<E>* row = staging<E>()[threadIdx.x / kLanes];
  E* element = reinterpret_cast<E*>(row);
#pragma unroll
  for (int j = 0; j < Tile<E>::kVectors; ++j) {
    const int64_t first = tile.first_of(j) - lane * Tile<E>::kWidth;
#pragma unroll 1
    for (int k = lane; k < kLanes * Tile<E>::kWidth; k += kLanes) {
      element[k] = first + k < tile.n ? from[first + k] : E{};
    }
    __syncwarp();
    to[j] = row[lane];
    __syncwarp();
  }
}

template <class E>
__device__ void store(const Tile<E>& tile, E* to, const Vector<E> (&from)[Tile<E>::kVectors]) {
  if (tile.is_whole) {
#pragma unroll
    for (int j = 0; j < Tile<E>::kVectors; ++j) {
      *reinterpret_cast<Vector<E>*>(to + tile.first_of(j)) = from[j];
    }
    return;
  }
  const int lane = threadIdx.x % kLanes;
  Vector<E>* row = staging<E>()[threadIdx.x / kLanes];
  const E* element = reinterpret_cast<E*>(row);
#pragma unroll
  for (int j = 0; j < Tile<E>::kVectors; ++j) {
    const int64_t first = tile.first_of(j) - lane * Tile<E>::kWidth;
    row[lane] = from[j];
    __syncwarp();
#pragma unroll 1
    for (int k = lane; k < kLanes * Tile<E>::kWidth; k += kLanes) {
      if (first + k < tile.n) to[first + k] = element[k];
    }
    __syncwarp();
  }
}

// Which elements count in the penalty: all, or those that dropout keeps.
struct AllOrKept {
  bool all, kept;
};
__device__ inline float select(AllOrKept c, float a, float b) { return c.all ? a : c.kept ? a : b; }
__device__ inline double select(AllOrKept c, double a, double b) {
  return c.all ? a : c.kept ? a : b;
}

// The random bits of a vector's elements, two in each word.
template <class E>
struct RandomBits {
  uint32_t word[Vector<E>::kElements / 2];

  // r < threshold for element k; threshold < 65536. Of both only the upper halves of a word differ.
  __device__ bool is_below(uint32_t threshold, int k) const {
    return k % 2 ? word[k / 2] < threshold << 16 : word[k / 2] << 16 < threshold << 16;
  }
};

// Those of all the thread's vectors: each lane draws for one of the kSharers vectors that it and
// its neighbours have side by side, and they exchange the words.
template <class E>
__device__ void draw(const Tile<E>& tile, const Dropout& dropout,
                     RandomBits<E> (&bits)[Tile<E>::kVectors]) {
  constexpr int kSharers = Tile<E>::kSharers, kWords = Vector<E>::kElements / 2;
  const int sharer = threadIdx.x % kSharers;
#pragma unroll
  for (int j = 0; j < Tile<E>::kVectors; j += kSharers) {
    const int64_t first = tile.first_of(j + sharer) - sharer * Vector<E>::kElements;
    const uint64_t group = position(first) / kElementsPerDraw;
    uint64_t counter[4] = {group, group >> 32, dropout.offset, dropout.offset >> 32};
    philox4x32_10(counter, dropout.seed);
#pragma unroll
    for (int turn = 0; turn < kSharers; ++turn) {  // with the lane sharer ^ turn
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
