// csrc/torch/cuda.cpp on the emulated device: its operators take CPU tensors. This file replaces
// csrc/torch/cpu.cpp and cpu_temporal.cpp in the build.
#include "torch_cuda.h"

#include <torch/library.h>

#include "cpu/kernels.h"
#include "torch/cpu_capability.h"

#define CUDA CPU
#include "torch/cuda.cpp"
#include "torch/cuda_temporal.cpp"
#include "torch/cuda_workspaces.cpp"
#undef CUDA

namespace actreg {

const cpu::Kernels& cpu_kernels() { return cpu::kDefault; }

namespace {

// For tests/test_emulation.py: sets how the device runs. Returns {launches, memsets, allocations}
// so far, and the number of temporaries in use.
std::vector<int64_t> configure(int64_t multiprocessors, int64_t order) {
  auto& settings = emulation::settings;
  settings.multiprocessors = static_cast<int>(multiprocessors);
  settings.order = static_cast<unsigned>(order);
  return {settings.launches, settings.memsets, settings.allocations, settings.temporaries};
}

void use_stream(int64_t id) { emulation::settings.stream = static_cast<unsigned long long>(id); }

void begin_capture() {
  static unsigned long long captures = 0;
  emulation::settings.capture = ++captures;
}
void end_capture() { emulation::settings.capture = 0; }

void destroy_graphs() {
  for (const auto& destroy : emulation::settings.of_graph) destroy();
  emulation::settings.of_graph.clear();
}

}  // namespace

TORCH_LIBRARY(actreg_emulation, m) {
  m.def("configure(int multiprocessors, int order) -> int[]", &configure);
  m.def("use_stream(int id) -> ()", &use_stream);
  m.def("begin_capture() -> ()", &begin_capture);
  m.def("end_capture() -> ()", &end_capture);
  m.def("destroy_graphs() -> ()", &destroy_graphs);
}

}  // namespace actreg
