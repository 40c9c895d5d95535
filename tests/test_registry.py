"""Everything that lists all activations, or all names of _C, agrees with the registry."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import actreg_ext
from actreg_ext import _C, functional, reference
from actreg_ext.functional import ActRegOutput
from actreg_ext.nn import ActReg
from tests import exact, table

ROOT = Path(__file__).parents[1]
# Activations of torch.nn that we do not have: they have learnable or random parameters, or are not
# elementwise.
NOT_OURS = {"PReLU", "RReLU", "Softmax", "Softmax2d", "LogSoftmax", "Softmin", "GLU"}
NOT_OURS |= {"MultiheadAttention"}
# Arguments of torch.nn's modules that are not parameters of the activation.
NOT_PARAMETERS = {"inplace", "approximate", "min_value", "max_value", "args", "kwargs"}
# The options that a module has and a function cannot have; act_reg_ is the function in place.
OF_THE_CALL = ["channel_dim", "row_weight", "shard"]
OF_THE_MODULE = ["inject", "inplace"]


def stub() -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """The functions and classes of _C.pyi, and as "class.method" the methods."""
    tree = ast.parse((ROOT / "actreg_ext" / "_C.pyi").read_text())
    found = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for name, node in list(found.items()):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        found |= {f"{name}.{method.name}": method for method in methods}
    return found


def test_every_activation_has_its_row_in_the_reference() -> None:
    assert list(reference.ACTIVATIONS) == list(_C.activations())


def test_every_activation_has_its_formula_in_the_tests() -> None:
    assert list(exact.FORMULAS) == list(_C.activations())


def test_every_activation_is_documented() -> None:
    """docs/activations.md has all activations in order, with parameters, defaults and module."""
    lines = (ROOT / "docs" / "activations.md").read_text().splitlines()
    documented = [re.findall(r"`([^`]+)`|\|", line) for line in lines if re.match(r"\| `", line)]
    expected = []
    for name, parameters in _C.activations().items():
        module = reference.ACTIVATIONS[name][1]
        shown = [k if v is None else f"{k}={v}" for k, v in parameters.items()]
        instances = [f"nn.{module.__name__}(...)"] if module else []
        if name == "gelu_tanh":
            instances = ['nn.GELU(approximate="tanh")']
        expected.append(["", name, "", *shown, "", *instances, ""])
    assert documented == expected


def test_public_activations_are_the_registry() -> None:
    assert actreg_ext.activations() == _C.activations() == functional.activations()
    actreg_ext.activations()["relu"]["changed"] = 1.0
    assert actreg_ext.activations()["relu"] == {}


@pytest.mark.parametrize("name", table.NAMES)
def test_parameters_are_torchs(name: str) -> None:
    """Parameters and defaults are those of torch.nn.functional's function and torch.nn's module."""
    function, module = reference.ACTIVATIONS[name]
    defaults = _C.activations()[name]
    if module is not None:
        signature = inspect.signature(module).parameters
        assert defaults == {
            k: None if v.default is inspect.Parameter.empty else v.default
            for k, v in signature.items()
            if k not in NOT_PARAMETERS
        }
    required = {k: 0.25 for k, v in defaults.items() if v is None}
    # Where torch has no function, the reference's has no defaults.
    given = {**defaults, **required} if name == "swish" else required
    x = torch.linspace(-8, 8, 101)
    ours, theirs = functional.act_reg(x, name, **required).output, function(x, **given)
    torch.testing.assert_close(ours, theirs)


def test_every_activation_of_torch_is_here() -> None:
    ours = {module.__name__ for _, module in reference.ACTIVATIONS.values() if module}
    assert ours - {"Identity"} == set(nn.modules.activation.__all__) - NOT_OURS


@pytest.mark.parametrize("name", [n for n, (_, m) in reference.ACTIVATIONS.items() if m])
def test_modules_are_taken(name: str) -> None:
    """An instance of torch.nn's class means its name and its parameters."""
    _, module = reference.ACTIVATIONS[name]
    (variant, *_) = table.variants(name)[::-1]  # the variant with other parameters, if any
    parameters = {k: v for k, v in variant.items() if k != "activation"}
    assert repr(ActReg(module(**parameters))) == repr(ActReg(**variant))


