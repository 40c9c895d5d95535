"""act_reg_: the output overwrites the input, under autograd's rules for in-place operations."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad, jvp, vjp, vmap
from torch.testing import assert_close

from actreg_ext import collect_penalty, record_penalties
from actreg_ext.functional import ActRegOutput, act_reg, act_reg_
from actreg_ext.nn import ActReg
from tests import table

pytestmark = pytest.mark.usefixtures("default_device")

OPTIONS: dict[str, Any] = dict(l1=0.5, p=0.3, reduction="sum", seed=3)


def linear(x: Tensor) -> Tensor:
    """An operation with a gradient, whose result may be overwritten."""
    return x * 1


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_values(activation: dict[str, Any], dtype: torch.dtype, p: float) -> None:
    x = table.random_inputs(dtype, "cpu").to(torch.get_default_device())
    options = {**activation, "l1": 0.5, "l2": 0.25, "p": p, "seed": 3}
    expected = act_reg(x, **options)
    version, address = x._version, x.data_ptr()
    output, penalty = act_reg_(x, **options)
    assert output is x and x.data_ptr() == address and x._version == version + 1
    assert torch.equal(output.nan_to_num(), expected.output.nan_to_num())
    assert torch.equal(penalty.nan_to_num(), expected.penalty.nan_to_num())


@pytest.mark.parametrize("layout", ["transposed", "strided", "unaligned", "empty"])
def test_layouts(layout: str) -> None:
    base = torch.randn(33, 40)
    x = {
        "transposed": base.T,
        "strided": base[:, ::2],
        "unaligned": base.flatten()[1:],
        "empty": base[:0],
    }[layout]
    rest, expected = base.clone(), act_reg(x, **OPTIONS)
    output, penalty = act_reg_(x, **OPTIONS)
    assert (
        output is x and torch.equal(x, expected.output) and torch.equal(penalty, expected.penalty)
    )
    if layout == "strided":
        assert torch.equal(base[:, 1::2], rest[:, 1::2])
    assert base.flatten()[0] == rest.flatten()[0] or layout != "unaligned"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("relu", {}),
        ("relu", OPTIONS),
        ("relu", {"l2": 0.5}),  # keeps the output
        ("relu", {"l2": 0.5, "p": 0.3, "penalty_on": "output", "seed": 1}),
        ("identity", {"p": 0.3, "seed": 1}),
        ("leaky_relu", {"p": 0.3, "seed": 1}),
        ("hardsigmoid", OPTIONS),
    ],
)
def test_gradients(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """The first gradient and, with create_graph=True, the second."""
    x = torch.randn(1000).to(dtype).requires_grad_()
    dy = torch.randn(1000).to(dtype).requires_grad_()
    ours, theirs = (f(linear(x), name, **options) for f in (act_reg_, act_reg))
    assert_close(ours, theirs, rtol=0, atol=0)
    grads = []
    for result in (ours, theirs):
        dpenalty = torch.ones_like(result.penalty, requires_grad=True)
        (dx,) = torch.autograd.grad([*result], x, [dy, dpenalty], create_graph=True)
        grads.append((dx, *torch.autograd.grad(dx, (x, dy, dpenalty), torch.ones_like(dx))))
    assert_close(*grads, rtol=0, atol=0)


def test_views() -> None:
    """A view is computed through a copy; the base gets the values and the gradient."""
    x = torch.randn(6, 4, requires_grad=True)
    results = []
    for f in (act_reg_, act_reg):
        h = linear(x)
        part = h[2:4]
        output, penalty = f(part, "relu", l1=0.5, p=0.3, seed=1)
        whole = h if f is act_reg_ else torch.cat([h[:2], output, h[4:]])
        results.append((whole, *torch.autograd.grad(whole.square().sum() + penalty, x)))
    assert_close(*results)


def test_what_others_saved_is_protected() -> None:
    x = torch.randn(8, requires_grad=True)
    h = linear(x)
    saved = h.exp() * h  # exp keeps its output, * keeps h
    act_reg_(h, "relu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()
    y = linear(x)
    penalty = act_reg_(y, "relu", l2=0.5).penalty  # act_reg_ keeps y
    act_reg_(y, "relu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "l2": 1.0, "p": 0.5}])
def test_an_input_that_backward_needs_is_not_overwritten(options: dict[str, Any]) -> None:
    x = torch.randn(8, requires_grad=True)
    h = linear(x)
    before = h.detach().clone()
    state = torch.get_rng_state()
    with pytest.raises(
        RuntimeError, match="needs the input, which would be overwritten; use act_reg"
    ):
        act_reg_(h, **{"activation": "gelu", **options})
    assert torch.equal(h, before) and torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        act_reg_(h, **{"activation": "gelu", **options})
    assert not torch.equal(h, before)


@pytest.mark.parametrize("hooked", [False, True])
def test_the_operator_copies_an_input_that_backward_needs(hooked: bool) -> None:
    """As torch's silu_ does; ActReg(inplace=True) relies on this."""
    x = torch.randn(8, requires_grad=True)
    for order in (1, 2):
        h = linear(x)
        same = saved_tensors_hooks(lambda t: t, lambda t: t)
        with same if hooked else contextlib.nullcontext():
            torch.ops.actreg.forward_(h, None, "gelu", [], 0.0, False, [0.0, 0.0], "sum", [])
        expected = F.gelu(linear(x))
        torch.testing.assert_close(h, expected)
        for _ in range(order):
            h, expected = (
                torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
                for y in (h, expected)
            )
        torch.testing.assert_close(h, expected)


