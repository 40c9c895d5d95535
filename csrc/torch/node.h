// A node of the autograd graph: what all nodes share. Layer: torch.
//
// Note [Hand-written nodes]
// The Autograd kernels put the nodes into the graph as PyTorch's generated code does.
// torch::autograd::Function and formulas in Python are slower; they also fail under torch.func, or
// give wrong second derivatives.
//
// backward is linear in dy and dpenalty, and elementwise in x. So the derivative of backward by dy
// or by dpenalty is backward again, and its derivative by x is `curvature`. The nodes of nodes.h
// keep x or the output. The nodes of nodes_of_bits.h keep bits, or nothing.
//
// A node N derives from ActRegNode<N> and has three members:
//   kName                      the name that grad_fn shows
//   kept(node)                 references to everything the node keeps, as a tuple
//   differentiate(gradients)   the gradients of the inputs, from the gradients of the outputs
// From these ActRegNode locks the node, frees what the node keeps after backward, and shows it to
// compiled autograd. For a new type of member, add collect(), swap_in(), swap_out() and release().
#pragma once

#include <c10/util/ScopeExit.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/version.h>

#include <mutex>
#include <string>
#include <tuple>
#include <utility>

#include "torch/shape.h"

namespace actreg {

using torch::autograd::edge_list;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::SwapSavedVariables;

// torch 2.13 moved nodes from shared_ptr to intrusive_ptr.
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 13)
template <class N, class... Arguments>
auto make_node(Arguments&&... arguments) {
  return c10::make_intrusive<N>(std::forward<Arguments>(arguments)...);
}
inline auto pointer_to(Node* node) { return c10::intrusive_ptr<Node>::reclaim_copy(node); }
using WeakNode = c10::weak_intrusive_ptr<Node>;
#else
template <class N, class... Arguments>
auto make_node(Arguments&&... arguments) {
  return std::shared_ptr<N>(new N(std::forward<Arguments>(arguments)...),
                            torch::autograd::deleteNode);
}
inline auto pointer_to(Node* node) { return node->shared_from_this(); }
using WeakNode = std::weak_ptr<Node>;
#endif

// A tensor that a node keeps. The tensor may be undefined.
struct Saved {
  SavedVariable variable;
  bool is_output;  // of the node that keeps it

  explicit Saved(const Tensor& tensor, bool is_output = false)
      : variable(tensor, is_output), is_output(is_output) {}
};

// What becomes of the node of one forward.
struct Run {
  // Defined: backward adds the gradient of the penalty as if scale / divisor were the gradient that
  // the penalty gets. See ActReg(inject=True).
  Tensor scale;
  double divisor = 1;
  bool has_injected = false;
  bool is_freed = false;  // a backward has freed what the node keeps
};

// Tells compiled autograd about a member of a node. Two nodes may share a compiled graph only if
// these values are equal, so every value that the gradients depend on must be told.
inline void collect(CompiledNodeArgs& args, const Saved& saved) {
  args.collect(saved.variable, saved.is_output);
  args.collect(saved.is_output);
}
inline void collect(CompiledNodeArgs& args, const Shape& shape) {
  args.collect(shape.sizes);
  args.collect(shape.dtype);
}
inline void collect(CompiledNodeArgs& args, const Run& run) {
  args.collect(run.scale);
  args.collect(run.divisor);
  args.collect(run.has_injected);
}
inline void collect(CompiledNodeArgs& args, bool flag) { args.collect(flag); }
inline void collect(CompiledNodeArgs& args, const OwnedAttributes& attributes) {
  with_fields(attributes, [&](const auto&... value) { (args.collect(value), ...); });
}

// While compiled autograd traces a node, placeholders take the place of its tensors and sizes.
template <class Member>
void swap_in(SwapSavedVariables&, Member&) {}
template <class Member>
void swap_out(SwapSavedVariables&, Member&) {}
inline void swap_in(SwapSavedVariables& swap, Saved& saved) { swap.before(saved.variable); }
inline void swap_out(SwapSavedVariables& swap, Saved& saved) { swap.after(saved.variable); }
inline void swap_in(SwapSavedVariables& swap, Run& run) { swap.before(run.scale); }
inline void swap_out(SwapSavedVariables& swap, Run& run) { swap.after(run.scale); }
inline void swap_in(SwapSavedVariables& swap, Shape& shape) {
  for (c10::SymInt& size : shape.sizes) swap.before(size);
}
inline void swap_out(SwapSavedVariables& swap, Shape& shape) {
  for (c10::SymInt& size : shape.sizes) swap.after(size);
}

template <class Member>
void release(Member&) {}
inline void release(Saved& saved) { saved.variable.reset_data(); }
inline void release(Run& run) {
  run.scale.reset();
  run.is_freed = true;
}

template <class N>
struct ActRegNode : public Node {
  bool is_compiled = false;  // compiled autograd is tracing this node

  explicit ActRegNode(edge_list&& edges) : Node(std::move(edges)) {}
  std::string name() const override { return N::kName; }

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<N*>(this)->differentiate(gradients);
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    each(static_cast<N&>(*this), [](auto& member) { release(member); });
  }
  void compiled_args(CompiledNodeArgs& args) const override {
    each(static_cast<const N&>(*this), [&](const auto& member) { collect(args, member); });
  }
  variable_list apply_with_saved(const variable_list& inputs, SwapSavedVariables& swap) override {
    is_compiled = true;
    const auto reset = c10::make_scope_exit([&] { is_compiled = false; });
    each(static_cast<N&>(*this), [&](auto& member) { swap_in(swap, member); });
    variable_list result = this->apply(variable_list(inputs));
    each(static_cast<N&>(*this), [&](auto& member) { swap_out(swap, member); });
    return result;
  }

 protected:
  Tensor unpack(const Saved& saved) {
    return saved.is_output ? saved.variable.unpack(pointer_to(this)) : saved.variable.unpack();
  }

 private:
  template <class Self, class F>
  static void each(Self& node, F f) {
    std::apply([&](auto&... member) { (f(member), ...); }, N::kept(node));
  }
};

}  // namespace actreg
