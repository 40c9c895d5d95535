// From tensors and attributes to the general form of a Problem. Layer: torch.
#include "torch/rows.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <string>

#include "cpu/kernels.h"

namespace actreg {
namespace {

// The dimensions of the tensor from the outermost to the innermost.
Order dims_of(at::IntArrayRef order, size_t dims) {
  if (!order.empty()) return Order(order.begin(), order.end());
  Order all;
  for (size_t dim = 0; dim < dims; ++dim) all.push_back(static_cast<int64_t>(dim));
  return all;
}

bool is_in(at::IntArrayRef dims, int64_t dim) {
  return std::find(dims.begin(), dims.end(), dim) != dims.end();
}

void set_position(IndexMap& map, at::IntArrayRef sizes, const Attributes& a) {
  const Order dims = dims_of(a.order, sizes.size());
  at::DimVector strides(sizes.size());
  int64_t stride = 1;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    if (is_in(a.shared_dims, *dim)) continue;
    strides[*dim] = stride;
    map.origin += a.offsets.empty() ? 0 : a.offsets[*dim] * stride;
    stride *= a.global_shape.empty() ? sizes[*dim] : a.global_shape[*dim];
  }
  bool fits = true;
  for (const int64_t dim : dims) fits = fits && map.append(sizes[dim], strides[dim]);
  TORCH_CHECK_VALUE(fits, "actreg: shared_dims ", a.shared_dims, " of an input of shape ", sizes,
                    " alternate with other dimensions more than ", IndexMap::kMaxDims, " times");
}

void set_weight(General& general, at::IntArrayRef sizes, const Tensor& weight,
                const Attributes& a) {
  const auto missing = static_cast<int64_t>(sizes.size()) - weight.dim();
  const auto try_map = [&](const Tensor& w) {
    general.rows.weight_at = IndexMap();
    for (const int64_t dim : dims_of(a.order, sizes.size())) {
      const int64_t of_weight = dim - missing;
      const bool repeats = of_weight < 0 || w.size(of_weight) == 1;
      if (!general.rows.weight_at.append(sizes[dim], repeats ? 0 : w.stride(of_weight))) {
        return false;
      }
    }
    return true;
  };
  general.weight = weight;
  if (!try_map(weight)) {
    general.weight = in_order(weight.expand(sizes), a.order);
    general.rows.weight_at = IndexMap();
    general.rows.weight_at.append(general.weight.numel(), 1);
  }
  general.rows.weight = general.weight.const_data_ptr();
}

}  // namespace

void check_general(const Attributes& a, const OptionalTensor& row_weight, int64_t dims) {
  const auto check_dims = [&](const char* name, at::IntArrayRef given) {
    for (const int64_t dim : given) {
      TORCH_CHECK_VALUE(0 <= dim && dim < dims, "actreg: ", name, " must be in [0, ", dims - 1,
                        "], but got ", dim);
    }
  };
  TORCH_CHECK_VALUE(!a.channel_dim || (-1 <= *a.channel_dim && *a.channel_dim < dims),
                    "actreg: channel_dim must be -1 (one channel) or in [0, ", dims - 1,
                    "], but got ", a.channel_dim.value_or(0));
  check_dims("shared_dims", a.shared_dims);
  const auto is_of_dims = [&](at::IntArrayRef list) {
    return list.empty() || static_cast<int64_t>(list.size()) == dims;
  };
  TORCH_CHECK_VALUE(is_of_dims(a.global_shape) && a.global_shape.size() == a.offsets.size(),
                    "actreg: global_shape and offsets must be empty or have ", dims,
                    " numbers, but got ", a.global_shape, " and ", a.offsets);
  if (!row_weight || !row_weight->defined()) return;
  TORCH_CHECK_VALUE(a.channel_dim, "actreg: row_weight needs channel_dim; -1 is one channel");
  TORCH_CHECK_VALUE(row_weight->dim() <= dims, "actreg: row_weight has ", row_weight->dim(),
                    " dimensions and input ", dims);
}

