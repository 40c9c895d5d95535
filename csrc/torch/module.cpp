// The Python module: the eager door, and what the build knows about itself. Layer: torch.
#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/registry.h"
#include "torch/cpu_capability.h"
#include "torch/dispatch.h"

namespace actreg {
namespace {

namespace py = pybind11;

// As reference.py draws: by torch.randint, which tracers and transforms know as random.
Tensor draw(const Tensor& x) {
  using Limits = std::numeric_limits<int64_t>;
  const auto options = at::TensorOptions(x.device()).dtype(at::kLong);
  return at::constant_pad_nd(at::randint(Limits::min(), Limits::max(), {1}, options), {0, 1});
}

// Whether a tracer or a transform of torch.func sees what is called. Other modes, which count or
// log, do not: a repeated forward has to draw from the same source with and without such a mode.
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

// (output, penalty) as `type`, a named tuple, by tuple.__new__: its own constructor, which is
// Python, costs as much as an allocation. Draws the state of the mask if there is dropout and no
// state: by `draw` where others see the calls, because vmap knows what its `randomness` means for
// torch.randint, and because AOTAutograd would merge two equal calls of another random operator,
// which would give two layers one mask.
py::object act_reg(const py::type& type, const Tensor& x, OptionalTensor rng_state,
                   c10::string_view activation, const std::vector<double>& parameters, double p,
                   bool on_output, double l1, double l2, c10::string_view reduction) {
  auto* tuple_type = reinterpret_cast<PyTypeObject*>(type.ptr());
  TORCH_CHECK_TYPE(PyType_FastSubclass(tuple_type, Py_TPFLAGS_TUPLE_SUBCLASS),
                   "actreg: type must be a subclass of tuple, got ", tuple_type->tp_name);
  const double coefficients[] = {l1, l2};
  Tensor y, penalty;
  {
    const py::gil_scoped_release released;
    if (p > 0 && !rng_state && is_seen()) {
      make_problem(x,
                   {activation, parameters, p, on_output, coefficients, reduction, {}});  // throws
      rng_state = draw(x);
    }
    const Order order = order_of(x);
    if (p > 0 && !rng_state) {
      std::tie(y, penalty, std::ignore) = forward_random_operator().call(
          x, activation, parameters, p, on_output, coefficients, reduction, order);
    } else {
      std::tie(y, penalty) = forward_operator().call(x, rng_state, activation, parameters, p,
                                                     on_output, coefficients, reduction, order);
    }
  }
  const py::tuple pair = py::make_tuple(std::move(y), std::move(penalty));
  PyObject* made = PyTuple_Type.tp_new(tuple_type, py::make_tuple(pair).ptr(), nullptr);
  if (!made) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

// The same into x; returns the penalty.
Tensor act_reg_in_place(const Tensor& x, OptionalTensor rng_state, c10::string_view activation,
                        const std::vector<double>& parameters, double p, bool on_output, double l1,
                        double l2, c10::string_view reduction) {
  const double coefficients[] = {l1, l2};
  if (p > 0 && !rng_state) {  // after the checks: the generator does not move for nothing
    torch::autograd::check_inplace(x, torch::autograd::compute_requires_grad(x));
    at::assert_no_internal_overlap(x);
    rng_state = draw(x);
  }
  auto [penalty, bits] =
      forward_in_place_operator().call(x, rng_state, activation, parameters, p, on_output,
                                       coefficients, reduction, order_of(x), false);
  return penalty;
}

// What forward keeps of an x of that type for backward, if it requires a gradient.
const char* kept(at::ScalarType dtype, c10::string_view activation,
                 const std::vector<double>& parameters, double p, bool on_output, double l1,
                 double l2) {
  const double coefficients[] = {l1, l2};
  Problem problem = problem_of({activation, parameters, p, on_output, coefficients, "sum", {}});
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
  m.def("forward", torch::wrap_pybind_function(act_reg), py::arg("type"), py::arg("x"),
        py::arg("rng_state"), py::arg("activation"), py::arg("parameters"), py::arg("p"),
        py::arg("on_output"), py::arg("l1"), py::arg("l2"), py::arg("reduction"));
  m.def("forward_", torch::wrap_pybind_function_no_gil(act_reg_in_place), py::arg("x"),
        py::arg("rng_state"), py::arg("activation"), py::arg("parameters"), py::arg("p"),
        py::arg("on_output"), py::arg("l1"), py::arg("l2"), py::arg("reduction"));
  m.def("kept", torch::wrap_pybind_function(kept), py::arg("dtype"), py::arg("activation"),
        py::arg("parameters"), py::arg("p"), py::arg("on_output"), py::arg("l1"), py::arg("l2"));
  m.def("activations", &activations);
  m.def("build_info", &build_info);
  m.def("cpu_capability", [] { return cpu_kernels().name; });
}

}  // namespace actreg
