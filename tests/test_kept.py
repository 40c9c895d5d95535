"""What is kept for the backward: as little as possible, but enough for the same gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from actreg_ext import _C, ops, reference
from actreg_ext.functional import act_reg
from actreg_ext.nn import ActReg, collect_penalty
from tests import table

pytestmark = pytest.mark.usefixtures("default_device")

NONE, L1, L2, BOTH = {}, {"l1": 0.5}, {"l2": 0.25}, {"l1": 0.5, "l2": 0.25}
DROPS = {"p": 0.3}
KEEP_INPUT = {"keep": "input"}
OF_Y = {"p": 0.3, "penalty_on": "output"}
POSITIVE = {"min_val": 0.5, "max_val": 2.0}
WIDE = "output (half: input)"
# With a penalty they keep the output, while PyTorch's own activations keep the input or nothing.
OURS = ("identity", "relu6", "leaky_relu", "hardtanh", "hardshrink", "softshrink", "logsigmoid")
OURS += ("softplus",)
# (what act_reg keeps, as in the repr; activation; other arguments)
KEPT: list[tuple[str, str, dict[str, Any]]] = [
    *[("bits", "relu", {**penalty, **p}) for penalty in (NONE, L1) for p in (NONE, DROPS, OF_Y)],
    *[("bits", name, {**L1, **DROPS}) for name in ("relu6", "hardsigmoid")],
    *[("bits", "threshold", {"threshold": 0.25, "value": -3.0, **L1, **p}) for p in (NONE, DROPS)],
    *[("bits", "hardtanh", {**POSITIVE, **L1, **p}) for p in (NONE, DROPS, OF_Y)],
    *[
        ("bits", name, p)
        for name in ("hardtanh", "hardshrink", "softshrink")
        for p in (NONE, DROPS)
    ],
    *[
        ("bits", "leaky_relu", {"negative_slope": s, **p})
        for s in (0.2, -0.5)
        for p in (NONE, DROPS)
    ],
    ("bits", "threshold", {"threshold": -0.5, "value": 0.0, **DROPS}),
    *[("nothing", "identity", p) for p in (NONE, DROPS)],
    ("nothing", "leaky_relu", {"negative_slope": 1.0}),
    *[("output", name, {**BOTH}) for name in ("identity", "relu", "relu6", "hardshrink")],
    *[("output", name, {**L1}) for name in ("identity", "hardshrink")],
    *[("output", name, {**L2, **OF_Y}) for name in ("identity", "relu")],
    ("output", "identity", {**L1, **OF_Y}),
    *[("input", name, {**L2, **DROPS}) for name in ("identity", "relu", "relu6", "hardshrink")],
    *[("input", name, {**L2, **OF_Y}) for name in ("relu6", "hardshrink")],
    *[(WIDE, name, penalty) for name in ("sigmoid", "tanh") for penalty in (NONE, BOTH)],
    (WIDE, "logsigmoid", {**BOTH}),
    *[
        (WIDE, "softplus", {"threshold": 40.0, **beta, **BOTH})
        for beta in (NONE, {"beta": 2.5}, {"beta": 0.3})
    ],
    ("output (float64: input, half: input)", "softplus", {**BOTH}),
    # PyTorch's own logsigmoid and softplus keep the input.
    *[("input", "softplus", {**high}) for high in (NONE, {"threshold": 40.0})],
    ("input", "logsigmoid", NONE),
    *[(WIDE, name, {**BOTH}) for name in ("leaky_relu", "hardtanh", "softshrink")],
    (WIDE, "hardtanh", {**POSITIVE, **L2}),
    (WIDE, "leaky_relu", {"negative_slope": 0.0, **L2, **OF_Y}),
    *[("input", name, {**BOTH, **OF_Y}) for name in ("tanh", "hardtanh", "softshrink")],
    *[("input", name, DROPS) for name in ("tanh", "softplus")],
    ("input", "leaky_relu", {**L1, **DROPS}),
    ("input", "leaky_relu", {"negative_slope": -0.5, **L1}),
    *[("input", "softplus", {**low, **L1}) for low in ({"threshold": 16.0}, {"beta": 1e-31})],
    ("input", "softplus", {"threshold": 40.0, "beta": -1.0}),
    ("input", "threshold", {"threshold": -0.5, "value": 0.0, **L1}),
    *[("input", name, NONE) for name in ("gelu", "elu", "softsign", "relu_squared", "hardswish")],
    *[("input", "swish", {**beta}) for beta in (NONE, {"beta": 1.702})],
    # keep="input" changes an output to the input, but not where PyTorch's own activation keeps the
    # output, and never bits or nothing.
    *[("bits", "relu", {**penalty, **KEEP_INPUT}) for penalty in (NONE, L1, {**L1, **DROPS})],
    *[
        ("bits", name, {**p, **KEEP_INPUT})
        for name in ("leaky_relu", "hardtanh")
        for p in (NONE, DROPS)
    ],
    ("nothing", "identity", KEEP_INPUT),
    *[("output", "relu", {**penalty, **KEEP_INPUT}) for penalty in (L2, BOTH)],
    *[
        (WIDE, name, {**penalty, **KEEP_INPUT})
        for name in ("sigmoid", "tanh")
        for penalty in (NONE, BOTH)
    ],
    *[("input", name, {**penalty, **KEEP_INPUT}) for name in OURS for penalty in (L2, BOTH)],
    *[("input", name, {**L2, **OF_Y, **KEEP_INPUT}) for name in ("identity", "relu")],
]
# Activations whose slope from the output differs in rounding from the slope from the input.
INEXACT = ("sigmoid", "logsigmoid", "tanh", "softplus")
ROWS = pytest.mark.parametrize(("kept", "name", "options"), KEPT, ids=table.describe)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(1, 3),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: x[..., ::2],
}


def packed(call: Callable[[], object]) -> list[Tensor]:
    """The tensors that autograd saves during the call."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        call()
    return kept