def public(thing: object) -> set[str]:
    """The names of a module, or of a class, whose call operator counts too."""
    calls = {"__call__"} & set(vars(thing)) if inspect.isclass(thing) else set[str]()
    return {name for name in dir(thing) if not name.startswith("_")} | calls


def test_stub_has_the_modules_names() -> None:
    names = set(stub())
    assert {name for name in names if "." not in name} == public(_C)
    classes = [name for name in public(_C) if inspect.isclass(getattr(_C, name))]
    methods = {f"{name}.{method}" for name in classes for method in public(getattr(_C, name))}
    assert {name for name in names if "." in name} == methods


@pytest.mark.parametrize("name", [n for n, d in stub().items() if isinstance(d, ast.FunctionDef)])
def test_stub_has_the_signatures(name: str) -> None:
    """pybind11 writes the live signature into the first line of the docstring."""
    docstring = attrgetter(name)(_C).__doc__ or ""
    live = re.match(rf"{name.split('.')[-1]}\((.*)\) -> (.*)", docstring)
    assert live
    parameters = re.findall(r"(\w+): ", live[1])
    function = stub()[name]
    assert isinstance(function, ast.FunctionDef)
    assert [argument.arg for argument in function.args.args] == parameters
    assert function.returns is not None and ast.get_docstring(function)


def test_stub_explains_its_classes() -> None:
    classes = [node for node in stub().values() if isinstance(node, ast.ClassDef)]
    assert classes and all(map(ast.get_docstring, classes))


def test_the_door_makes_tuples() -> None:
    x = torch.randn(4)
    made = _C.forward(ActRegOutput, x, None, "relu", (), 0.0, False, 0.0, 0.0, "sum")
    assert type(made) is ActRegOutput and torch.equal(made.output, x.relu())
    assert {made: 1} == {ActRegOutput(*made): 1}  # C++ builds the tuple, so check hash too
    with pytest.raises(TypeError, match="type must be a subclass of tuple, got list"):
        _C.forward(list, x, None, "relu", (), 0.0, False, 0.0, 0.0, "sum")  # type: ignore[type-var]


def test_build_info() -> None:
    info = _C.build_info()
    assert str(info["torch"]).split("+")[0] == torch.__version__.split("+")[0]
    assert _C.cpu_capability() in info["instruction_sets"]
    assert info["compiler"] and isinstance(info["cuda"], bool)


def test_one_signature() -> None:
    """The reference has act_reg's signature; ActReg has its options in the same order, and more."""
    ours = inspect.signature(functional.act_reg).parameters
    assert inspect.signature(reference.act_reg).parameters == ours
    module = dict(inspect.signature(ActReg).parameters)
    assert set(ours) - set(module) == {"input", "training", "seed", *OF_THE_CALL}
    *options, parameters = [name for name in ours if name in module]
    assert list(module) == [*options, *OF_THE_MODULE, parameters]
    assert all(ours[name].default == module[name].default for name in [*options, parameters])
    assert all(module[name].default is False for name in OF_THE_MODULE)


def modules_of_examples() -> list[ModuleType]:
    """The package, and the modules that define its public names."""
    things = [getattr(actreg_ext, name) for name in actreg_ext.__all__]
    defined = {thing.__module__ for thing in things if not inspect.ismodule(thing)}
    names = defined | {module.__name__ for module in filter(inspect.ismodule, things)}
    return [actreg_ext, *(importlib.import_module(name) for name in sorted(names))]


@pytest.mark.parametrize("module", modules_of_examples(), ids=lambda module: module.__name__)
def test_examples_are_true(module: ModuleType) -> None:
    """The doctests pass, and every public function and class has one."""
    assert doctest.testmod(module).failed == 0
    of_reference = ["act_reg", "act_sums", "philox"] if module is reference else []
    for name in getattr(module, "__all__", of_reference):
        thing = getattr(module, name)
        documented = inspect.getdoc(thing) or ""
        has_fields = issubclass(thing, tuple) if inspect.isclass(thing) else False
        assert has_fields or ">>>" in documented or inspect.ismodule(thing), name
