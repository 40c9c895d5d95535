// The memory of new tensors on the CPU. Layer: torch.
#include "torch/cpu_memory.h"

#include <ATen/EmptyTensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace actreg {
namespace {

// Beyond this glibc's malloc takes each block fresh from the system, and gives it back.
constexpr uintptr_t kFresh = uintptr_t{32} << 20;

// Note [Huge pages]
// The first write to each fresh page of 4 kB is a fault, and these are 80 to 90 % of the time of a
// call on such a tensor. Pages of 2 MB, where the system grants them, are 500 times as few: forward
// takes 0.3 to 0.4, backward 0.4 to 0.7 of the time (2^23 to 2^26 elements; docs/performance.md).
// A virtual machine whose host takes freed memory back may wait for each of them: there all such
// calls of three benchmarks took together 0.63, 0.65 and 0.79 of the floor's time, single ones 3
// times it. It is a hint, which stays with the block until the system has it back, and all of the
// memory is written, so that none is wasted. Smaller blocks malloc mostly uses again, and a hint
// for those of 4 MB and more gained nothing.
void prefer_huge_pages([[maybe_unused]] const at::Tensor& fresh) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t bytes = fresh.storage().nbytes();
  if (bytes < kFresh) return;
  const auto start = reinterpret_cast<uintptr_t>(fresh.mutable_data_ptr());
  const uintptr_t first = (start + kHuge - 1) & ~(kHuge - 1), last = (start + bytes) & ~(kHuge - 1);
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

// Without the dispatcher: a third of the time of a call on a small tensor would go there.
at::Tensor new_dense(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type) {
  at::Tensor tensor = at::detail::empty_strided_cpu(sizes, strides, type);
  prefer_huge_pages(tensor);
  return tensor;
}

}  // namespace actreg