def in_dtype(kept: str, dtype: torch.dtype) -> str:
    of_float32, _, others = kept.partition(" (")
    name = "half" if dtype in table.HALF_TYPES else table.describe(dtype)
    return dict(other.split(": ") for other in others[:-1].split(", ") if other).get(
        name, of_float32
    )


@ROWS
def test_bytes(kept: str, name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    x = torch.randn(3, 43, dtype=dtype, requires_grad=True)
    results: list[Any] = []
    tensors = packed(lambda: results.append(act_reg(x, name, **options)))
    kept = in_dtype(kept, dtype)
    of_x = {"input": x.nbytes, "output": x.nbytes, "bits": 17, "nothing": 0}[kept]  # 129 bits
    # If a dropped element has no gradient, its bit is 0. Then the bits contain the mask and no seed
    # is kept. Not so with a penalty on the activation, and for leaky_relu, whose slope is never 0.
    is_marked = kept == "bits" and name != "leaky_relu"
    is_marked &= not options.get("l1") or options.get("penalty_on") == "output"
    draws = options.get("p", 0) > 0 and not is_marked
    assert sum(t.nbytes for t in tensors) == of_x + 16 * draws
    pointers = {t.data_ptr() for t in tensors}
    assert (x.data_ptr() in pointers) == (kept == "input")
    assert (results[0].output.data_ptr() in pointers) == (kept == "output")


@ROWS
def test_repr(kept: str, name: str, options: dict[str, Any]) -> None:
    assert repr(ActReg(name, **options)).endswith(f", keeps={kept})")


def test_of_a_composite_more_is_kept() -> None:
    x = torch.randn(1024, requires_grad=True)
    options: dict[str, Any] = dict(activation="relu", l1=0.5, p=0.3, seed=1)
    ours, theirs = (
        sum(t.nbytes for t in packed(lambda f=f: f(x, **options)))
        for f in (act_reg, reference.act_reg)
    )
    assert ours == 1024 // 8 + 16 and theirs > 8 * 1024


@pytest.mark.pairs
@ROWS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 5, 3, 2)])
def test_gradient_is_that_of_the_input(
    kept: str,
    name: str,
    options: dict[str, Any],
    layout: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    """The gradient equals the gradient from the input, in every bit if not INEXACT or rounded."""
    x = LAYOUTS[layout](torch.randn(shape).to(dtype)).detach().requires_grad_()
    dense = x.contiguous() if layout == "strided" else x
    dy, seed = torch.randn(x.shape).to(dtype), torch.tensor([5, 0])
    f = partial(act_reg, activation=name, seed=seed, reduction="sum", **options)
    dx = table.gradient(f(x), x, dy, dpenalty=0.75)
    assert dx.stride() == dense.stride()
    parameters = [options.get(k, default) for k, default in _C.activations()[name].items()]
    p, on_output = options.get("p", 0.0), options.get("penalty_on") == "output"
    penalties = [options.get("l1", 0.0), options.get("l2", 0.0)]
    dpenalty = torch.full_like(f(x).penalty, 0.75)
    expected = ops.backward(
        dy,
        dpenalty,
        x.detach(),
        seed,
        name,
        parameters,
        p,
        on_output,
        penalties,
        "sum",
        reference.memory_order(x),
    )
    kept = in_dtype(kept, dtype)
    if kept == "output" and (p > 0 or name in INEXACT):  # y is rounded, or see INEXACT
        rounding = 4 * torch.finfo(dtype).eps
        assert_close(dx, expected, rtol=rounding, atol=rounding * float(expected.abs().max()))
    else:
        assert torch.equal(dx, expected)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1023, 1025, 16384, 16385, 50_003])