class TestModule:
    """ActReg(inplace=True) overwrites its input, as nn.ReLU(inplace=True) does."""

    @pytest.mark.parametrize("p", [0.0, 0.5])
    @pytest.mark.parametrize("name", ["relu", "silu", "hardtanh", "sigmoid", "identity"])
    def test_overwrites(self, name: str, p: float) -> None:
        layer = ActReg(name, l1=0.5, p=p, inplace=True)
        x = torch.randn(100, requires_grad=True)
        h = linear(x)
        torch.manual_seed(1)
        y = layer(h)
        assert y is h
        torch.manual_seed(1)
        expected = act_reg(linear(x), name, l1=0.5, p=p)
        torch.testing.assert_close(y, expected.output)
        ours = torch.autograd.grad(y.sum() + collect_penalty(layer), x)
        theirs = torch.autograd.grad(expected.output.sum() + expected.penalty, x)
        torch.testing.assert_close(ours, theirs)
        with torch.no_grad():
            h = linear(x)
            layer.eval()(h)  # the caller discards the result
            torch.testing.assert_close(h, act_reg(linear(x), name, training=False).output)

    def test_a_leaf_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            ActReg("silu", inplace=True)(torch.randn(3, requires_grad=True))

    @pytest.mark.parametrize("name", ["leaky_relu", "softplus", "hardtanh", "softshrink"])
    @pytest.mark.parametrize("inplace", [False, True])
    def test_what_keep_means(self, name: str, inplace: bool) -> None:
        x = torch.randn(100, requires_grad=True)
        for keep, l1 in (("auto", 0.0), ("input", 0.5)):
            y = ActReg(name, l1=l1, keep=keep, inplace=inplace)(linear(x))
            y += 1
            y.sum().backward()
        y = ActReg(name, l1=0.5, inplace=inplace)(linear(x))
        y += 1
        with pytest.raises(RuntimeError, match=rf'ActReg\("{name}"\).*keep="input"'):
            y.sum().backward()


