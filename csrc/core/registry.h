// Visits activations, and finds them by name. Layer: core (host only).
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include "core/activations.h"

namespace actreg {

constexpr std::size_t kActivations = std::variant_size_v<Activation>;

namespace detail {

template <std::size_t I, class Variant>
ACTREG_INLINE auto alternative(const Variant& value) {
  using Alternative = std::variant_alternative_t<I, Variant>;
  if constexpr (std::is_empty_v<Alternative>) {
    return Alternative{};
  } else {
    return *std::get_if<I>(&value);
  }
}
template <class F, class Variant, std::size_t... I>
ACTREG_INLINE void visit(F& f, const Variant& value, std::index_sequence<I...>) {
  (void)((value.index() == I && (f(alternative<I>(value)), true)) || ...);
}
template <class F, std::size_t... I>
void for_each(F& f, std::index_sequence<I...>) {
  (f(std::variant_alternative_t<I, Activation>{}), ...);
}

}  // namespace detail

// Like std::visit, but without its exception, whose code would be a weak symbol compiled for
// AVX-512: see Note [One source for each instruction set].
template <class F, class Variant>
ACTREG_INLINE void visit(F f, const Variant& value) {
  detail::visit(f, value, std::make_index_sequence<std::variant_size_v<Variant>>{});
}

// Calls f(act) for each activation of the list; act has its default parameters.
template <class F>
void for_each_activation(F f) {
  detail::for_each(f, std::make_index_sequence<kActivations>{});
}

// The activation called `name`, with `parameters` in the order of its parameters(). Returns nothing
// if no activation has this name or if `count` is not its number of parameters.
inline std::optional<Activation> make_activation(std::string_view name, const double* parameters,
                                                 std::size_t count) {
  std::optional<Activation> made;
  for_each_activation([&](auto act) {
    if (made || name != act.name || count != act.parameters().size()) return;
    for (const auto& parameter : act.parameters()) {
      if constexpr (!std::is_base_of_v<NoParameters, decltype(act)>)
        act.*parameter.member = *parameters++;
    }
    made = act;
  });
  return made;
}

}  // namespace actreg