@pytest.mark.parametrize("options", [NONE, DROPS, {**L1, **DROPS}], ids=table.describe)
def test_every_length(n: int, options: dict[str, Any], dtype: torch.dtype) -> None:
    x = torch.randn(n).to(dtype).requires_grad_()
    dy = table.random_gradients(x)
    both = [
        table.gradient(f(x, "relu", seed=1, **options), x, dy) for f in (act_reg, reference.act_reg)
    ]
    eps = torch.finfo(dtype).eps  # eager rounds s * dy before the sum
    assert_close(*both, rtol=4 * eps, atol=4 * eps)


def test_infinite_gradients_stop_where_the_slope_is_0() -> None:
    x = torch.tensor([-1.0, 1.0, -1.0, 2.0], requires_grad=True)
    for name, parameters in (("relu", {}), ("leaky_relu", {"negative_slope": 0.0})):
        y = act_reg(x, name, **parameters).output
        (dx,) = torch.autograd.grad(y, x, torch.full_like(x, torch.inf))
        assert dx.tolist() == [0, torch.inf, 0, torch.inf]


@pytest.mark.parametrize("seed", [None, 3])
def test_the_second_derivative_is_there_and_0(seed: int | None) -> None:
    """As for torch.relu, the second derivative is 0, and computing it does not raise."""
    x = torch.randn(8, requires_grad=True)
    for f in (torch.relu, lambda x: act_reg(x, "relu", l1=0.5, p=0.5, seed=seed).output):
        (dx,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        assert dx.requires_grad
        assert torch.equal(*torch.autograd.grad(dx.sum(), x), torch.zeros(8))
    weight = torch.randn(8, requires_grad=True)
    output, penalty = act_reg(x, "relu", l1=0.5)
    loss = (weight * output).sum() + weight.sum() * penalty
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    of_weight, of_x = torch.autograd.grad(dx.sum(), (weight, x))
    on = (x > 0).float()
    assert_close(of_weight, on + 0.5 * on.sum() / 8)
    assert torch.equal(of_x, torch.zeros(8))


@pytest.mark.parametrize("changed", ["input", "output"])
def test_what_is_not_kept_may_be_modified(changed: str) -> None:
    """For example, `out += identity` in a residual block modifies the output."""
    leaf = torch.randn(64, requires_grad=True)
    gradients = []
    for change in (0.0, 1.0):
        x = leaf * 1
        y, penalty = act_reg(x, "relu", l1=0.5, p=0.5, seed=1)
        (x if changed == "input" else y).add_(change)
        gradients.append(torch.autograd.grad(y.sum() + penalty, leaf)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["relu", "relu6", "threshold", "hardtanh", "hardsigmoid"])
def test_a_nan_counts_as_positive(name: str) -> None:
    """With bits and L1, the gradient at NaN is the one of a positive number."""
    parameters = {"threshold": {"threshold": 0.5, "value": 0.0}, "hardtanh": POSITIVE}.get(name, {})
    x = torch.tensor([torch.nan, 1.0], requires_grad=True)
    y, penalty = act_reg(x, name, l1=0.5, reduction="sum", **parameters)
    assert y[0].isnan() and penalty.isnan()
    (dx,) = torch.autograd.grad([y, penalty], x, [torch.ones(2), torch.ones(())])
    slope = 1 / 6 if name == "hardsigmoid" else 1.0
    expected = 0.0 if name == "hardsigmoid" else 1.5 * slope
    assert_close(dx, torch.tensor([expected, 1.5 * slope]))


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_hooks_may_return_other_strides(name: str) -> None:
    x = torch.randn(64, requires_grad=True)
    gradients = []
    for unpack in (lambda t: t, lambda t: torch.stack([t, t], -1)[..., 0]):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            y, penalty = act_reg(x, name, l1=0.5, p=0.5, seed=1)
        gradients.append(torch.autograd.grad(y.sum() + penalty, x)[0])
    assert torch.equal(*gradients)


def modified(name: str, *, of_module: bool = False, **options: Any) -> Tensor:
    """The gradient of the output and the penalty, if `out += 1` follows the call."""
    leaf = torch.linspace(-2, 2, 64, requires_grad=True)
    x = leaf * 1
    if of_module:
        module = ActReg(name, **options)
        y, penalty = module(x), collect_penalty(module)
    else:
        y, penalty = act_reg(x, name, **options)
    (y.add_(1).sum() + penalty).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("of_module", [False, True], ids=["act_reg", "ActReg"])
@pytest.mark.parametrize("name", OURS)
def test_a_modified_output_with_the_input_kept(name: str, of_module: bool) -> None:
    """What PyTorch's own activation allows is allowed without a penalty, and with keep="input"."""
    leaf = torch.linspace(-2, 2, 64, requires_grad=True)
    options: dict[str, Any]
    for options in (NONE, {**BOTH, "keep": "input"}):
        dx = modified(name, of_module=of_module, **options)
        expected = sum(result.sum() for result in reference.act_reg(leaf, name, **options))
        assert_close(dx, *torch.autograd.grad(expected, leaf))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        modified(name, of_module=of_module, **BOTH)


@pytest.mark.parametrize("keep", ["auto", "input"])
@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
def test_where_torch_keeps_the_output_so_do_we(name: str, keep: str) -> None:
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        getattr(torch, name)(torch.randn(64, requires_grad=True)).add_(1).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        modified(name, keep=keep, **BOTH)


def test_keep_is_an_attribute_of_the_module() -> None:
    layer = ActReg("softplus", **BOTH)
    assert layer.keep == "auto" and "keep=" not in repr(layer)
    layer.keep = "input"
    assert repr(layer).endswith(", keep=input, keeps=input)")
    x = torch.randn(8, requires_grad=True)
    assert [t.data_ptr() for t in packed(lambda: layer(x))] == [x.data_ptr()]


def test_modification_of_a_kept_output_is_noticed() -> None:
    x = torch.randn(64, requires_grad=True)
    y, penalty = act_reg(x, "relu", l2=0.5)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


def test_a_deep_network_keeps_less() -> None:
    """Between linear layers, which keep our outputs as their inputs, ActReg adds only bits."""
    width, depth = 64, 6

    def kept(make: Callable[[], nn.Module]) -> int:
        layers = [m for _ in range(depth) for m in (nn.Linear(width, width), make())]
        network, x = nn.Sequential(*layers), torch.randn(32, width)
        weights = {p.data_ptr() for p in network.parameters()}
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in packed(lambda: network(x))
            if t.data_ptr() not in weights
        }
        return sum(storages.values())

    activations = depth * 32 * width * 4  # bytes of the linear layers' inputs
    assert kept(lambda: ActReg("relu", l1=0.1, p=0.3)) == activations + depth * (
        32 * width // 8 + 16
    )
    # Plus the output of the last ActReg, which no linear layer keeps. nn.Tanh keeps as much.
    for name in ("relu", "tanh", "softplus"):
        assert kept(lambda name=name: ActReg(name, l1=0.1, l2=0.1)) == activations + 32 * width * 4
    assert kept(nn.Tanh) == activations + 32 * width * 4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "variant",
    [
        *({"activation": name} for name in INEXACT),
        {"activation": "softplus", "beta": 2.5, "threshold": 40.0},
    ],
    ids=table.describe,
)
def test_second_derivatives_from_the_output(variant: dict[str, Any], layout: str) -> None:
    """Second derivatives with a kept output equal those of the reference."""
    base = torch.randn(2, 3, 4, 6, dtype=torch.float64) * 3
    x = LAYOUTS[layout](base).detach().requires_grad_()
    dy = torch.randn_like(x, requires_grad=True)
    results = []
    for f in (act_reg, reference.act_reg):
        output, penalty = f(x, **variant, **BOTH, reduction="sum")
        inputs = (x, dy)
        (dx,) = torch.autograd.grad([output, penalty], x, [dy, 0.75 * penalty], create_graph=True)
        results.append((dx, *torch.autograd.grad(dx.square().sum(), inputs)))
    assert_close(*results)


