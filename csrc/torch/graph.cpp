// What Python asks about the autograd graph of one forward. Layer: torch. See graph.h.
#include "torch/graph.h"

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>

#include "torch/nodes_of_bits.h"

namespace actreg {
namespace {

ForwardNode* node_of(const Tensor& tensor) {
  return dynamic_cast<ForwardNode*>(tensor.grad_fn().get());
}

// Whether the node that made the penalty also made the output of the forward.
bool has_shared_node(const Tensor& penalty) {
  const auto& node = penalty.grad_fn();
  // All results of a program that torch.compile made have one node, of this name.
  return node_of(penalty) || (node && node->name() == "CompiledFunctionBackward");
}

}  // namespace

bool inject(const Tensor& y, const Tensor& scale, double divisor) {
  ForwardNode* node = node_of(y);
  if (!node) return false;
  node->run.scale = scale;
  node->run.divisor = divisor;
  return true;
}

LoosePenalty::LoosePenalty(const Tensor& penalty)
    : value_(penalty.detach()), node_(penalty.grad_fn()), output_(penalty.output_nr()) {}

std::optional<Tensor> LoosePenalty::get() const {
  auto node = node_.lock();
  if (!node) return std::nullopt;
  Tensor penalty = value_.detach();
  torch::autograd::impl::set_gradient_edge(penalty, {std::move(node), output_});
  return penalty;
}

std::optional<LoosePenalty> loosen(const Tensor& penalty) {
  return has_shared_node(penalty) ? std::optional<LoosePenalty>(penalty) : std::nullopt;
}

std::optional<bool> is_in_use(const Tensor& penalty) {
  if (!has_shared_node(penalty)) return std::nullopt;
  return penalty.grad_fn().use_count() > 1;
}

std::optional<bool> is_freed(const Tensor& penalty) {
  const ForwardNode* node = node_of(penalty);
  return node ? std::optional<bool>(node->run.is_freed) : std::nullopt;
}

}  // namespace actreg
