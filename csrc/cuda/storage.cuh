// Vectors of elements, and their conversion to numbers and back. Layer: cuda.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "core/coarse.h"
#include "core/problem.h"
#include "cuda/kernels.h"

namespace actreg {
namespace cuda {

// The type to compute with, and the type of the penalty. float16 and bfloat16 are computed in
// float, by the shorter formulas (core/coarse.h), and rounded once.
template <class E>
struct NumberOf {
  using type = std::conditional_t<kIsHalf<E>, Coarse<float>, E>;
  using Sum = std::conditional_t<kIsHalf<E>, float, E>;
};

// The 16 bytes that a thread loads or stores at once. get(k) returns element k as a number;
// set(k, pair) sets elements k and k + 1.
template <class E>
struct alignas(16) Vector {
  static constexpr int kElements = 16 / sizeof(E);
  E element[kElements];

  __device__ E get(int k) const { return element[k]; }
  __device__ void set(int k, const E (&pair)[2]) {
    element[k] = pair[0];
    element[k + 1] = pair[1];
  }
};

// The half types have two elements in each word. set() takes a pair, because converting a pair
// costs as much as converting one number.
struct alignas(16) Words {
  static constexpr int kElements = 8;
  uint32_t word[4];
};
template <>
struct Vector<BFloat16> : Words {
  __device__ Coarse<float> get(int k) const {
    const uint32_t bits = k % 2 ? word[k / 2] & 0xFFFF0000u : word[k / 2] << 16;
    return Coarse<float>(__uint_as_float(bits));
  }
  __device__ void set(int k, const Coarse<float> (&pair)[2]) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(pair[0].value, pair[1].value);
    word[k / 2] = __bfloat16_as_ushort(both.x) | uint32_t{__bfloat16_as_ushort(both.y)} << 16;
  }
};
template <>
struct Vector<Half> : Words {
  __device__ Coarse<float> get(int k) const {
    const auto bits = static_cast<unsigned short>(word[k / 2] >> (16 * (k % 2)));
    return Coarse<float>(__half2float(__ushort_as_half(bits)));
  }
  __device__ void set(int k, const Coarse<float> (&pair)[2]) {
    const __half2 both = __floats2half2_rn(pair[0].value, pair[1].value);
    word[k / 2] = __half_as_ushort(both.x) | uint32_t{__half_as_ushort(both.y)} << 16;
  }
};

// One store of 128 bits. For a plain assignment nvcc may emit four stores of 32 bits: it does so
// where the value comes from several branches.
template <class E>
__device__ void store_at_once(E* to, const Vector<E>& vector) {
#if defined(__CUDA_ARCH__)
  uint32_t word[4];
  memcpy(word, &vector, sizeof word);
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
               : "memory");
#else
  *reinterpret_cast<Vector<E>*>(to) = vector;
#endif
}

template <class E>
__device__ void fill(Vector<E>& vector, E value) {
  if constexpr (kIsHalf<E>) {
    for (uint32_t& word : vector.word) word = value.bits | uint32_t{value.bits} << 16;
  } else {
    for (E& element : vector.element) element = value;
  }
}

// Replaces element k of vector j by f(j, k, the element), for all elements.
template <class E, int kCount, class F>
__device__ void transform(Vector<E> (&vectors)[kCount], F f) {
  using T = typename NumberOf<E>::type;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int k = 0; k < Vector<E>::kElements; k += 2) {
      T pair[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) pair[i] = f(j, k + i, vectors[j].get(k + i));
      vectors[j].set(k, pair);
    }
  }
}

// t^2 + sum with one rounding: see Note [The penalty's bits].
template <class T>
__device__ T add_square(T t, T sum) {
  return std::fma(t, t, sum);
}
__device__ inline Coarse<float> add_square(Coarse<float> t, Coarse<float> sum) {
  return Coarse<float>(std::fma(t.value, t.value, sum.value));
}

__device__ inline double to_double(Coarse<float> x) { return x.value; }
__device__ inline double to_double(double x) { return x; }

}  // namespace cuda
}  // namespace actreg
