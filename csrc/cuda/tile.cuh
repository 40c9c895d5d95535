// What a block works on at a time: which element is whose, loads, stores, the mask. Layer: cuda.
#pragma once

#include <type_traits>

#include "core/philox.h"
#include "cuda/storage.cuh"

namespace actreg {
namespace cuda {

#if !defined(ACTREG_LARGE_FROM)  // the emulated device has both kinds of tiles in short tensors
#define ACTREG_LARGE_FROM (1 << 21)
#endif

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Vector j of thread t is number j * kThreads + t of the tile, so that a warp reads without gaps.
template <class E>
struct Tile {
  static constexpr int kWidth = Vector<E>::kElements;
  // One draw serves kElementsPerDraw elements: the vectors of kSharers neighbouring lanes.
  static constexpr int kSharers = kElementsPerDraw / kWidth;
  // A large tile has 32 elements for each thread, of double 8.
  static constexpr int kVectors = sizeof(E) == 8 ? kSharers : 4 * kSharers;
  static constexpr int kElements = kThreads * kVectors * kWidth;
  static constexpr int kElementsOfSmall = kThreads * kElementsPerDraw;

  // Note [Small tensors]
  // Large tiles keep a GPU of about 130 multiprocessors busy from 2^21 elements on: then there are
  // 256 of them. A smaller tensor is cut into tiles of 2048 elements, one draw for each thread, in
  // every type. The size of the tensor alone decides, never the GPU: the tiles decide the order in
  // which the penalty is summed. The bound was not tuned on a GPU.
  static ACTREG_HD bool are_large(int64_t n) { return n >= ACTREG_LARGE_FROM; }
  static ACTREG_HD int elements_of(int64_t n) {
    return are_large(n) ? kElements : kElementsOfSmall;
  }

  int64_t begin, n;  // the tile's first element; the tensor's size
  bool is_aligned;   // every pointer is a multiple of 16

  __device__ Tile(int64_t begin, int64_t n, bool is_aligned)
      : begin(begin), n(n), is_aligned(is_aligned) {}

  __device__ bool is_whole() const { return is_aligned && are_large(n) && n - begin >= kElements; }
  __device__ int vectors() const { return are_large(n) ? kVectors : kSharers; }

  __device__ int64_t first_of(int j) const {
    return begin + (j * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
  }
  // Where vector j of the warp's first lane begins.
  __device__ int64_t row_of(int j) const {
    return first_of(j) - static_cast<int>(threadIdx.x % kLanes) * kWidth;
  }
  // Whether the warp loads and stores its vectors j in one piece.
  __device__ bool has_row(int j) const { return is_aligned && n - row_of(j) >= kLanes * kWidth; }
  // How many elements of vector j belong to the tensor.
  __device__ int valid(int j) const {
    const int64_t left = n - first_of(j);
    return left < 0 ? 0 : left < kWidth ? static_cast<int>(left) : kWidth;
  }
};

// Note [Whole tiles and others]
// A thread works on a whole tile in steps: all loads of a step come before its first store. A step
// is four vectors of each input, 64 bytes; backward takes two of a half type, whose 16 elements
// become 16 numbers in registers. The end of a tensor, small tensors, and tensors that are not
// aligned go through the same arithmetic in steps of kSharers vectors. kWhole is the template
// argument that tells the two apart.
template <class E, bool kIsForward, bool kWhole>
constexpr int kVectorsAtOnce = !kWhole                         ? Tile<E>::kSharers
                               : sizeof(E) == 2 && !kIsForward ? 2
                                                               : 4;

// For __launch_bounds__, which bound the registers: as many blocks to a multiprocessor as fit
// without a spill in the loop over steps, on sm_80, sm_90, sm_100 and sm_120 (`make cuda`). What a
// few kernels spill, up to ten instructions, they spill once for a tile or for a block.
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

// Calls visit(whether the tile is whole, at) for each step. See Note [Whole tiles and others].
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

// std::bool_constant, for the device.
template <bool kValue>
struct Constant {
  __device__ constexpr operator bool() const { return kValue; }
};

// Calls visit(flag). In a whole tile visit gets a constant: then the flag is tested once for a
// step, not once for an element.
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

// A warp's vectors on their way from or to memory element by element.
template <class E>
__device__ Vector<E> (*staging()) [kLanes] {
  __shared__ Vector<E> buffer[kThreads / kLanes][kLanes];
  return buffer;
}

// The thread's vectors `at`, `at` + 1, ... of the tile; 0 for what is not the tensor's.
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

// A bit for each element of the thread's vector j, in the low bits of `mine`, to memory; a byte has
// those of kSharers neighbouring lanes.
template <class E>
__device__ void store_bits(const Tile<E>& tile, uint8_t* to, int j, unsigned mine) {
  constexpr int kSharers = Tile<E>::kSharers;
  mine <<= threadIdx.x % kSharers * Tile<E>::kWidth;
#pragma unroll
  for (int step = 1; step < kSharers; step *= 2) mine |= __shfl_xor_sync(kAllLanes, mine, step);
  const int64_t first = tile.first_of(j);
  if (threadIdx.x % kSharers == 0 && first < tile.n) to[first / 8] = static_cast<uint8_t>(mine);
}
// And back; all are on where there are none.
template <class E>
__device__ unsigned load_bits(const Tile<E>& tile, const uint8_t* from, int j) {
  const int64_t first = tile.first_of(j);
  if (!from || first >= tile.n) return ~0u;
  return from[first / 8] >> (first % 8);
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

// Those of the thread's vectors `at`, `at` + 1, ...: each lane draws for one of the kSharers
// vectors that it and its neighbours have side by side, and they exchange the words.
template <class E, int kCount>
__device__ void draw(const Tile<E>& tile, const Dropout& dropout, int at,
                     RandomBits<E> (&bits)[kCount]) {
  constexpr int kSharers = Tile<E>::kSharers, kWords = Vector<E>::kElements / 2;
  const int sharer = threadIdx.x % kSharers;
#pragma unroll
  for (int j = 0; j < kCount; j += kSharers) {
    const int64_t first = tile.first_of(at + j + sharer) - sharer * Vector<E>::kElements;
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
