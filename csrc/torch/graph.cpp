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
  // All results of a program that torch.compile made have one node, of this name.
  const auto& node = penalty.grad_fn();
  const bool is_shared = node_of(penalty) || (node && node->name() == "CompiledFunctionBackward");
  return is_shared ? std::optional<LoosePenalty>(penalty) : std::nullopt;
}

std::optional<bool> is_freed(const Tensor& penalty) {
  const ForwardNode* node = node_of(penalty);
  return node ? std::optional<bool>(node->run.is_freed) : std::nullopt;
}

}  // namespace actreg
