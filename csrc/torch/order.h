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
// The mask and the bits count the elements of x in one order: `order` names the dimensions of x
// from the outermost to the innermost; the empty order is the row-major one. Every operator takes
// the order as an argument. No operator reads the order off the strides of a tensor, because
// autograd, functorch, Inductor and hooks on saved tensors hand over copies whose strides differ:
// the numbers of such a copy are right, and only the order says where they stood in forward.
// order_of(x), called once before forward, is where strides become an order.
using Order = at::DimVector;
// The memory order of x, if the elements of x fill a block of memory; else the row-major order.
Order order_of(const Tensor& x);
// The dense strides of a tensor of these sizes in that order.
at::DimVector strides_of(at::IntArrayRef sizes, at::IntArrayRef order);
// x itself if x is dense in that order; else such a copy.
Tensor in_order(const Tensor& x, at::IntArrayRef order);
// A dense tensor in that order, of the shape and type of x, that holds dy; zeros without a dy.
Tensor in_order_of(const Tensor& x, const OptionalTensor& dy, at::IntArrayRef order);
// Throws unless `order` is an order of `dims` dimensions.
void check_order(at::IntArrayRef order, size_t dims);
// x itself if kernels can write where they read, nothing if not. Throws if x overlaps itself.
Tensor writable(const Tensor& x, at::IntArrayRef order);

}  // namespace actreg
