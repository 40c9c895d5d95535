// The shape of x, for nodes that do not keep x. Layer: torch.
#pragma once

#include <vector>

#include "torch/dispatch.h"

namespace actreg {

struct Shape {
  std::vector<c10::SymInt> sizes;
  at::ScalarType dtype;

  explicit Shape(const Tensor& x) : Shape(x.sym_sizes(), x.scalar_type()) {}
  Shape(c10::SymIntArrayRef sizes, at::ScalarType dtype) : sizes(sizes.vec()), dtype(dtype) {}
};

// v as a tensor of that shape. Compiled autograd traces a node with a placeholder of another shape
// in the place of v, and multiplying by the placeholder fails. The gradient of the identity is v,
// and backward_bits takes the shape of its result from its arguments.
inline Tensor shaped(const Tensor& v, const Shape& shape) {
  if (!v.defined()) return v;
  static constexpr double kOff[] = {0, 0};
  Attributes identity{};
  identity.activation = "identity";
  identity.p = 0;
  identity.coefficients = kOff;
  identity.reduction = "sum";
  return BackwardBits::call(v, std::nullopt, std::nullopt, std::nullopt, std::nullopt, shape.sizes,
                            shape.dtype, identity);
}

}  // namespace actreg