void set_general(Problem& problem, General& general, at::IntArrayRef sizes, at::Device device,
                 const OptionalTensor& row_weight, const Attributes& a) {
  check_general(a, row_weight, static_cast<int64_t>(sizes.size()));
  if (!problem.is_general || c10::multiply_integers(sizes) == 0) return;
  for (size_t dim = 0; dim < a.offsets.size(); ++dim) {
    TORCH_CHECK_VALUE(a.offsets[dim] >= 0 && a.offsets[dim] + sizes[dim] <= a.global_shape[dim],
                      "actreg: an input of shape ", sizes, " at offsets ", a.offsets,
                      " does not lie within global_shape ", a.global_shape);
  }
  if (problem.drops()) {
    set_position(general.position_at, sizes, a);
    if (!general.position_at.is_identity()) problem.position_at = &general.position_at;
  }
  if (!a.channel_dim) return;
  problem.rows = &general.rows;
  if (*a.channel_dim >= 0) {
    const Order dims = dims_of(a.order, sizes.size());
    general.rows.channels = sizes[*a.channel_dim];
    for (auto dim = dims.rbegin(); *dim != *a.channel_dim; ++dim) general.rows.inner *= sizes[*dim];
  }
  if (!row_weight || !row_weight->defined()) return;
  const auto type =
      std::holds_alternative<ElementType<double>>(problem.element) ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(row_weight->scalar_type() == type && row_weight->device() == device,
                    "actreg: row_weight must be ", type, " on ", device, ", but got ",
                    row_weight->scalar_type(), " on ", row_weight->device());
  for (int64_t i = 0; i < row_weight->dim(); ++i) {
    const auto dim = static_cast<int64_t>(sizes.size()) - row_weight->dim() + i;
    TORCH_CHECK_VALUE(row_weight->size(i) == 1 || (row_weight->size(i) == sizes[dim] &&
                                                   (sizes[dim] == 1 || dim != *a.channel_dim)),
                      "actreg: row_weight of shape ", row_weight->sizes(),
                      " does not broadcast to an input of shape ", sizes,
                      " with size 1 in channel_dim ", *a.channel_dim);
  }
  set_weight(general, sizes, *row_weight, a);
}

bool address(const Tensor& x, at::IntArrayRef order, IndexMap& map) {
  constexpr int64_t kShortest = 64;  // bytes of a run; shorter ones are copied faster by PyTorch
  for (const int64_t dim : dims_of(order, x.sizes().size())) {
    if (!map.append(x.size(dim), x.stride(dim))) return false;
  }
  if (map.dims == 0) return true;
  const int last = map.dims - 1;
  return map.stride[last] == 1 &&
         map.size[last] * static_cast<int64_t>(x.element_size()) >= kShortest;
}

Tensor coefficients_of(const Problem& problem, const Rows& rows, const Tensor& dpenalty) {
  const bool is_double = std::holds_alternative<ElementType<double>>(problem.element);
  const int64_t repeats = rows.inner == 1 ? cpu::kBlock : 0;
  const Tensor made = at::empty({2, rows.channels + repeats}, is_double ? at::kDouble : at::kFloat);
  const bool is_scalar = problem.penalty.is_weighted;
  Tensor wide;
  if (dpenalty.defined()) wide = dpenalty.to(at::kDouble).contiguous();
  const auto fill = [&](auto* to) {
    for (int64_t c = 0; c < made.size(1); ++c) {
      PenaltySums<double> slopes{0, 0};
      if (wide.defined()) {
        const double* given = wide.const_data_ptr<double>();
        const int64_t channel = c % rows.channels;
        const double of_channel[] = {given[is_scalar ? 0 : channel],
                                     is_scalar ? 0 : given[rows.channels + channel]};
        slopes = problem.penalty.slopes(of_channel);
      }
      to[c] = slopes.l1;
      to[made.size(1) + c] = 2 * slopes.l2;
    }
  };
  is_double ? fill(made.mutable_data_ptr<double>()) : fill(made.mutable_data_ptr<float>());
  return made;
}

}  // namespace actreg
