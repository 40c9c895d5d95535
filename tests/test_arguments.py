"""Bad arguments raise before any work; the text names the value given and what is accepted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from actreg_ext import collect_penalty, dropout_mask, reference
from actreg_ext.functional import act_reg
from actreg_ext.nn import ActReg
from tests import table
from tests.test_dropout import generator_state

INF, NAN = float("inf"), float("nan")
X = torch.ones(4)

# (the arguments, the type of the error, the words that its text must contain)
BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"l1": -1.0}, ValueError, ["l1", "-1.0", "at least 0"]),
    ({"l1": INF}, ValueError, ["l1", "inf", "finite"]),
    ({"l1": NAN}, ValueError, ["l1", "nan", "finite"]),
    ({"l2": -0.5}, ValueError, ["l2", "-0.5", "at least 0"]),
    ({"l2": NAN}, ValueError, ["l2", "nan", "finite"]),
    ({"l1": "0.1"}, TypeError, ["l1", "'0.1'", "real number"]),
    ({"l2": True}, TypeError, ["l2", "True", "real number"]),
    ({"l1": 1j}, TypeError, ["l1", "1j", "real number"]),
    ({"l1": None}, TypeError, ["l1", "None", "real number"]),
    ({"p": -0.1}, ValueError, ["p", "-0.1", "between 0 and 1"]),
    ({"p": 1.5}, ValueError, ["p", "1.5", "between 0 and 1"]),
    ({"p": NAN}, ValueError, ["p", "nan", "between 0 and 1"]),
    ({"p": "half"}, TypeError, ["p", "'half'", "real number"]),
    ({"penalty_on": "input"}, ValueError, ["penalty_on", "'input'", "activation, output"]),
    ({"penalty_on": "Output"}, ValueError, ["penalty_on", "'Output'", "did you mean 'output'"]),
    ({"penalty_on": None}, TypeError, ["penalty_on", "None", "activation, output"]),
    ({"penalty_on": []}, TypeError, ["penalty_on", "[]", "activation, output"]),
    ({"reduction": "none"}, ValueError, ["reduction", "'none'", "sum, mean, batch, token"]),
    ({"reduction": "tokens"}, ValueError, ["reduction", "'tokens'", "did you mean 'token'"]),
    ({"reduction": []}, TypeError, ["reduction", "[]", "sum, mean, batch, token"]),
    ({"reduction": "avg"}, ValueError, ["reduction", "'avg'", "did you mean 'mean'"]),
    ({"keep": "output"}, ValueError, ["keep", "'output'", "auto, input"]),
    ({"keep": "Input"}, ValueError, ["keep", "'Input'", "did you mean 'input'"]),
    ({"keep": None}, TypeError, ["keep", "None", "auto, input"]),
    ({"dropout": 0.1}, TypeError, ["dropout=0.1", "did you mean 'p'"]),
    ({"activation": "rellu"}, ValueError, ["activation", "'rellu'", "did you mean 'relu'", "silu"]),
    ({"activation": "ReLU"}, ValueError, ["activation", "'ReLU'", "did you mean 'relu'"]),
    ({"activation": "swich"}, ValueError, ["activation", "'swich'", "did you mean 'swish'"]),
    ({"activation": nn.ReLU}, TypeError, ["activation", "ReLU", "an instance: ReLU("]),
    ({"activation": torch.relu}, TypeError, ["activation", "did you mean 'relu'"]),
    ({"activation": None}, TypeError, ["activation", "None", "relu"]),
    ({"activation": ["relu"]}, TypeError, ["activation", "['relu']", "relu"]),
    ({"activation": nn.Linear(1, 1)}, TypeError, ["activation", "Linear", "ReLU", "torch.nn"]),
    ({"activation": nn.PReLU()}, TypeError, ["activation", "PReLU", "ReLU", "torch.nn"]),
    ({"negative_slope": 0.1}, TypeError, ["negative_slope", "0.1", "relu", "no parameters"]),
    ({"activation": "elu", "alhpa": 2.0}, TypeError, ["alhpa", "2.0", "did you mean 'alpha'"]),
    ({"activation": "elu", "lambda1": 2.0}, TypeError, ["lambda1", "l1, l2, p"]),
    ({"activation": "elu", "alpha": NAN}, ValueError, ["alpha", "nan", "real number"]),
    ({"activation": "elu", "alpha": "1"}, TypeError, ["alpha", "'1'", "real number"]),
    ({"activation": "celu", "alpha": 0.0}, ValueError, ["alpha", "0.0", "must not be 0"]),
    ({"activation": "softplus", "beta": 0}, ValueError, ["beta", "0", "must not be 0"]),
    ({"activation": "threshold"}, TypeError, ["threshold", "required"]),
    ({"activation": "threshold", "threshold": 1.0}, TypeError, ["value", "required"]),
    ({"activation": "hardtanh", "min_val": 2.0}, ValueError, ["min_val", "2.0", "max_val"]),
    ({"activation": "softshrink", "lambd": -1.0}, ValueError, ["lambd", "-1.0", "at least 0"]),
    (
        {"activation": "gelu", "approximate": "erf"},
        ValueError,
        ["approximate", "'erf'", "none, tanh"],
    ),
    ({"activation": nn.ELU(), "alpha": 2.0}, TypeError, ["alpha", "2.0", "ELU", "brings its own"]),
]
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    *BAD_OPTIONS,
    ({"training": None}, TypeError, ["training", "None", "True or False"]),
    ({"l1": 10**400}, ValueError, ["l1", "1000000", "finite"]),
    ({"reduction": numpy.array(["mean", "sum"])}, TypeError, ["reduction", "array", "batch"]),
    ({"training": 1}, TypeError, ["training", "1", "True or False"]),
    ({"seed": 1.0}, TypeError, ["seed", "1.0", "int"]),
    ({"seed": True}, TypeError, ["seed", "True", "int"]),
    ({"seed": "1"}, TypeError, ["seed", "'1'", "int"]),
    ({"seed": 2**64}, ValueError, ["seed", str(2**64), "2^64 - 1"]),
    ({"seed": -(2**63) - 1}, ValueError, ["seed", str(-(2**63) - 1), "-2^63"]),
    ({"seed": torch.tensor(1)}, ValueError, ["seed", "[]", "int64", "[2]", "{seed, offset}"]),
    ({"seed": torch.tensor([1, 2, 3])}, ValueError, ["seed", "[3]", "int64", "[2]"]),
    ({"seed": torch.tensor([[1, 2]])}, ValueError, ["seed", "[1, 2]", "int64", "[2]"]),
    ({"seed": torch.tensor([1.0, 2.0])}, ValueError, ["seed", "float32", "int64"]),
    ({"seed": torch.tensor([1, 2]).int()}, ValueError, ["seed", "int32", "int64"]),
    ({"input": [1.0]}, TypeError, ["input", "list", "float32"]),
    ({"input": 1.0}, TypeError, ["input", "1.0", "float32"]),
    ({"input": numpy.ones(3)}, TypeError, ["input", "ndarray", "float32"]),
    ({"input": torch.ones(3).int()}, TypeError, ["input", "int32", "float32", ".to("]),
    ({"input": torch.ones(3) > 0}, TypeError, ["input", "bool", "float32"]),
    ({"input": torch.ones(3) * 1j}, TypeError, ["input", "complex64", "float32", ".real"]),
    ({"input": torch.eye(3).to_sparse()}, TypeError, ["input", "sparse_coo", "to_dense"]),
    ({"input": torch.eye(3).to_sparse_csr()}, TypeError, ["input", "sparse_csr", "to_dense"]),
    ({"input": torch.eye(3).to_mkldnn()}, TypeError, ["input", "mkldnn", "to_dense"]),
    (
        {"input": torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)},
        TypeError,
        ["input", "qint8", "dequantize"],
    ),
]


def name(call: Any) -> str:
    return "-".join(f"{k}={type(v).__name__}:{v}" for k, v in call.items())[:60].replace("\n", " ")


def assert_refused(
    call: Any, error: type[Exception], named: list[str], device: str = "cpu"
) -> None:
    before = generator_state(device)
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    for words in named:
        assert words in str(raised.value)
    assert torch.equal(generator_state(device), before)


def on(device: str, input: Any) -> Any:
    """The input on `device`, except quantized and mkldnn tensors, which only the CPU has."""
    stays = not isinstance(input, Tensor) or input.is_quantized or input.is_mkldnn
    return input if stays else input.to(device)


@pytest.mark.parametrize("function", [act_reg, reference.act_reg], ids=["fused", "reference"])
@pytest.mark.parametrize(
    ("options", "error", "named"), BAD_CALLS, ids=[name(call) for call, *_ in BAD_CALLS]
)
def test_act_reg(
    function: Any, device: str, options: dict[str, Any], error: type[Exception], named: list[str]
) -> None:
    call = {"p": 0.5, **options, "input": on(device, options.get("input", X))}
    assert_refused(lambda: function(**call), error, named, device)


@pytest.mark.parametrize(
    ("options", "error", "named"), BAD_OPTIONS, ids=[name(call) for call, *_ in BAD_OPTIONS]
)
def test_module(options: dict[str, Any], error: type[Exception], named: list[str]) -> None:
    """A module raises when it is constructed, not when it is first called."""
    assert_refused(lambda: ActReg(**options), error, named)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [row for row in BAD_CALLS if row[0].keys() & {"p", "seed"}],
    ids=[name(call) for call, *_ in BAD_CALLS if call.keys() & {"p", "seed"}],
)
def test_dropout_mask(
    device: str, options: dict[str, Any], error: type[Exception], named: list[str]
) -> None:
    call = {"shape": 4, "p": 0.5, "seed": 1, "device": device, **options}
    assert_refused(lambda: dropout_mask(**call), error, named, device)


def test_a_module_names_its_own_options() -> None:
    accepted = (
        "ActReg takes activation, l1, l2, p, penalty_on, reduction, keep, shared_dims, dropout, "
        "inject, inplace"
    )
    assert_refused(lambda: ActReg(seed=1), TypeError, ["seed=1", accepted])
    assert_refused(lambda: ActReg(training=False), TypeError, ["training=False", accepted])
    tensor = ["l2", "tensor", "real number", ".item()"]
    assert_refused(lambda: ActReg(l2=torch.tensor(0.1)), TypeError, tensor)
    assert_refused(lambda: act_reg(X, sed=1), TypeError, ["shard (did you mean 'seed'?)"])
    assert_refused(lambda: act_reg(X, generator=None), TypeError, ["did you mean 'seed'"])


@pytest.mark.parametrize("activation", ["glu", "prelu", "softmax", nn.GLU(), nn.PReLU()])
def test_no_hint_from_one_function_of_torch_to_another(activation: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        ActReg(activation)
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize("options", [{"input": list(range(9999))}, {"out": torch.ones(9999)}])
def test_errors_are_short(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as raised:
        act_reg(**{"input": X, **options})
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("parameters", [{}, {"alpha": 1.0}])
def test_a_whole_network_is_no_part_of_an_error(parameters: dict[str, Any]) -> None:
    network = nn.Sequential(*[nn.Linear(1, 1) for _ in range(99)])
    with pytest.raises(TypeError) as raised:
        ActReg(network, **parameters)
    assert "Sequential" in str(raised.value) and "(9)" not in str(raised.value)


def test_collect_penalty() -> None:
    assert_refused(lambda: collect_penalty([ActReg()]), TypeError, ["model", "list", "nn.Module"])


def test_whole_numbers_are_real(device: str) -> None:
    """Ints and NumPy scalars are accepted: configuration files and searches produce them."""
    x = table.random_inputs(torch.float32, device, wide=False)
    expected = act_reg(x, "elu", alpha=2.0, l1=1.0, l2=0.0, p=0.5, seed=3)
    for number in (int, numpy.float64, numpy.float32, numpy.int64):
        options = dict(alpha=number(2), l1=number(1), l2=number(0), seed=numpy.int64(3))
        result = act_reg(x, "elu", p=0.5, **options)
        assert torch.equal(result.output, expected.output)
        assert torch.equal(result.penalty, expected.penalty)


def test_a_subclass_of_an_activation_is_not_its_base() -> None:
    class Doubled(nn.ReLU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    assert_refused(lambda: act_reg(X, Doubled()), TypeError, ["Doubled", "exactly", "ReLU"])


# The registered operators, called directly, so without the checks in Python.
OPS = torch.ops.actreg
STATE = torch.tensor([1, 2])


def misuses(x: Tensor, state: Tensor) -> dict[str, tuple[Callable[[], Any], str]]:
    return {
        "no state": (
            lambda: OPS.forward(x, None, "relu", [], 0.5, False, None, "sum", []),
            "rng_state",
        ),
        "state too long": (
            lambda: OPS.forward(x, state.repeat(2), "relu", [], 0.5, False, None, "sum", []),
            "[4]",
        ),
        "state 0-d": (
            lambda: OPS.forward(x, state[0], "relu", [], 0.5, False, None, "sum", []),
            "rng_state",
        ),
        "state of float": (
            lambda: OPS.forward(x, x[:2], "relu", [], 0.5, False, None, "sum", []),
            "Float",
        ),
        "no such activation": (
            lambda: OPS.forward(x, None, "rellu", [], 0.0, False, None, "sum", []),
            "rellu",
        ),
        "empty activation": (
            lambda: OPS.forward(x, None, "", [], 0.0, False, None, "sum", []),
            "no activation",
        ),
        "parameter missing": (
            lambda: OPS.forward(x, None, "elu", [], 0.0, False, None, "sum", []),
            "0 parameters",
        ),
        "parameter too many": (
            lambda: OPS.forward(x, None, "relu", [1.0], 0.0, False, None, "sum", []),
            "1 parameters",
        ),
        "p": (lambda: OPS.forward(x, state, "relu", [], 1.5, False, None, "sum", []), "1.5"),
        "p of NaN": (lambda: OPS.forward(x, state, "relu", [], NAN, False, None, "sum", []), "nan"),
        "one coefficient": (
            lambda: OPS.forward(x, None, "relu", [], 0.0, False, [1.0], "sum", []),
            "coefficients",
        ),
        "no coefficients": (
            lambda: OPS.forward(x, None, "relu", [], 0.0, False, [], "sum", []),
            "coefficients",
        ),
        "no such reduction": (
            lambda: OPS.forward(x, None, "relu", [], 0.0, False, None, "avg", []),
            "'avg'",
        ),
        **{
            f"order {order}": (
                lambda order=order: OPS.forward(
                    x, None, "relu", [], 0.0, False, None, "sum", order
                ),
                "permutation of 1 dimensions",
            )
            for order in ([1], [-1], [0, 0], [0, 1])
        },
        "integers": (
            lambda: OPS.forward(x.int(), None, "relu", [], 0.0, False, None, "sum", []),
            "Int",
        ),
        "random p": (lambda: OPS.forward_random(x, "relu", [], -1.0, False, None, "sum", []), "-1"),
        "random activation": (
            lambda: OPS.forward_random(x, "rellu", [], 0.5, False, None, "sum", []),
            "rellu",
        ),
        "random integers": (
            lambda: OPS.forward_random(x.int(), "relu", [], 0.5, False, None, "sum", []),
            "Int",
        ),
        **{
            f"{op} {what}": (lambda op=op, given=given: getattr(OPS, op)(*given), word)
            for op in ("backward", "curvature")
            for what, (given, word) in {
                "dy too short": (
                    (x[:2], None, x, None, "relu", [], 0.0, False, None, "sum", []),
                    "dy",
                ),
                "dy of another shape": (
                    (x[None], None, x, None, "relu", [], 0.0, False, None, "sum", []),
                    "dy",
                ),
                "dpenalty too long": (
                    (x, x[:3], x, None, "relu", [], 0.0, False, [1.0, 1.0], "sum", []),
                    "dpenalty",
                ),
                "dpenalty empty": (
                    (x, x[:0], x, None, "relu", [], 0.0, False, [1.0, 1.0], "sum", []),
                    "dpenalty",
                ),
                "one dpenalty for two sums": (
                    (x, x[0], x, None, "relu", [], 0.0, False, None, "sum", []),
                    "dpenalty",
                ),
                "no state": (
                    (x, None, x, None, "relu", [], 0.5, False, None, "sum", []),
                    "rng_state",
                ),
                "state too short": (
                    (x, None, x, state[:1], "relu", [], 0.5, False, None, "sum", []),
                    "[1]",
                ),
                "no such activation": (
                    (x, None, x, None, "rellu", [], 0.0, False, None, "sum", []),
                    "rellu",
                ),
                "one coefficient": (
                    (x, None, x, None, "relu", [], 0.0, False, [1.0], "sum", []),
                    "coefficients",
                ),
                "order": (
                    (x, None, x, None, "relu", [], 0.0, False, None, "sum", [1]),
                    "permutation",
                ),
                "state of another device": (
                    (x, None, x, state.to("meta"), "relu", [], 0.5, False, None, "sum", []),
                    "meta",
                ),
            }.items()
        },
    }


@pytest.mark.parametrize("misuse", misuses(X, STATE))
def test_the_operators_refuse(device: str, misuse: str) -> None:
    """The operators raise, do not crash, and draw no random number."""
    call, named = misuses(X.to(device), STATE.to(device))[misuse]
    before = generator_state(device)
    with pytest.raises((RuntimeError, ValueError, TypeError), match=named.replace("[", r"\[")):
        call()
    assert torch.equal(generator_state(device), before)


@pytest.mark.parametrize("order", [[10**9, 5], [-7, 0], [0, 0], [7], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_orders_are_checked_before_they_are_used(place: str, order: list[int]) -> None:
    x = torch.randn(3, 4, device=place)
    rest = ("relu", [], 0.0, False, [1.0, 0.0], "mean", order)
    for call in (
        lambda: OPS.forward(x, None, *rest),
        lambda: OPS.forward_bits(x, None, *rest),
        lambda: OPS.forward_(x, None, *rest, False),
    ):
        with pytest.raises(ValueError, match="permutation of 2 dimensions"):
            call()
    if place == "cpu" or len(order) == 2:  # else x may be a placeholder: see schemas.cpp
        with pytest.raises(ValueError, match="permutation of 2 dimensions"):
            OPS.backward(x, None, x, None, *rest)


@pytest.mark.parametrize("state", [[5], [5.7, 1.2], [[1, 2]]], ids=str)
def test_states_are_checked(state: Any) -> None:
    with pytest.raises(ValueError, match="rng_state is an int64 tensor"):
        OPS.rng_state(X, torch.tensor(state), 0)


def test_numpy_integers_are_seeds() -> None:
    numpy = pytest.importorskip("numpy")
    for seed in (3, -3, 2**63 + 5):
        other = numpy.int64(seed) if seed < 2**63 else numpy.uint64(seed)
        assert torch.equal(
            act_reg(X, p=0.5, seed=other).output, act_reg(X, p=0.5, seed=seed).output
        )


def test_the_interpreter_survives_strange_but_legal_calls(device: str) -> None:
    """The calls run in a new process, because a crash would end all tests in this one."""
    program = """
import math, sys, torch
torch.set_default_device(sys.argv[1])
ops, x = torch.ops.actreg, torch.ones(5)
state = torch.tensor([1, 2])
rest = ("sum", [])
for p in (0.0, 0.5, 1.0):
    ops.backward(None, None, x, state, "relu", [], p, False, None, *rest)
    ops.curvature(None, torch.ones(2), x, state, "relu", [], p, True, None, *rest)
    half = torch.ones(()).half()
    ops.backward(x.double(), half, x, state, "relu", [], p, False, [1.0, 1.0], *rest)
    ops.forward(x[:0], state, "softplus", [0.0, math.nan], p, True, [math.inf, -1.0], *rest)
    ops.forward(x.requires_grad_(), state, "relu", [], p, False, None, *rest)[1].sum().backward()
x.grad.tolist()  # waits for a GPU
print("alive")
"""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", "import actreg_ext\n" + program, device]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr
