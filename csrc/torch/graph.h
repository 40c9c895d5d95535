// What Python asks about the autograd graph of one forward. Layer: torch.
#pragma once

#include <optional>

#include "torch/node.h"
#include "torch/operators.h"

namespace actreg {

// Makes the backward of y's forward add the penalty's gradient, as if `scale / divisor` were the
// gradient of the penalty. Returns false if y is not the output of a forward operator.
bool inject(const Tensor& y, const Tensor& scale, double divisor);

// A penalty that does not keep its graph alive: the graph lives as long as the output of the
// forward, or a tensor computed from the output, is in use.
class LoosePenalty {
 public:
  explicit LoosePenalty(const Tensor& penalty);
  // The penalty with its graph; absent if the graph is gone.
  std::optional<Tensor> get() const;

 private:
  Tensor value_;
  WeakNode node_;
  uint32_t output_;
};
// Absent if the penalty's node may have made the penalty alone: then nothing else keeps the graph.
std::optional<LoosePenalty> loosen(const Tensor& penalty);
// Whether anything but the penalty holds the graph of the forward that made the penalty. Absent if
// the penalty's node may have made the penalty alone.
std::optional<bool> is_in_use(const Tensor& penalty);
// Whether a backward has freed the graph of the forward that made the penalty. Absent if the
// penalty was not made by a forward operator of this library in eager mode.
std::optional<bool> is_freed(const Tensor& penalty);

}  // namespace actreg
