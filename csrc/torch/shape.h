// The shape of x where x is not kept, and the backward from bits, which needs it. Layer: torch.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <vector>

#include "torch/dispatch.h"

namespace actreg {

using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::SwapSavedVariables;

struct Shape {
  std::vector<c10::SymInt> sizes;
  at::ScalarType dtype;

  explicit Shape(const Tensor& x) : Shape(x.sym_sizes(), x.scalar_type()) {}
  Shape(c10::SymIntArrayRef sizes, at::ScalarType dtype) : sizes(sizes.vec()), dtype(dtype) {}

  void collect(CompiledNodeArgs& args) const {
    args.collect(sizes);
    args.collect(dtype);
  }
  template <class F>
  variable_list swapped(SwapSavedVariables& swap, F apply) {
    for (c10::SymInt& size : sizes) swap.before(size);
    variable_list result = apply();
    for (c10::SymInt& size : sizes) swap.after(size);
    return result;
  }
};

inline Tensor call_bits(const OptionalTensor& dy, const OptionalTensor& dpenalty,
                        const OptionalTensor& bits, const OptionalTensor& rng_state,
                        const OptionalTensor& anchor, const Shape& shape, const Attributes& a) {
  return backward_bits_operator().call(dy, dpenalty, bits, rng_state, anchor, shape.sizes,
                                       shape.dtype, a.activation, a.parameters, a.p, a.on_output,
                                       a.coefficients, a.reduction, a.order);
}

// v as a tensor of that shape. Compiled autograd traces a node with a placeholder of no shape in
// the place of v, and multiplying by the placeholder fails. The gradient of the identity is v, and
// its operator takes the shape from the arguments.
inline Tensor shaped(const Tensor& v, const Shape& shape) {
  static constexpr double kOff[] = {0, 0};
  if (!v.defined()) return v;
  return call_bits(v, std::nullopt, std::nullopt, std::nullopt, std::nullopt, shape,
                   {"identity", {}, 0, false, kOff, "sum", {}});
}

}  // namespace actreg
