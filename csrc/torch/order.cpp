// From strides to the order of positions, and back to tensors laid out in it. Layer: torch.
#include "torch/order.h"

#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <vector>

namespace actreg {

void check_order(at::IntArrayRef order, size_t dims) {
  if (order.empty()) return;
  bool fits = order.size() == dims;
  for (size_t dim = 0; dim < dims; ++dim) {
    fits = fits && std::count(order.begin(), order.end(), static_cast<int64_t>(dim)) == 1;
  }
  TORCH_CHECK_VALUE(fits, "actreg: order is empty or a permutation of ", dims,
                    " dimensions, but got ", order);
}

Order order_of(const Tensor& x) {
  // A condition on unknown sizes that cannot be decided counts as false. Then the result may be the
  // row-major order, which is right for every tensor, though some are then copied.
  const auto surely = [](const c10::SymBool& b) { return TORCH_GUARD_OR_FALSE(b); };
  if (surely(x.unsafeGetTensorImpl()->sym_is_contiguous())) return {};
  const auto sizes = x.sym_sizes(), strides = x.sym_strides();
  // Dimensions by falling strides. Insertion sort, because it keeps the order of two dimensions
  // whose comparison is not decided.
  Order order;
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    auto at = order.end();
    while (at != order.begin() && surely(strides[dim].sym_gt(strides[at[-1]]))) --at;
    order.insert(at, dim);
  }
  c10::SymInt expected = 1;
  for (size_t i = order.size(); i-- > 0;) {
    const int64_t dim = order[i];
    if (surely(sizes[dim].sym_eq(1))) continue;
    if (!surely(strides[dim].sym_eq(expected))) return {};
    expected = expected * sizes[dim];
  }
  return std::is_sorted(order.begin(), order.end()) ? Order() : order;
}

at::DimVector strides_of(at::IntArrayRef sizes, at::IntArrayRef order) {
  at::DimVector strides(sizes.size());
  int64_t stride = 1;
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    const int64_t dim = order.empty() ? i : order[i];
    strides[dim] = stride;
    stride *= std::max<int64_t>(sizes[dim], 1);
  }
  return strides;
}

bool is_in_order(const Tensor& x, at::IntArrayRef order) {
  if (order.empty()) return x.is_contiguous();
  const auto dense = strides_of(x.sizes(), order);
  for (size_t dim = 0; dim < dense.size(); ++dim) {
    if (x.size(dim) != 1 && x.stride(dim) != dense[dim]) return false;
  }
  return true;
}

Tensor empty_in_order(c10::SymIntArrayRef sizes, at::IntArrayRef order,
                      const at::TensorOptions& options) {
  if (order.size() != sizes.size()) return at::empty_symint(sizes, options);
  check_order(order, sizes.size());
  std::vector<c10::SymInt> permuted;
  std::vector<int64_t> places(order.size());
  for (const int64_t dim : order) {
    places[dim] = static_cast<int64_t>(permuted.size());
    permuted.push_back(sizes[dim]);
  }
  return at::empty_symint(permuted, options).permute(places);
}

namespace {

Tensor empty_in_order(const Tensor& like, at::IntArrayRef order) {
  return at::empty_strided(like.sizes(), strides_of(like.sizes(), order), like.options());
}

}  // namespace

Tensor in_order(const Tensor& x, at::IntArrayRef order) {
  return is_in_order(x, order) ? x : empty_in_order(x, order).copy_(x);
}

Tensor in_order_of(const Tensor& x, const OptionalTensor& dy, at::IntArrayRef order) {
  if (!dy || !dy->defined()) return empty_in_order(x, order).zero_();
  if (dy->scalar_type() == x.scalar_type() && is_in_order(*dy, order)) return *dy;
  return empty_in_order(x, order).copy_(*dy);
}

Tensor writable(const Tensor& x, at::IntArrayRef order) {
  at::assert_no_internal_overlap(x);
  return is_in_order(x, order) ? x : Tensor();
}

}  // namespace actreg
