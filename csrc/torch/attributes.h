// The attributes: what every operator takes besides tensors, listed once. Layer: torch.
//
// Note [Attributes]
// Every attribute is an argument of eight operators. Each operator has a schema, a typed handle,
// and a Meta, a CPU, a CUDA and an Autograd kernel; the nodes of the autograd graph keep the
// attributes. AttributesHeld defines the attributes for all of these. To add an attribute:
// 1. Here, add the field, and add it to fields() at the same place. Then every schema, handle,
//    kernel and node has it. For an attribute of a new type, also add owned() and schema_type().
// 2. In operators.cpp, let problem_of check it and put it into the Problem.
// 3. In module.cpp, add it to FromPython, if the eager call sets it. Else give it a default there.
// 4. In actreg_ext, pass it where torch.ops.actreg is called.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/string_view.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace actreg {

// A field of a struct. A struct lists its fields as a tuple: see AttributesHeld::fields().
template <class Struct, class Type>
struct Field {
  const char* name;
  Type Struct::* member;
  const char* otherwise = "";  // "=value" if callers may leave the field out
};
template <class Struct, class Type>
Field(const char*, Type Struct::*, const char* = "") -> Field<Struct, Type>;

// Calls f with the values of all fields: f(values.activation, values.parameters, ...).
template <class Struct, class F>
decltype(auto) with_fields(const Struct& values, F&& f) {
  constexpr auto fields = Struct::fields();
  return std::apply(
      [&](const auto&... field) -> decltype(auto) { return f(values.*field.member...); }, fields);
}

// Attributes are held as views of the caller's memory during a call, and as values in a node of the
// graph, which outlives the call.
struct Views {
  using Text = c10::string_view;
  template <class T>
  using List = at::ArrayRef<T>;
};
struct Values {
  using Text = std::string;
  template <class T>
  using List = std::vector<T>;
};

template <class Held>
struct AttributesHeld {
  using Text = typename Held::Text;
  using Numbers = typename Held::template List<double>;
  using Integers = typename Held::template List<int64_t>;

  Text activation;
  Numbers parameters;  // of the activation, in its own order
  // The probability that dropout drops an element. Absent: rng_state has the threshold, as its
  // third number.
  std::optional<double> p;
  bool on_output;  // true: the penalty is on y; false: on a
  // {l1, l2}: forward returns the penalty. Absent: forward returns the two sums, as two numbers.
  std::optional<Numbers> coefficients;
  Text reduction;  // "sum", "mean", "batch" or "token": sets D, which divides the penalty or sums
  Integers order;  // see Note [Positions]
  // Keep the input for backward, not the output, where PyTorch's own activation keeps its input.
  bool keep_input = false;
  // See Note [The general form]. channel_dim: the dimension of the channels, or -1 for one channel.
  // With channel_dim and without coefficients, forward returns the sums [3, channels]: S1, S2, N.
  std::optional<int64_t> channel_dim = std::nullopt;
  Integers shared_dims = {};
  Integers global_shape = {}, offsets = {};  // of a shard
  bool alpha = false;

  static constexpr auto fields() {
    using A = AttributesHeld;
    return std::make_tuple(
        Field{"activation", &A::activation}, Field{"parameters", &A::parameters}, Field{"p", &A::p},
        Field{"on_output", &A::on_output}, Field{"coefficients", &A::coefficients},
        Field{"reduction", &A::reduction}, Field{"order", &A::order},
        Field{"keep_input", &A::keep_input, "=False"},
        Field{"channel_dim", &A::channel_dim, "=None"},
        Field{"shared_dims", &A::shared_dims, "=[]"},
        Field{"global_shape", &A::global_shape, "=[]"}, Field{"offsets", &A::offsets, "=[]"},
        Field{"alpha", &A::alpha, "=False"});
  }
};
using Attributes = AttributesHeld<Views>;
using OwnedAttributes = AttributesHeld<Values>;

// A list of types.
template <class...>
struct Types {};

// Only for its type: Types<string_view, ArrayRef<double>, ...>.
template <class Struct, class... Type>
Types<Type...> types_of(std::tuple<Field<Struct, Type>...>);
using AttributeTypes = decltype(types_of(Attributes::fields()));

// Views to values, and back.
inline std::string owned(c10::string_view text) { return {text.data(), text.size()}; }
template <class T>
std::vector<T> owned(at::ArrayRef<T> list) {
  return list.vec();
}
inline double owned(double number) { return number; }
inline int64_t owned(int64_t number) { return number; }
inline bool owned(bool flag) { return flag; }
template <class T>
auto owned(const std::optional<T>& value) {
  using Owned = decltype(owned(*value));
  return value ? std::optional<Owned>(owned(*value)) : std::nullopt;
}
inline OwnedAttributes owned(const Attributes& attributes) {
  return with_fields(attributes,
                     [](const auto&... value) { return OwnedAttributes{owned(value)...}; });
}
inline Attributes view(const OwnedAttributes& attributes) {
  return with_fields(attributes, [](const auto&... value) { return Attributes{value...}; });
}

// The type of an attribute, as schemas spell it.
inline std::string schema_type(c10::string_view) { return "str"; }
inline std::string schema_type(double) { return "float"; }
inline std::string schema_type(bool) { return "bool"; }
inline std::string schema_type(int64_t) { return "int"; }
inline std::string schema_type(at::ArrayRef<double>) { return "float[]"; }
inline std::string schema_type(at::ArrayRef<int64_t>) { return "int[]"; }
template <class T>
std::string schema_type(const std::optional<T>&) {
  return schema_type(T{}) + "?";
}

// The attributes as schemas list them: "str activation, float[] parameters, ...".
inline std::string schema_of_attributes() {
  std::string text;
  const auto add = [&](const auto& field) {
    const std::string type = schema_type(Attributes{}.*field.member);
    text += (text.empty() ? "" : ", ") + type + " " + field.name + field.otherwise;
  };
  std::apply([&](const auto&... field) { (add(field), ...); }, Attributes::fields());
  return text;
}

}  // namespace actreg
