// PyTorch's CUDA interface on the CPU, as far as csrc/torch/cuda.cpp uses it: one device, which
// uses the host's memory. Its generator draws from the CPU's generator, so setting, saving and
// restoring the CPU's state works for it too.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/cuda/PhiloxCudaState.h>

#include <mutex>
#include <optional>

#include "cuda_runtime.h"

#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess)

namespace c10 {
namespace cuda {

struct CUDAGuard {
  explicit CUDAGuard(Device) {}
};
inline cudaStream_t getCurrentCUDAStream(DeviceIndex) { return nullptr; }

struct CUDAStreamCaptureModeGuard {
  explicit CUDAStreamCaptureModeGuard(int) {}
};

namespace CUDACachingAllocator {
inline void emptyCache() {}
inline void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t) {
  ++emulation::settings.temporaries;
  return std::memset(std::malloc(bytes), 0xFF, bytes);
}
inline void raw_delete(void* memory) {
  --emulation::settings.temporaries;
  std::free(memory);
}
}  // namespace CUDACachingAllocator

}  // namespace cuda
}  // namespace c10

namespace at {

struct CUDAGeneratorImpl : CPUGeneratorImpl {
  // During a capture the state is in memory, where a replay reads it, with an offset to be added.
  int64_t seed_in_memory = 0, offset_in_memory = 0;

  PhiloxCudaState philox_cuda_state(uint64_t) {
    auto* cpu = check_generator<CPUGeneratorImpl>(detail::getDefaultCPUGenerator());
    const std::lock_guard<std::mutex> lock(cpu->mutex_);
    const uint64_t seed = cpu->random64() % ~uint64_t{0} + (uint64_t{1} << 63);
    if (!emulation::settings.capture) return {seed, 0};
    seed_in_memory = static_cast<int64_t>(seed);
    offset_in_memory = -4;
    return {&seed_in_memory, &offset_in_memory, 4};
  }
};

namespace cuda {
namespace detail {
inline const Generator& getDefaultCUDAGenerator(DeviceIndex) {
  static const Generator generator = make_generator<CUDAGeneratorImpl>();
  return generator;
}
}  // namespace detail
}  // namespace cuda

namespace detail {
inline Tensor empty_cuda(IntArrayRef shape, ScalarType type, Device device,
                         std::optional<MemoryFormat>) {
  return at::empty(shape, TensorOptions(device).dtype(type));
}
inline Tensor empty_strided_cuda(IntArrayRef shape, IntArrayRef strides, ScalarType type,
                                 Device device) {
  return at::empty_strided(shape, strides, TensorOptions(device).dtype(type));
}
}  // namespace detail

}  // namespace at