def test_a_penalty_is_not_off_however_small() -> None:
    """The tiniest l2 stays on, although the kernel divides it by s."""
    x = torch.ones(8, dtype=torch.float64, requires_grad=True)
    y, penalty = act_reg(x, "relu", l2=5e-324, reduction="sum", seed=1, **OF_Y)
    (y.sum() + penalty).backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())


def test_the_output_is_enough_only_where_it_is() -> None:
    x = torch.randn(8)
    call = partial(ops.backward, x, None, x, None)
    accepted = ("tanh", [], 0.0, False, [0.0, 0.0], "sum", [])
    assert_close(call(*accepted, x_is_output=True), x * (1 - x * x))
    for refused in (
        ("gelu", [], 0.0, False, [0.5, 0.5], "sum", []),
        ("leaky_relu", [-0.5], 0.0, False, [0.5, 0.5], "sum", []),
        ("tanh", [], 0.5, True, [0.5, 0.5], "sum", []),
    ):
        with pytest.raises(ValueError, match=f"output is not enough .* '{refused[0]}' in Float"):
            call(*refused, x_is_output=True)
    half = x.half()
    with pytest.raises(ValueError, match="output is not enough .* 'tanh' in Half"):
        ops.backward(half, None, half, None, *accepted, x_is_output=True)


