// The table of operators, with the name, the schema and the C++ signature of each; how to call an
// operator and how to register a kernel. Layer: torch. Must hold no kernel.
//
// Op::call goes through the dispatcher, so that autograd, functorch, fake tensors and dispatch
// modes see the call. Through a typed handle it is much cheaper than through torch.ops.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "torch/operators.h"

namespace actreg {

// An operator. The dispatcher passes it the arguments `Before...`, then the attributes one by one,
// then `After...`. Callers and kernels have one argument `attributes` instead:
//   Backward::call(dy, dpenalty, x, rng_state, attributes, x_is_output, row_weight)
// is backward(dy, dpenalty, x, rng_state, activation, parameters, ..., order, ..., x_is_output,
// row_weight).
template <class Op, class Result, class Before, class After = Types<>,
          class Attribute = AttributeTypes>
struct Operator;

template <class Op, class R, class... Before, class... After, class... Attribute>
struct Operator<Op, R, Types<Before...>, Types<After...>, Types<Attribute...>> {
  using Result = R;
  using Flat = Result(Before..., Attribute..., After...);  // for the dispatcher
  using Kernel = Result(Before..., const Attributes&, After...);
  using Keyed = Result(c10::DispatchKeySet, Before..., const Attributes&, After...);

  static Result call(Before... before, const Attributes& attributes, After... after) {
    return with_fields(attributes, [&](const auto&... attribute) {
      return handle().call(before..., attribute..., after...);
    });
  }
  static Result redispatch(c10::DispatchKeySet keys, Before... before, const Attributes& attributes,
                           After... after) {
    return with_fields(attributes, [&](const auto&... attribute) {
      return handle().redispatch(keys, before..., attribute..., after...);
    });
  }

  // Registers `kernel`, a Kernel, or a Keyed if it redispatches.
  template <auto* kernel>
  static void implement(torch::Library& library) {
    if constexpr (std::is_same_v<decltype(kernel), Kernel*>) {
      library.impl(Op::kName, c10::CompileTimeFunctionPointer<Flat, &flat<kernel>>());
    } else {
      using FlatKeyed = Result(c10::DispatchKeySet, Before..., Attribute..., After...);
      library.impl(Op::kName, c10::CompileTimeFunctionPointer<FlatKeyed, &flat_keyed<kernel>>());
    }
  }

