// The memory of new tensors on the CPU. Layer: torch.
#include "torch/cpu_memory.h"

#include <ATen/EmptyTensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace actreg {
namespace {

// From this size on, glibc's malloc maps each block freshly and unmaps it when it is freed.
constexpr uintptr_t kFresh = uintptr_t{32} << 20;

// Note [Huge pages]
// Linux handles the first write to each fresh page of memory as a fault. With pages of 4 kB these
// faults take 80 to 90 % of the time of a call on a tensor of kFresh bytes or more. madvise asks
// for pages of 2 MB instead, 500 times fewer. Where the system grants huge pages, forward takes 0.3
// to 0.4 and backward 0.4 to 0.7 of the time with small pages (2^23 to 2^26 elements).
// - The risk: a virtual machine whose host takes freed memory back may wait for each huge page. On
//   such a machine all these calls together took 0.63, 0.65 and 0.79 of the time of a copy
//   (x.clone() and torch.add(x, dy)) in three benchmarks, but single calls took 3 times as long as
//   the copy (docs/performance.md).
// - madvise is a hint. It ends when the block is unmapped. No memory is wasted, because all of the
//   tensor is written.
// - Smaller blocks get no hint: malloc mostly uses them again without fresh pages, and a hint for
//   blocks of 4 MB and more gained nothing.
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

// Does not go through the dispatcher, which would take a third of the time of a call on a small
// tensor.
at::Tensor new_dense(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type) {
  at::Tensor tensor = at::detail::empty_strided_cpu(sizes, strides, type);
  prefer_huge_pages(tensor);
  return tensor;
}

}  // namespace actreg