def backward_bits(**changed: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "dy": torch.ones(3, 5),
        "dpenalty": None,
        "bits": torch.full((2,), 255, dtype=torch.uint8),
        "rng_state": None,
        "anchor": None,
        "sizes": [3, 5],
        "dtype": torch.float32,
        "activation": "relu",
        "parameters": [],
        "p": 0.0,
        "on_output": False,
        "coefficients": [0.0, 0.0],
        "reduction": "sum",
        "order": [],
    }
    return ops.backward_bits(*(arguments | changed).values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation": "gelu"}, "a bit for each element is not enough.*'gelu'"),
        ({"coefficients": None}, "a bit for each element is not enough"),
        ({"coefficients": [0.0, 1.0]}, "a bit for each element is not enough"),
        ({"bits": None}, "there are no bits"),
        (
            {"bits": lambda: torch.zeros(1, dtype=torch.uint8)},
            r"bits of an input of shape \[3, 5\] have shape \[2\], but got \[1\]",
        ),
        ({"bits": lambda: torch.zeros(2, dtype=torch.int8)}, "uint8 tensor of one dimension"),
        ({"bits": lambda: torch.zeros(2, 1).byte()}, "uint8 tensor of one dimension"),
        ({"order": [1]}, r"order is empty or a permutation of 2 dimensions, but got \[1\]"),
        ({"order": [1, 1]}, "permutation of 2 dimensions"),
        ({"order": [2, 0]}, "permutation of 2 dimensions"),
        ({"reduction": ""}, "reduction is mean, sum, batch or token, but got ''"),
        ({"sizes": [3, 4]}, r"dy has shape \[3, 5\], but input has .* \[3, 4\]"),
        ({"dy": None}, "needs dy or dpenalty"),
        ({"dpenalty": lambda: torch.ones(2)}, "dpenalty has the shape"),
        ({"p": 0.5, "coefficients": [1.0, 0.0]}, "dropout needs rng_state"),
    ],
)
def test_wrong_arguments_of_backward_bits(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backward_bits(**{k: v() if callable(v) else v for k, v in changed.items()})
    assert torch.equal(backward_bits(), torch.ones(3, 5))


def test_bits_of_any_strides() -> None:
    bits = torch.tensor([0b10110001, 0, 0b1100101, 0], dtype=torch.uint8)
    assert torch.equal(backward_bits(bits=bits[::2]), backward_bits(bits=bits[::2].clone()))
