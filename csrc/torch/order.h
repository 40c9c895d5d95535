// The order of positions, and tensors laid out in that order. Layer: torch.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstddef>
#include <optional>

namespace actreg {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Note [Positions]
// The mask and the bits number the elements of x: element i of the mask belongs to position i. The
// attribute `order` fixes this numbering. It lists the dimensions of x from the outermost to the
// innermost. For example, [0, 2, 3, 1] is the order of a channels_last image (N, C, H, W). The
// empty order stands for the row-major order, [0, 1, 2, 3].
//
// order_of(x) makes the order from the strides of x. It is called once, before forward, and the
// order is handed on to every operator. No operator reads the order off the strides of a tensor:
// autograd, functorch, Inductor and hooks on saved tensors hand over copies of x with other
// strides, and only the order tells at which position an element was in forward.
using Order = at::DimVector;
// The memory order of x if the elements of x fill a block of memory, else the row-major order.
Order order_of(const Tensor& x);
// The strides of a dense tensor of these sizes whose memory is in that order.
at::DimVector strides_of(at::IntArrayRef sizes, at::IntArrayRef order);
// Whether x is dense and in that order.
bool is_in_order(const Tensor& x, at::IntArrayRef order);
// A new tensor laid out in that order. Does not look at the sizes, which may be unknown. If the
// sizes are those of a placeholder (see backward_meta), the order does not fit their number and is
// ignored.
Tensor empty_in_order(c10::SymIntArrayRef sizes, at::IntArrayRef order,
                      const at::TensorOptions& options);
// x itself if x is dense and in that order, else a copy that is.
Tensor in_order(const Tensor& x, at::IntArrayRef order);
// dy as a dense tensor in that order, of the shape and type of x; zeros if there is no dy.
Tensor in_order_of(const Tensor& x, const OptionalTensor& dy, at::IntArrayRef order);
// Throws unless `order` is empty or a permutation of 0, ..., dims - 1.
void check_order(at::IntArrayRef order, size_t dims);
// x itself if kernels can overwrite x directly, that is if x is dense and in that order; else an
// undefined tensor. Throws if several elements of x share memory.
Tensor writable(const Tensor& x, at::IntArrayRef order);

}  // namespace actreg
