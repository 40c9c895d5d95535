// The operators of the temporal penalty: schemas, Meta kernels, autograd. Layer: torch.
// See Note [Hand-written nodes]. The sum is quadratic in h, so backward is linear in h, and its
// matrix is symmetric. So every derivative is backward again, and there are derivatives of any
// order.
#include "torch/temporal.h"

#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "torch/nodes.h"

namespace actreg {

static void collect(CompiledNodeArgs& args, const TimeAxis& axis) {
  args.collect(axis.dim);
  args.collect(axis.order);
}

namespace {

using SumKernel = Tensor(const Tensor&, const OptionalTensor&, int64_t, at::IntArrayRef);
using GradientKernel = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, int64_t,
                              at::IntArrayRef);

template <class Kernel>
c10::TypedOperatorHandle<Kernel> handle_of(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Kernel>();
}
const auto& sum_handle() {
  static const auto handle = handle_of<SumKernel>("actreg::temporal");
  return handle;
}
const auto& gradient_handle() {
  static const auto handle = handle_of<GradientKernel>("actreg::temporal_backward");
  return handle;
}

// The derivative of the sum in the direction v.
Tensor direction(const Tensor& v, const Tensor& h, const OptionalTensor& weight,
                 const TimeAxis& axis) {
  const auto type = accumulation_type(h);
  const Tensor one = at::ones({}, h.options().dtype(type));
  return (v.to(type) * temporal_backward(one, h.to(type), weight, axis)).sum();
}

struct TemporalBackward final : public ActRegNode<TemporalBackward> {
  static constexpr char kName[] = "TemporalBackward";
  Saved h, weight;
  TimeAxis axis;

  template <class Self>
  static auto kept(Self& node) {
    return std::tie(node.h, node.weight, node.axis);
  }
  TemporalBackward(edge_list&& edges, const Tensor& h, const Tensor& weight, const TimeAxis& axis)
      : ActRegNode(std::move(edges)), h(h), weight(weight), axis(axis) {}

  variable_list differentiate(const variable_list& gradients) {
    if (!gradients[0].defined() || !task_should_compute_output(0)) return {Tensor()};
    return {temporal_backward(gradients[0], unpack(h), optional(unpack(weight)), axis)};
  }
};

struct TemporalBackwardBackward final : public ActRegNode<TemporalBackwardBackward> {
  static constexpr char kName[] = "TemporalBackwardBackward";
  Saved dsum, h, weight;
  TimeAxis axis;

  template <class Self>
  static auto kept(Self& node) {
    return std::tie(node.dsum, node.h, node.weight, node.axis);
  }
  TemporalBackwardBackward(edge_list&& edges, const Tensor& dsum, const Tensor& h,
                           const Tensor& weight, const TimeAxis& axis)
      : ActRegNode(std::move(edges)), dsum(dsum), h(h), weight(weight), axis(axis) {}

  variable_list differentiate(const variable_list& gradients) {  // of dsum and h
    variable_list result(2);
    if (!gradients[0].defined()) return result;
    const Tensor at = unpack(h), given = unpack(dsum);
    const auto weights = optional(unpack(weight));
    const Tensor v = is_compiled ? shaped(gradients[0], Shape(at)) : gradients[0];
    if (task_should_compute_output(0)) {
      result[0] = direction(v, at, weights, axis).to(given.scalar_type());
    }
    if (task_should_compute_output(1)) result[1] = temporal_backward(given, v, weights, axis);
    return result;
  }
};

Tensor sum_autograd(c10::DispatchKeySet keys, const Tensor& h, const OptionalTensor& weight,
                    int64_t dim, at::IntArrayRef order) {
  const TimeAxis axis{dim, order.vec()};
  const auto run = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return sum_handle().redispatch(keys & c10::after_autograd_keyset, h, weight, dim, order);
  };
  Tensor sum = run();
  if (torch::autograd::compute_requires_grad(h)) {
    torch::autograd::set_history(
        sum, make_node<TemporalBackward>(torch::autograd::collect_next_edges(h), h,
                                         tensor_or_none(weight), axis));
  }
  if (const Tensor v = tangent(h); v.defined()) {
    sum._set_fw_grad(direction(v, *primal(h), weight, axis), 0, false);
  }
  return sum;
}

Tensor gradient_autograd(c10::DispatchKeySet keys, const Tensor& dsum, const Tensor& h,
                         const OptionalTensor& weight, int64_t dim, at::IntArrayRef order) {
  const TimeAxis axis{dim, order.vec()};
  const auto run = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return gradient_handle().redispatch(keys & c10::after_autograd_keyset, dsum, h, weight, dim,
                                        order);
  };
  Tensor dh = run();
  if (torch::autograd::compute_requires_grad(dsum, h)) {
    torch::autograd::set_history(
        dh, make_node<TemporalBackwardBackward>(torch::autograd::collect_next_edges(dsum, h), dsum,
                                                h, tensor_or_none(weight), axis));
  }
  Tensor total;
  if (const Tensor v = tangent(dsum); v.defined()) {
    total = temporal_backward(v, *primal(h), weight, axis);
  }
  if (const Tensor v = tangent(h); v.defined()) {
    const Tensor part = temporal_backward(*primal(dsum), v, weight, axis);
    total = total.defined() ? total + part : part;
  }
  if (total.defined()) dh._set_fw_grad(total, 0, false);
  return dh;
}