 private:
  static const c10::TypedOperatorHandle<Flat>& handle() {
    static const auto handle =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow(("actreg::" + std::string(Op::kName)).c_str(), "")
            .template typed<Flat>();
    return handle;
  }
  template <Kernel* kernel>
  static Result flat(Before... before, Attribute... attribute, After... after) {
    return kernel(before..., Attributes{attribute...}, after...);
  }
  template <Keyed* kernel>
  static Result flat_keyed(c10::DispatchKeySet keys, Before... before, Attribute... attribute,
                           After... after) {
    return kernel(keys, before..., Attributes{attribute...}, after...);
  }
};

template <class Op, auto* kernel>
void implement(torch::Library& library) {
  Op::template implement<kernel>(library);
}

// What the forward operators compute. Each operator returns some of these tensors.
struct Results {
  Tensor y, penalty, rng_state, bits;
};

// A forward operator. If `draws`, it does not take an rng_state: it draws one from the default
// generator of x's device, and returns it. If `bits`, it returns bits, from which backward_bits
// computes dx without x: see Note [What is kept for backward].
template <class Op, bool draws, bool bits>
struct ForwardOperator
    : Operator<Op, decltype(std::tuple_cat(std::array<Tensor, 2 + draws + bits>())),
               std::conditional_t<draws, Types<const Tensor&>,
                                  Types<const Tensor&, const OptionalTensor&>>,
               Types<const OptionalTensor&>> {
  static constexpr bool kDraws = draws, kBits = bits;
};

struct Forward : ForwardOperator<Forward, false, false> {
  static constexpr char kName[] = "forward";
  static constexpr char kSchema[] =
      "(Tensor x, Tensor? rng_state, ATTRIBUTES, Tensor? row_weight=None) -> (Tensor output, "
      "Tensor "
      "penalty)";
};
struct ForwardRandom : ForwardOperator<ForwardRandom, true, false> {
  static constexpr char kName[] = "forward_random";
  static constexpr char kSchema[] =
      "(Tensor x, ATTRIBUTES, Tensor? row_weight=None) -> (Tensor output, Tensor penalty, Tensor "
      "rng_state)";
};
struct ForwardBits : ForwardOperator<ForwardBits, false, true> {
  static constexpr char kName[] = "forward_bits";
  static constexpr char kSchema[] =
      "(Tensor x, Tensor? rng_state, ATTRIBUTES, Tensor? row_weight=None) -> (Tensor output, "
      "Tensor "
      "penalty, Tensor bits)";
};
struct ForwardRandomBits : ForwardOperator<ForwardRandomBits, true, true> {
  static constexpr char kName[] = "forward_random_bits";
  static constexpr char kSchema[] =
      "(Tensor x, ATTRIBUTES, Tensor? row_weight=None) -> (Tensor output, Tensor penalty, Tensor "
      "rng_state, Tensor bits)";
};

// Overwrites x with y. The bits are empty unless `with_bits`.
struct ForwardInPlace
    : Operator<ForwardInPlace, std::tuple<Tensor, Tensor>,
               Types<const Tensor&, const OptionalTensor&>, Types<bool, const OptionalTensor&>> {
  static constexpr char kName[] = "forward_";
  static constexpr char kSchema[] =
      "(Tensor(a!) x, Tensor? rng_state, ATTRIBUTES, bool with_bits=False, Tensor? row_weight=None)"
      " -> (Tensor penalty, Tensor bits)";
};

// Operators that compute a tensor like x. If `x_is_output`, the argument x is the output of forward
// instead. That is allowed for activations whose slope is a function of the output.
template <class Op>
using BackwardOperator = Operator<
    Op, Tensor,
    Types<const OptionalTensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&>,
    Types<bool, const OptionalTensor&>>;

struct Backward : BackwardOperator<Backward> {  // dx
  static constexpr char kName[] = "backward";
  static constexpr char kSchema[] =
      "(Tensor? dy, Tensor? dpenalty, Tensor x, Tensor? rng_state, ATTRIBUTES"
      ", bool x_is_output=False, Tensor? row_weight=None) -> Tensor";
};
struct Curvature : BackwardOperator<Curvature> {  // d(dx)/dx, element by element
  static constexpr char kName[] = "curvature";
  static constexpr char kSchema[] =
      "(Tensor? dy, Tensor? dpenalty, Tensor x, Tensor? rng_state, ATTRIBUTES"
      ", bool x_is_output=False, Tensor? row_weight=None) -> Tensor";
};

// dx from bits. There is no x, so `sizes` and `dtype` are those of dx. `anchor` does not change dx:
// it only connects dx to x in the graph, see ActRegAnchor.
struct BackwardBits : Operator<BackwardBits, Tensor,
                               Types<const OptionalTensor&, const OptionalTensor&,
                                     const OptionalTensor&, const OptionalTensor&,
                                     const OptionalTensor&, c10::SymIntArrayRef, at::ScalarType>> {
  static constexpr char kName[] = "backward_bits";
  static constexpr char kSchema[] =
      "(Tensor? dy, Tensor? dpenalty, Tensor? bits, Tensor? rng_state, Tensor? anchor, "
      "SymInt[] sizes, ScalarType dtype, ATTRIBUTES) -> Tensor";
};

template <bool kChosen>
auto part_if(Tensor& part) {
  if constexpr (kChosen) {
    return std::tie(part);
  } else {
    return std::tuple<>();
  }
}
// References to the tensors in `results` that the operator returns, in the order of its schema.
template <class Op>
auto parts(Results& results) {
  return std::tuple_cat(std::tie(results.y, results.penalty),
                        part_if<Op::kDraws>(results.rng_state), part_if<Op::kBits>(results.bits));
}

// The kernel of one forward operator, made from a function f that serves all four:
//   Results f(Keys..., const Tensor& x, const OptionalTensor& row_weight,
//             const OptionalTensor* rng_state, const Attributes&, bool with_bits)
// f draws an rng_state if the pointer is null. Keys is c10::DispatchKeySet if f redispatches, else
// nothing.
template <class Op, auto* f, class... Keys>
struct ForwardKernel {
  static typename Op::Result given(Keys... keys, const Tensor& x, const OptionalTensor& rng_state,
                                   const Attributes& attributes, const OptionalTensor& row_weight) {
    return returned(f(keys..., x, row_weight, &rng_state, attributes, Op::kBits));
  }
  static typename Op::Result drawn(Keys... keys, const Tensor& x, const Attributes& attributes,
                                   const OptionalTensor& row_weight) {
    return returned(f(keys..., x, row_weight, nullptr, attributes, Op::kBits));
  }
  static typename Op::Result returned(Results&& results) {
    return std::apply([](auto&... part) { return typename Op::Result(std::move(part)...); },
                      parts<Op>(results));
  }
};
template <auto* f, class... Keys>
void implement_forward(torch::Library& library) {
  implement<Forward, &ForwardKernel<Forward, f, Keys...>::given>(library);
  implement<ForwardRandom, &ForwardKernel<ForwardRandom, f, Keys...>::drawn>(library);
  implement<ForwardBits, &ForwardKernel<ForwardBits, f, Keys...>::given>(library);
  implement<ForwardRandomBits, &ForwardKernel<ForwardRandomBits, f, Keys...>::drawn>(library);
}

}  // namespace actreg
