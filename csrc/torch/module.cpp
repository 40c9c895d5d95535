// The Python module: the eager calls, the registry, facts about the build. Layer: torch.
#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/registry.h"
#include "torch/cpu_capability.h"
#include "torch/dispatch.h"
#include "torch/graph.h"

namespace actreg {
namespace {

namespace py = pybind11;

// A tensor {seed, 0}, drawn by torch.randint as reference.py does it: tracers and transforms know
// that torch.randint is random.
Tensor draw(const Tensor& x) {
  using Limits = std::numeric_limits<int64_t>;
  const auto options = at::TensorOptions(x.device()).dtype(at::kLong);
  return at::constant_pad_nd(at::randint(Limits::min(), Limits::max(), {1}, options), {0, 1});
}

// Whether a tracer or a transform of torch.func records the calls. Modes that only count or log
// calls do not matter here: a forward repeated with or without such a mode has to draw from the
// same source.
bool is_seen() {
  using Modes = c10::impl::TorchDispatchModeTLS;
  using Key = c10::impl::TorchDispatchModeKey;
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) {
    return true;
  }
  return c10::impl::dispatch_mode_enabled() &&
         (Modes::get_mode(Key::PROXY) || Modes::get_mode(Key::FUNCTIONAL) ||
          Modes::get_mode(Key::FAKE));
}

// The attributes as Python passes them, after the arguments `Before...` of a function f. Python
// does not pass the order of positions: f makes it from x, if f needs it.
template <class R, class... Before>
struct FromPython {
  using Function = R(Before..., Attributes);