@pytest.mark.parametrize("name", ["tanh", "logsigmoid", "hardtanh"])
def test_where_the_output_tells_the_slope(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(100).to(dtype).requires_grad_()
    options: dict[str, Any] = dict(activation=name, l1=0.5, l2=0.25)
    h = linear(x)
    if dtype in table.HALF_TYPES:  # in a half type y has too few digits, so the input is kept
        with pytest.raises(RuntimeError, match=f"'{name}' in {dtype} needs the input"):
            act_reg_(h, **options)
        return
    ours, theirs = act_reg_(h, **options), act_reg(linear(x), **options)
    dy = torch.randn(100).to(dtype)
    gradients = [table.gradient(result, x, dy) for result in (ours, theirs)]
    assert ours.output is h and torch.equal(*gradients)


def test_torchs_rules() -> None:
    leaf = torch.randn(8, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        act_reg_(leaf, "relu")
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        act_reg_(torch.ones(1).expand(3), "relu")
    with torch.inference_mode():
        x = torch.randn(8)
        assert act_reg_(x, "relu").output is x
    with pytest.raises(ValueError, match="l1 must be finite"):
        act_reg_(torch.ones(3), "relu", l1=-1.0)
    with pytest.raises(TypeError):
        act_reg_([1.0], "relu")  # type: ignore[arg-type]


def test_the_default_generator_gives_the_same_mask_as_act_reg(default_device: str) -> None:
    if default_device == "cuda":
        pytest.skip("there torch.randint draws another number")
    outputs = []
    for f in (act_reg, act_reg_):
        torch.manual_seed(5)
        outputs.append(f(torch.ones(100), "identity", p=0.5).output)
    assert torch.equal(*outputs)


def test_transforms() -> None:
    x = torch.randn(3, 8)

    def loss(f: Any, x: Tensor) -> Tensor:
        output, penalty = f(linear(x), "relu", l1=0.5, p=0.3, seed=1)
        return output.square().sum() + penalty

    assert_close(grad(lambda x: loss(act_reg_, x))(x), grad(lambda x: loss(act_reg, x))(x))
    both = [vmap(grad(lambda x, f=f: loss(f, x)))(x) for f in (act_reg_, act_reg)]
    assert_close(*both)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [forward_ad.unpack_dual(loss(f, dual)).tangent for f in (act_reg_, act_reg)]
    assert_close(*tangents)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_compiled(backend: str, name: str) -> None:
    """Compiled calls work even if the backward needs the input."""

    def f(x: Tensor, operator: Any = act_reg_) -> ActRegOutput:
        return operator(linear(x), name, l1=0.5, p=0.3, seed=1)

    x = torch.randn(64, requires_grad=True)
    compiled = torch.compile(f, backend=backend, fullgraph=True)
    results = []
    for output, penalty in (compiled(x), f(x, act_reg)):
        results.append((output, penalty, *torch.autograd.grad(output.sum() + penalty, x)))
    assert_close(*results)


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("with_bits", [False, True])
def test_opcheck(with_bits: bool, p: float) -> None:
    pytest.importorskip("expecttest", reason="torch.library.opcheck needs expecttest")
    x, state = torch.randn(3, 5), torch.tensor([1, 2])
    arguments = (state, "relu", [], p, False, [0.5, 0.0], "sum", [], with_bits)
    torch.library.opcheck(torch.ops.actreg.forward_.default, (x, *arguments))


def test_a_negative_view() -> None:
    x = torch.complex(torch.randn(8), torch.randn(8)).conj().imag
    assert x.is_neg()
    expected = act_reg(x, "relu", l1=0.5)
    assert_close(act_reg_(x, "relu", l1=0.5), expected)
    assert_close(x.resolve_neg(), expected.output)


@pytest.mark.parametrize("refused", ["leaf", "overlapping"])
def test_the_generator_does_not_move_for_nothing(refused: str) -> None:
    leaf = torch.randn(8, requires_grad=True)
    x = leaf if refused == "leaf" else torch.ones(1).expand(3)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        act_reg_(x, "relu", p=0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_memory_is_allocated() -> None:
    """act_reg_ allocates only bits and a few numbers."""
    from benchmarks.memory import peak_bytes  # the benchmark's way to count

    x, device = torch.randn(1 << 16), torch.get_default_device().type
    numbers = 2 * 512 if device == "cuda" else 64  # CUDA gives each 512 bytes
    with torch.no_grad():
        assert peak_bytes(lambda: act_reg_(x, "gelu", **OPTIONS), device) <= numbers
    h = linear(x.requires_grad_())
    assert peak_bytes(lambda: act_reg_(h, "relu", **OPTIONS), device) <= (1 << 13) + numbers


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},  # keeps bits
        {"activation": "relu", "p": 0.5, "seed": 3},
        {"activation": "relu", "l2": 0.1},  # keeps the output
        {"activation": "tanh"},
        {"activation": "identity", "p": 0.5, "seed": 3},
    ],
    ids=str,
)
def test_a_hook_that_raises_leaves_the_input(options: dict[str, Any]) -> None:
    """The input is not overwritten before all tensors for the backward are saved."""

    def refuse(_: Tensor) -> Tensor:
        raise ValueError("no")

    leaf = torch.randn(10, requires_grad=True)
    x = linear(leaf)
    before, node = x.detach().clone(), x.grad_fn
    with saved_tensors_hooks(refuse, lambda t: t), pytest.raises(ValueError, match="no"):
        act_reg_(x, **options)
    assert torch.equal(x, before) and x.grad_fn is node and x._version == 0
    results = []
    for f, pack in ((act_reg_, torch.clone), (act_reg, lambda t: t)):
        with saved_tensors_hooks(pack, lambda t: t):
            output, penalty = f(linear(leaf), **options)
        results.append(torch.autograd.grad(output.square().sum() + penalty, leaf)[0])
    assert_close(*results)


