// csrc/torch/cuda.cpp on the emulated device: its operators take the tensors of the CPU. This
// stands in the place of csrc/torch/cpu.cpp.
#include "torch_cuda.h"

#include <torch/library.h>

#include "cpu/kernels.h"
#include "torch/cpu_capability.h"

#define CUDA CPU
#include "torch/cuda.cpp"
#undef CUDA

namespace actreg {

const cpu::Kernels& cpu_kernels() { return cpu::kDefault; }

namespace {

// For tests/test_emulation.py: changes how the device runs; returns {launches, memsets} so far.
std::vector<int64_t> configure(int64_t multiprocessors, int64_t order, bool is_capturing) {
  auto& settings = emulation::settings;
  settings.multiprocessors = static_cast<int>(multiprocessors);
  settings.order = static_cast<unsigned>(order);
  settings.is_capturing = is_capturing;
  return {settings.launches, settings.memsets};
}

}  // namespace

TORCH_LIBRARY(actreg_emulation, m) {
  m.def("configure(int multiprocessors, int order, bool is_capturing) -> int[]", &configure);
}

}  // namespace actreg
