// Names and parameters of the activations, read off the list. Layer: core (host only).
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

// std::visit without its exception: it would leave weak symbols in files compiled for AVX-512.
template <class F, class Variant>
ACTREG_INLINE void visit(F f, const Variant& value) {
  detail::visit(f, value, std::make_index_sequence<std::variant_size_v<Variant>>{});
}

// Calls f(activation with its default parameters) for each in the list.
template <class F>
void for_each_activation(F f) {
  detail::for_each(f, std::make_index_sequence<kActivations>{});
}

// The activation of that name with those parameters (in order); nothing if there is none, or if
// the number of parameters is not its own.
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
