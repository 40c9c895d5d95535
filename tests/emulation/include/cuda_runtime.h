// CUDA's execution model on the CPU, as far as the kernels of csrc/cuda use it. The host's compiler
// compiles the kernels' own source with this header in the place of CUDA's.
//
// The threads of a block are fibers (emulation.cpp). A thread runs until it waits at a barrier or a
// shuffle; then another thread runs, in an order that can be chosen. Up to four blocks run side by
// side: they take turns at barriers, shuffles, fences and atomics. It is an error to wait for
// threads that never arrive, or that wait at another barrier. Shared memory begins as NaN. A block
// sees the writes of another block only after fences (memory.cpp). The accuracy of approximate
// instructions is not emulated.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ extern  // memory.cpp defines them
#define __launch_bounds__(...)

#define ACTREG_LARGE_FROM 8192  // see Note [Small tensors]

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x) : x(x) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// The emulated device: its size, how it runs, and what it has counted.
struct Settings {
  int multiprocessors = 2, threads_per_multiprocessor = 512;
  unsigned order = 2;  // of threads and blocks: 0 ascending, 1 descending, else a seed of shuffles
  unsigned long long capture = 0;                   // the id of the capture in progress; 0: none
  unsigned long long stream = 1;                    // the id of the current stream
  long launches = 0, memsets = 0, allocations = 0;  // counted so far
  long temporaries = 0;                             // blocks of PyTorch's allocator in use
  std::vector<std::function<void()>> of_graph;      // called when the captured graph is deleted
};
extern Settings settings;

struct Span {
  void* at = nullptr;
  std::size_t bytes = 0;
};

struct Place {  // a line of the source
  const char* file;
  int line;
};
#define EMULATION_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

void wait_for_block(Place);
void wait_for_warp(Place);
void fence();
unsigned atomic(unsigned* at, unsigned (*change)(unsigned, unsigned), unsigned argument);
uint64_t exchange(uint64_t value, int lane, Place);  // returns the value of that lane in this warp
void expect_all(unsigned lanes);  // an error if fewer lanes take part: not emulated
int lane();
// between: the global memory through which blocks communicate.
void run(unsigned blocks, unsigned threads, Span between, const std::function<void()>& kernel);

template <class T>
T exchange_as(T value, int lane, Place place) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(bits, lane, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulation

inline void __syncthreads(EMULATION_PLACE) { emulation::wait_for_block({file, line}); }
inline void __syncwarp(EMULATION_PLACE) { emulation::wait_for_warp({file, line}); }
inline void __threadfence() { emulation::fence(); }
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int mask, EMULATION_PLACE) {
  emulation::expect_all(lanes);
  return emulation::exchange_as(value, emulation::lane() ^ mask, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned lanes, T value, int step, EMULATION_PLACE) {
  emulation::expect_all(lanes);
  const int from = emulation::lane() + step;
  return emulation::exchange_as(value, from < 32 ? from : emulation::lane(), {file, line});
}
inline unsigned atomicInc(unsigned* at, unsigned last) {
  const auto next = [](unsigned old, unsigned last) { return old >= last ? 0 : old + 1; };
  return emulation::atomic(at, next, last);
}

struct double2 {
  double x, y;
};
template <class T>
T __ldcg(const T* from) {
  return *from;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

struct __half {
  unsigned short bits;
};
struct __half2 {
  __half x, y;
};
struct __nv_bfloat16 {
  unsigned short bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
float __half2float(__half x);
__half __float2half_rn(float x);
__nv_bfloat16 __float2bfloat16_rn(float x);
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
using cudaStream_t = struct EmulatedStream*;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulation::settings.multiprocessors;
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...),
                                                          int threads, std::size_t) {
  *blocks = emulation::settings.threads_per_multiprocessor / threads;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamGetId(cudaStream_t, unsigned long long* id) {
  *id = emulation::settings.stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
constexpr unsigned cudaStreamNonBlocking = 1;

enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
using cudaGraph_t = struct EmulatedGraph*;
inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t*) {
  *id = emulation::settings.capture;
  *status = *id ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
using cudaUserObject_t = std::function<void()>*;
constexpr unsigned cudaUserObjectNoDestructorSync = 1, cudaGraphUserObjectMove = 1;
inline cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* data,
                                        void (*destroy)(void*), unsigned, unsigned) {
  *object = new std::function<void()>([=] { destroy(data); });
  return cudaSuccess;
}
inline cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t object, unsigned,
                                             unsigned) {
  emulation::settings.of_graph.push_back(*object);
  delete object;
  return cudaSuccess;
}
inline cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned) {
  (*object)();
  delete object;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  ++emulation::settings.allocations;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t) {
  ++emulation::settings.memsets;
  std::memset(at, value, bytes);
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};
namespace emulation {
// The one argument of a kernel that is a pointer to a struct.
template <class T>
void find_between(const T& argument, Span& between) {
  if constexpr (std::is_pointer_v<T> && std::is_class_v<std::remove_pointer_t<T>>) {
    between = {argument, sizeof *argument};
  }
}
}  // namespace emulation
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  ++emulation::settings.launches;
  const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  emulation::Span between;
  std::apply([&](const auto&... each) { (emulation::find_between(each, between), ...); }, values);
  emulation::run(config->gridDim.x, config->blockDim.x, between,
                 [&] { std::apply(kernel, values); });
  return cudaSuccess;
}