  template <Function* f>
  static R call(Before... before, c10::string_view activation,
                const std::vector<double>& parameters, double p, bool on_output, double l1,
                double l2, c10::string_view reduction, bool keep_input) {
    const double coefficients[] = {l1, l2};
    return f(before...,
             {activation, parameters, p, on_output, coefficients, reduction, {}, keep_input});
  }
  // For a result that is the same for every reduction.
  template <Function* f>
  static R call_without_reduction(Before... before, c10::string_view activation,
                                  const std::vector<double>& parameters, double p, bool on_output,
                                  double l1, double l2, bool keep_input) {
    return call<f>(before..., activation, parameters, p, on_output, l1, l2, "sum", keep_input);
  }
};

// Runs forward. With dropout and without rng_state, a seed is drawn. forward_random draws it
// fastest. But where a tracer or a transform sees the call, `draw` has to draw it, by
// torch.randint. vmap knows what its option `randomness` means for torch.randint. And AOTAutograd
// would merge two equal calls of forward_random into one, so that two layers would have the same
// mask.
std::tuple<Tensor, Tensor> forward(const Tensor& x, const OptionalTensor& row_weight,
                                   const OptionalTensor& rng_state, Attributes attributes) {
  OptionalTensor drawn = rng_state;
  const bool draws = attributes.p && *attributes.p > 0 && !rng_state;
  const bool draws_visibly = draws && is_seen();
  if (draws_visibly) {
    make_problem(x, attributes);  // throws before the generator moves
    drawn = draw(x);
  }
  const Order order = order_of(x);
  attributes.order = order;
  if (!draws || draws_visibly) return Forward::call(x, drawn, attributes, row_weight);
  const auto [y, penalty, state] = ForwardRandom::call(x, attributes, row_weight);
  return {y, penalty};
}

// The general form: returns the output and the penalty or the sums, see Attributes.
std::tuple<Tensor, Tensor> forward_general(
    const Tensor& x, const OptionalTensor& rng_state, c10::string_view activation,
    const std::vector<double>& parameters, std::optional<double> p, bool on_output,
    const std::optional<std::vector<double>>& coefficients, c10::string_view reduction,
    bool keep_input, std::optional<int64_t> channel_dim, const std::vector<int64_t>& shared_dims,
    const std::vector<int64_t>& global_shape, const std::vector<int64_t>& offsets, bool alpha,
    const OptionalTensor& row_weight) {
  Attributes attributes{activation,   parameters, p,          on_output,   std::nullopt,
                        reduction,    {},         keep_input, channel_dim, shared_dims,
                        global_shape, offsets,    alpha};
  if (coefficients) attributes.coefficients = *coefficients;
  return forward(x, row_weight, rng_state, attributes);
}

py::object act_reg(const py::type& type, const Tensor& x, const OptionalTensor& rng_state,
                   Attributes attributes) {
  auto* tuple_type = reinterpret_cast<PyTypeObject*>(type.ptr());
  TORCH_CHECK_TYPE(PyType_FastSubclass(tuple_type, Py_TPFLAGS_TUPLE_SUBCLASS),
                   "actreg: type must be a subclass of tuple, got ", tuple_type->tp_name);
  Tensor y, penalty;
  {
    const py::gil_scoped_release released;
    std::tie(y, penalty) = forward(x, std::nullopt, rng_state, attributes);
  }
  const py::tuple pair = py::make_tuple(std::move(y), std::move(penalty));
  PyObject* made = PyTuple_Type.tp_new(tuple_type, py::make_tuple(pair).ptr(), nullptr);
  if (!made) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

// act_reg with everything but x given beforehand: converting the arguments of one call from Python
// takes a third of the call's time.
class Prepared {
 public:
  Prepared(py::type type, const Attributes& attributes)
      : type_(std::move(type)), attributes_(owned(attributes)) {}
  py::object operator()(const Tensor& x) const {
    return act_reg(type_, x, std::nullopt, view(attributes_));
  }

 private:
  py::type type_;
  OwnedAttributes attributes_;
};
std::unique_ptr<Prepared> prepare(py::type type, Attributes attributes) {
  return std::make_unique<Prepared>(std::move(type), attributes);
}

// Overwrites x with the output and returns the penalty.
Tensor act_reg_in_place(const Tensor& x, const OptionalTensor& rng_state, Attributes attributes) {
  OptionalTensor drawn;
  const bool draws = *attributes.p > 0 && !rng_state;
  if (draws) {
    // These checks come first, so that the generator does not move in a call that is refused.
    torch::autograd::check_inplace(x, torch::autograd::compute_requires_grad(x));
    at::assert_no_internal_overlap(x);
    drawn = draw(x);
  }
  const Order order = order_of(x);
  attributes.order = order;
  return std::get<0>(
      ForwardInPlace::call(x, draws ? drawn : rng_state, attributes, false, std::nullopt));
}

// What forward keeps for backward of an x of that dtype, if x requires a gradient.
const char* kept(at::ScalarType dtype, Attributes attributes) {
  Problem problem = problem_of(attributes);
  problem.element = element_of(dtype);
  switch (state_of(problem).kept) {
    case Kept::kInput:
      return "input";
    case Kept::kOutput:
      return "output";
    case Kept::kBits:
      return "bits";
    default:
      return "nothing";
  }
}

py::dict activations() {
  py::dict all;
  for_each_activation([&](auto act) {
    py::dict defaults;
    for (const auto& parameter : act.parameters()) {
      if constexpr (!std::is_base_of_v<NoParameters, decltype(act)>) {
        const double value = act.*parameter.member;
        defaults[parameter.name] = std::isnan(value) ? py::object(py::none()) : py::float_(value);
      }
    }
    all[act.name] = defaults;
  });
  return all;
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
#if defined(__clang__)
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
#ifdef ACTREG_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  py::list names;
  for (const cpu::Kernels* kernels : cpu::kAllKernels) names.append(kernels->name);
  info["instruction_sets"] = names;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using torch::wrap_pybind_function, torch::wrap_pybind_function_no_gil;
  using Eager = FromPython<py::object, const py::type&, const Tensor&, const OptionalTensor&>;
  using InPlace = FromPython<Tensor, const Tensor&, const OptionalTensor&>;
  using OfType = FromPython<const char*, at::ScalarType>;
  const auto define = [&](const char* name, auto f, const auto&... names) {
    std::apply([&](const auto&... argument) { m.def(name, f, argument...); },
               std::tuple_cat(names...));
  };
  const auto attributes =
      std::make_tuple(py::arg("activation"), py::arg("parameters"), py::arg("p"),
                      py::arg("on_output"), py::arg("l1"), py::arg("l2"));
  const auto reduction = std::make_tuple(py::arg("reduction"));
  const auto keep_input = std::make_tuple(py::arg("keep_input") = false);
  define("forward", wrap_pybind_function(Eager::call<act_reg>),
         std::make_tuple(py::arg("type"), py::arg("x"), py::arg("rng_state")), attributes,
         reduction, keep_input);
  m.def("forward_general", wrap_pybind_function_no_gil(forward_general), py::arg("x"),
        py::arg("rng_state"), py::arg("activation"), py::arg("parameters"), py::arg("p"),
        py::arg("on_output"), py::arg("coefficients"), py::arg("reduction"), py::arg("keep_input"),
        py::arg("channel_dim"), py::arg("shared_dims"), py::arg("global_shape"), py::arg("offsets"),
        py::arg("alpha"), py::arg("row_weight"));
  define("forward_", wrap_pybind_function_no_gil(InPlace::call<act_reg_in_place>),
         std::make_tuple(py::arg("x"), py::arg("rng_state")), attributes, reduction, keep_input);
  py::class_<Prepared>(m, "Prepared")
      .def("__call__", wrap_pybind_function(&Prepared::operator()), py::arg("x"));
  using OfPython = FromPython<std::unique_ptr<Prepared>, py::type>;
  define("prepare", wrap_pybind_function(OfPython::call<prepare>), std::make_tuple(py::arg("type")),
         attributes, reduction, keep_input);
  define("kept", wrap_pybind_function(OfType::call_without_reduction<kept>),
         std::make_tuple(py::arg("dtype")), attributes, keep_input);
  m.def("inject", wrap_pybind_function(inject), py::arg("y"), py::arg("scale"), py::arg("divisor"));
  py::class_<LoosePenalty>(m, "LoosePenalty").def("get", &LoosePenalty::get);
  m.def("loosen", &loosen, py::arg("penalty"));
  m.def("is_in_use", &is_in_use, py::arg("penalty"));
  m.def("is_freed", &is_freed, py::arg("penalty"));
  m.def("activations", &activations);
  m.def("build_info", &build_info);
  m.def("cpu_capability", [] { return cpu_kernels().name; });
}

}  // namespace actreg
