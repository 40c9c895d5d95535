// Typed handles of the registered operators: a call goes through the dispatcher, so that autograd,
// functorch, fake tensors and dispatch modes all see it, at a fraction of torch.ops' cost.
// Layer: torch.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include "torch/operators.h"

namespace actreg {

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}
inline const auto& forward_operator() {
  static const auto handle = find_operator<Forward>("actreg::forward");
  return handle;
}
inline const auto& forward_random_operator() {
  static const auto handle = find_operator<ForwardRandom>("actreg::forward_random");
  return handle;
}
inline const auto& backward_operator() {
  static const auto handle = find_operator<Backward>("actreg::backward");
  return handle;
}
inline const auto& forward_bits_operator() {
  static const auto handle = find_operator<ForwardBits>("actreg::forward_bits");
  return handle;
}
inline const auto& forward_random_bits_operator() {
  static const auto handle = find_operator<ForwardRandomBits>("actreg::forward_random_bits");
  return handle;
}
inline const auto& forward_in_place_operator() {
  static const auto handle = find_operator<ForwardInPlace>("actreg::forward_");
  return handle;
}
inline const auto& backward_bits_operator() {
  static const auto handle = find_operator<BackwardBits>("actreg::backward_bits");
  return handle;
}
inline const auto& curvature_operator() {
  static const auto handle = find_operator<Backward>("actreg::curvature");
  return handle;
}

}  // namespace actreg