def test_under_transforms() -> None:
    """Transforms go through a copy, because they still need the input after the call."""
    x = torch.randn(4, 3)

    def gradient(f: Any) -> Tensor:
        each = vmap(lambda x: f(x * 1, "tanh", p=0.5, seed=1).output)
        return grad(lambda x: each(x).square().sum())(x)

    assert_close(gradient(act_reg_), gradient(act_reg))

    def pulled_back(f: Any) -> Tensor:
        options = {"l1": 0.3, "l2": 0.7, "p": 0.9, "penalty_on": "output", "seed": 1}

        def tangent(x: Tensor) -> Tensor:
            return jvp(lambda x: f(x * 1, "leaky_relu", **options).output, (x,), (x,))[1]

        return vjp(tangent, x)[1](torch.ones_like(x))[0]

    assert_close(pulled_back(act_reg_), pulled_back(act_reg))


@pytest.mark.parametrize("compiles", [False, True])
def test_through_a_copy_the_mask_is_that_of_the_input(compiles: bool) -> None:
    """The copy of a strided input has the mask of row-major order, as the input itself."""
    f = torch.compile(act_reg_, backend="aot_eager") if compiles else act_reg_
    base = torch.randn(6, 8)
    x = torch._neg_view(base.clone()).t()[:, ::2]
    expected = act_reg(x, "relu", p=0.5, seed=2).output
    f(x, "relu", p=0.5, seed=2)
    assert_close(x, expected)


def linear_and(module: ActReg) -> Any:
    def run(x: Tensor) -> Tensor:
        hidden = linear(x)
        y = module(hidden)
        return hidden if module.inplace else y

    return run


@pytest.mark.parametrize("how", ["a mode", "a record", "compiled"])
def test_a_module_copies_an_input_that_backward_needs(how: str) -> None:
    """Also where act_reg runs out of place, and the module copies the output."""
    layer, plain = ActReg("gelu", l1=0.5, inplace=True), ActReg("gelu", l1=0.5)
    results = []
    for module in (layer, plain):
        x = torch.arange(-2.0, 3.0).requires_grad_()
        opened: Any = torch.device(x.device) if how == "a mode" else record_penalties(sums=True)
        run = linear_and(module)
        if how == "compiled":
            run, opened = torch.compile(run, backend="aot_eager"), contextlib.nullcontext()
        with opened:
            y = run(x)
            penalty = collect_penalty(module)
        (y.sum() + penalty).backward()
        results.append((penalty, x.grad))
    assert_close(results[0], results[1])