void check_meta(const Tensor& h, const OptionalTensor& weight) {
  TORCH_CHECK_VALUE(!weight || !weight->defined() || weight->device() == h.device(),
                    "actreg: the weights are on ", weight->device(), " and h on ", h.device());
}

Tensor sum_meta(const Tensor& h, const OptionalTensor& weight, int64_t, at::IntArrayRef) {
  element_of(h.scalar_type());
  check_meta(h, weight);
  return at::empty({}, h.options().dtype(accumulation_type(h)));
}

// Checks no shape: see backward_meta in schemas.cpp.
Tensor gradient_meta(const Tensor&, const Tensor& h, const OptionalTensor& weight, int64_t,
                     at::IntArrayRef order) {
  check_meta(h, weight);
  return empty_in_order(h.sym_sizes(), order, h.options());
}

// weight with a dimension for each of h, in memory order. Where it is the same along a dimension,
// that dimension has size 1.
Tensor without_copies(const Tensor& weight, const Tensor& h, at::IntArrayRef order) {
  TORCH_CHECK_VALUE(weight.device() == h.device(), "actreg: the weights are on ", weight.device(),
                    " and h on ", h.device());
  Tensor w = weight.dim() <= h.dim() ? weight : Tensor();
  while (w.defined() && w.dim() < h.dim()) w = w.unsqueeze(0);
  for (int64_t d = 0; w.defined() && d < h.dim(); ++d) {
    if (w.size(d) != 1 && w.size(d) != h.size(d))
      w = Tensor();
    else if (w.size(d) > 1 && w.stride(d) == 0)
      w = w.narrow(d, 0, 1);
  }
  TORCH_CHECK_VALUE(w.defined(), "actreg: weights of shape ", weight.sizes(),
                    " do not broadcast to h of shape ", h.sizes());
  return order.empty() ? w : w.permute(order);
}

}  // namespace

Tensor temporal(const Tensor& h, const OptionalTensor& weight, const TimeAxis& axis) {
  return sum_handle().call(h, weight, axis.dim, axis.order);
}
Tensor temporal_backward(const Tensor& dsum, const Tensor& h, const OptionalTensor& weight,
                         const TimeAxis& axis) {
  return gradient_handle().call(dsum, h, weight, axis.dim, axis.order);
}

TemporalInputs temporal_inputs(const Tensor& h, const OptionalTensor& weight, int64_t dim,
                               at::IntArrayRef order) {
  TemporalInputs inputs;
  Temporal& task = inputs.task;
  task.element = element_of(h.scalar_type());
  TORCH_CHECK_VALUE(h.layout() == at::kStrided, "actreg: h has layout ", h.layout(),
                    "; accepted are strided tensors");
  TORCH_CHECK_VALUE(0 <= dim && dim < h.dim(), "actreg: dim is ", dim, ", but h has ", h.dim(),
                    " dimensions");
  check_order(order, h.dim());
  inputs.h = in_order(h, order);
  task.h = inputs.h.const_data_ptr();
  const auto find = std::find(order.begin(), order.end(), dim);
  const int64_t time = order.empty() ? dim : find - order.begin();
  const Tensor in_memory = order.empty() ? inputs.h : inputs.h.permute(order);
  at::DimVector sizes(in_memory.sizes().begin(), in_memory.sizes().end());
  task.time = sizes[time];
  task.outer = c10::multiply_integers(in_memory.sizes().slice(0, time));
  task.inner = c10::multiply_integers(in_memory.sizes().slice(time + 1));
  if (!weight || !weight->defined()) return inputs;

  Tensor w = without_copies(*weight, h, order);
  for (int64_t d = h.dim() - 1; d > time && w.size(d) == 1; --d) {
    task.channels *= std::exchange(sizes[d], 1);
  }
  for (int64_t d = time - 1; d >= 0 && w.size(d) == 1; --d) {
    task.repeat *= std::exchange(sizes[d], 1);
  }
  inputs.weight = w.to(accumulation_type(h)).expand(sizes).contiguous();
  task.weight = inputs.weight.const_data_ptr();
  return inputs;
}

TORCH_LIBRARY_FRAGMENT(actreg, m) {
  const std::vector<at::Tag> pure = {at::Tag::needs_exact_strides, at::Tag::pt2_compliant_tag};
  m.def("temporal(Tensor h, Tensor? weight, int dim, int[] order) -> Tensor", pure);
  m.def("temporal_backward(Tensor dsum, Tensor h, Tensor? weight, int dim, int[] order) -> Tensor",
        pure);
}

TORCH_LIBRARY_IMPL(actreg, Meta, m) {
  m.impl("temporal", &sum_meta);
  m.impl("temporal_backward", &gradient_meta);
}

TORCH_LIBRARY_IMPL(actreg, Autograd, m) {
  m.impl("temporal", &sum_autograd);
  m.impl("temporal_backward", &gradient_autograd);
}

}  // namespace actreg
