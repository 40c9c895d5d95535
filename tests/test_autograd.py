"""Derivatives of every kind: reverse, forward, twice, batched; and what autograd promises."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from actreg_ext import ops, reference
from actreg_ext.functional import act_reg
from actreg_ext.nn import ActReg

pytestmark = pytest.mark.usefixtures("default_device")

SETTINGS = [
    pytest.param({"p": 0.0, "penalty_on": "activation"}, id="no dropout"),
    pytest.param({"p": 0.5, "penalty_on": "activation", "seed": 3}, id="penalty on activation"),
    pytest.param({"p": 0.5, "penalty_on": "output", "seed": 3}, id="penalty on output"),
]
# Points on both sides of every kink, far enough from it for finite differences.
POINTS = [-7.3, -3.6, -2.1, -0.8, -0.3, 0.2, 0.9, 1.7, 2.6, 4.4, 6.9, 23.0]


def points(**options: Any) -> Tensor:
    return torch.tensor(POINTS, dtype=torch.float64, **options)


def rng_state(p: float) -> Tensor | None:
    return torch.tensor([5, 7]) if p else None


@pytest.mark.parametrize("coefficients", [None, [0.3, 0.2]], ids=["sums", "weighted"])
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not")  # opcheck's
class TestOpcheck:
    """opcheck tests schema, fake tensors, autograd registration and AOTAutograd."""

    @pytest.fixture(autouse=True)
    def expecttest(self) -> None:
        pytest.importorskip("expecttest", reason="torch.library.opcheck needs expecttest")

    def test_forward(self, p: float, coefficients: list[float] | None) -> None:
        x = torch.randn(3, 5, requires_grad=True)
        torch.library.opcheck(
            ops.forward, (x, rng_state(p), "gelu", [], p, True, coefficients, "sum", [])
        )

    def test_forward_random(self, p: float, coefficients: list[float] | None) -> None:
        x = torch.randn(3, 5, requires_grad=True)
        torch.library.opcheck(
            ops.forward_random, (x, "elu", [0.5], p, False, coefficients, "mean", [1, 0])
        )

    @pytest.mark.parametrize("given", ["dy", "dpenalty", "both"])
    def test_backward(self, p: float, coefficients: list[float] | None, given: str) -> None:
        shapes = ((3, 5), (3, 5), () if coefficients else (2,))
        x, dy, dpenalty = (torch.randn(shape, requires_grad=True) for shape in shapes)
        arguments = (x, rng_state(p), "silu", [], p, True, coefficients, "sum", [])
        gradients = (dy if given != "dpenalty" else None, dpenalty if given != "dy" else None)
        torch.library.opcheck(ops.backward, (*gradients, *arguments))
        # The inputs are detached, because AOTAutograd could not trace a third derivative.
        detached = [None if g is None else g.detach() for g in (*gradients, x)]
        torch.library.opcheck(ops.curvature, (*detached, *arguments[1:]))


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not")  # opcheck's
class TestOpcheckOfBits:
    """opcheck of the operators that keep bits."""

    @pytest.fixture(autouse=True)
    def expecttest(self) -> None:
        pytest.importorskip("expecttest", reason="torch.library.opcheck needs expecttest")

    def test_forward_bits(self, p: float) -> None:
        x = torch.randn(3, 5, requires_grad=True)
        arguments = ("relu", [], p, False, [0.3, 0.0], "token", [])
        torch.library.opcheck(ops.forward_bits, (x, rng_state(p), *arguments))
        torch.library.opcheck(ops.forward_random_bits, (x, *arguments))

    @pytest.mark.parametrize("given", ["dy", "dpenalty", "both"])
    def test_backward_bits(self, p: float, given: str) -> None:
        dy, dpenalty = torch.randn(3, 5, requires_grad=True), torch.ones((), requires_grad=True)
        bits = torch.tensor([0b10110001, 0b1100101], dtype=torch.uint8)
        gradients = (dy if given != "dpenalty" else None, dpenalty if given != "dy" else None)
        for on_output in (False, True):  # the backward redraws the mask, or reads it from the bits
            attributes = ("relu", [], p, on_output, [0.3, 0.0], "batch", [1, 0])
            tensors = (*gradients, bits, rng_state(p), None)
            arguments = (*tensors, [3, 5], torch.float32, *attributes)
            torch.library.opcheck(ops.backward_bits, arguments)


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradcheck(activation: dict[str, Any], setting: dict[str, Any]) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return act_reg(x, l1=0.3, l2=0.2, **activation, **setting)

    modes = {"check_forward_ad": True, "check_batched_forward_grad": True}
    assert gradcheck(f, points(requires_grad=True), check_batched_grad=True, **modes)


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradgradcheck(activation: dict[str, Any], setting: dict[str, Any]) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return act_reg(x, l1=0.3, l2=0.2, **activation, **setting)

    modes = {"check_fwd_over_rev": True, "check_rev_over_rev": True}
    x = points(requires_grad=True)[::2]  # every second point: the matrices are large
    assert gradgradcheck(f, x, check_batched_grad=True, **modes)


@pytest.mark.parametrize("setting", SETTINGS)
def test_double_backward(
    activation: dict[str, Any], setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Second derivatives by x, dy and dpenalty, where finite differences would be too coarse."""
    # PyTorch's own hardsigmoid has no second derivative.
    hardsigmoid = (lambda x: F.relu6(x + 3) / 6, None)
    monkeypatch.setitem(reference.ACTIVATIONS, "hardsigmoid", hardsigmoid)
    x = (torch.randn(200, dtype=torch.float64) * 4).requires_grad_()
    dy, v = torch.randn(2, 200, dtype=torch.float64)
    dy.requires_grad_()
    dpenalty = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def second(f: Callable[..., Any]) -> tuple[Tensor, ...]:
        output = f(x, l1=3.0, l2=2.0, **activation, **setting)
        (dx,) = torch.autograd.grad(output, x, (dy, dpenalty), create_graph=True)
        return torch.autograd.grad(dx, (x, dy, dpenalty), v, materialize_grads=True)

    assert_close(second(act_reg), second(reference.act_reg))


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_double_backward_of_small_types(x_dtype: torch.dtype) -> None:
    """A gradient of a gradient has the dtype of its input."""
    x = torch.randn(64, dtype=x_dtype, requires_grad=True)
    output, penalty = act_reg(x, "silu", l2=1.0, p=0.3, seed=1)
    (dx,) = torch.autograd.grad(output.float().square().sum() + penalty, x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.float().sum(), x)
    wide = x.detach().double().requires_grad_()
    expected = hessian(lambda t: scalar(reference.act_reg, p=0.3, seed=1, l2=1.0)(t))(wide).sum(0)
    assert ddx.dtype == x_dtype
    # The output and the first derivative are rounded to x_dtype before the second one.
    assert_close(ddx.double(), expected, rtol=8 * torch.finfo(x_dtype).eps, atol=0.05)


def test_third_derivative_is_refused() -> None:
    """A third derivative raises, in reverse and in forward mode. The reference computes it."""

    def third(f: Callable[..., Any], outer: Callable[..., Any]) -> Tensor:
        once = grad(scalar(f, p=0.5, seed=1))
        return outer(lambda x: grad(lambda x: once(x).sum())(x).sum())(points())

    for outer in (grad, jacfwd):
        with pytest.raises(RuntimeError, match="third derivative.*reference.act_reg has"):
            third(act_reg, outer)
        assert third(reference.act_reg, outer).abs().sum() > 0


def scalar(f: Callable[..., Any], **options: Any) -> Callable[[Tensor], Tensor]:
    """A scalar function of x that uses both output and penalty."""

    def of_x(x: Tensor) -> Tensor:
        output, penalty = f(x, "silu", **{"l1": 0.3, **options})
        return output.square().sum() + penalty

    return of_x


TRANSFORMS: dict[str, Callable[..., Callable[[Tensor], Any]]] = {
    "grad": grad,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "jvp": lambda f: lambda x: jvp(f, (x,), (x.cos(),)),
    "jvp of grad": lambda f: lambda x: jvp(grad(f), (x,), (x.cos(),)),
    "vmap": vmap,
    "vmap of dimension 1": lambda f: vmap(f, in_dims=1),
    "vmap of grad": lambda f: vmap(grad(f)),
    "vmap of hessian": lambda f: vmap(hessian(f)),
    "vmap of vmap": lambda f: lambda x: vmap(vmap(f))(x.reshape(3, 2, -1)),
    "grad of vmap": lambda f: grad(lambda x: vmap(f)(x).sum()),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, setting: dict[str, Any]) -> None:
    """A transform of the operator equals the transform of the reference."""
    x = points().reshape(3, 4)
    for scale in (0.0, 0.3):
        ours, expected = (
            TRANSFORMS[transform](scalar(f, l1=scale, l2=scale, **setting))(x)
            for f in (act_reg, reference.act_reg)
        )
        assert_close(ours, expected)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("part", ["output", "penalty"])
def test_one_of_the_outputs(part: str, setting: dict[str, Any]) -> None:
    """If only one result is used, autograd passes None as the gradient of the other one."""
    x = points(requires_grad=True)

    def gradient(f: Callable[..., Any]) -> Tensor:
        used = getattr(f(x, "tanh", l1=0.3, l2=0.2, **setting), part)
        return torch.autograd.grad(used.square().sum(), x)[0]

    assert_close(gradient(act_reg), gradient(reference.act_reg))


class TestVmapRandomness:
    def masks(self, randomness: str, **options: Any) -> Tensor:
        ones = torch.ones(4, 64)
        f = vmap(lambda x: act_reg(x, "identity", p=0.5, **options).output, randomness=randomness)
        return f(ones) != 0

    def test_error(self) -> None:
        with pytest.raises(RuntimeError, match="'same' or 'different' randomness"):
            self.masks("error")
        assert self.masks("error", training=False).all()  # no random number is needed

    def test_different(self) -> None:
        masks = self.masks("different")
        assert len({tuple(mask.tolist()) for mask in masks}) == 4

    def test_same(self) -> None:
        masks = self.masks("same")
        assert (masks == masks[0]).all()
        assert 0 < masks[0].sum() < 64
        assert not torch.equal(masks, self.masks("same"))

    @pytest.mark.parametrize("x_dim", [0, None])
    def test_seed_of_each_example(self, x_dim: int | None) -> None:
        seeds = torch.tensor([[1, 0], [1, 5], [2, 0]])
        x = torch.ones(64) if x_dim is None else torch.ones(3, 64)

        def f(x: Tensor, seed: Tensor) -> Tensor:
            return act_reg(x, "identity", p=0.5, seed=seed).output

        each = [f(torch.ones(64), seed) for seed in seeds]
        assert torch.equal(vmap(f, in_dims=(x_dim, 0))(x, seeds), torch.stack(each))

    @pytest.mark.parametrize("randomness", ["same", "different"])
    def test_gradient_has_the_mask_of_the_forward(self, randomness: str) -> None:
        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            output = act_reg(x, "identity", p=0.5).output
            return output.sum(), output

        ones = torch.ones(4, 64)
        gradient, output = vmap(grad(f, has_aux=True), randomness=randomness)(ones)
        assert torch.equal(gradient, output)


def test_gradients_of_each_sample() -> None:
    """vmap(grad) gives each example's gradient of the parameters."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), ActReg("gelu", p=0.5), torch.nn.Linear(8, 1))
    x = torch.randn(5, 4)

    def loss(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, parameters, (example,)).square().sum()

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    batched = vmap(grad(loss), in_dims=(None, 0), randomness="different")
    torch.manual_seed(1)
    ours = batched(parameters, x)
    torch.manual_seed(1)
    each = [grad(loss)(parameters, example) for example in x]
    assert_close(ours, {name: torch.stack([g[name] for g in each]) for name in parameters})


def test_graph_is_used_once_or_retained() -> None:
    x = points(requires_grad=True)
    loss = scalar(act_reg, p=0.5)(x)
    loss.backward(retain_graph=True)
    assert x.grad is not None
    once = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_saves_the_input_and_16_bytes(p: float, layout: str) -> None:
    x = torch.randn(64, 32, requires_grad=True)
    x = {"contiguous": x, "transposed": x.T, "strided": x[:, ::2]}[layout]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        act_reg(x, "gelu", l1=0.1, l2=0.1, p=p, penalty_on="output")
    assert saved[0].data_ptr() == x.data_ptr() and saved[0].shape == x.shape
    assert sum(t.nbytes for t in saved) == x.nbytes + (16 if p else 0)


def test_modification_of_the_input_is_noticed() -> None:
    x = points(requires_grad=True) * 1
    output = act_reg(x, "gelu").output
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_seed_may_be_counted_up_before_the_backward() -> None:
    x, seed = torch.ones(64, requires_grad=True), torch.tensor([1, 2])
    output = act_reg(x, "identity", p=0.5, seed=seed).output
    seed += 1
    output.sum().backward()
    assert torch.equal(x.grad, output)
    assert not torch.equal(output, act_reg(x, "identity", p=0.5, seed=seed).output)


def test_autocast(default_device: str) -> None:
    """The output has the input's dtype; penalty and gradients of parameters are float32."""
    linear = torch.nn.Linear(8, 8)
    with torch.autocast(default_device, torch.bfloat16):
        h = linear(torch.randn(4, 8))
        output, penalty = act_reg(h, "gelu", l1=0.1, p=0.5)
        assert act_reg(h.float()).output.dtype == torch.float32
    assert h.dtype == output.dtype == torch.bfloat16
    assert penalty.dtype == torch.float32
    (output.sum() + penalty).backward()
    assert linear.weight.grad is not None and linear.weight.grad.dtype == torch.float32
    assert linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context: Callable[..., Any]) -> None:
    x = points(requires_grad=True)
    with context():
        result = act_reg(x, l1=0.1, p=0.5, seed=1)
    assert not any(t.requires_grad for t in result)
    assert_close(result, act_reg(x, l1=0.1, p=0.5, seed=1))


SHAPES = [(5,), (3, 4), (4, 4), (4, 4, 2), (2, 3, 2, 2), (2, 5, 2, 2)]


@pytest.mark.pairs
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("part", ["output", "penalty", "both"])
@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "elu", "alpha": 0.5, "l2": 0.2},  # keeps the input
        {"activation": "relu"},  # keeps bits
        {"activation": "relu", "l2": 0.2},  # keeps the output if p = 0
        {"activation": "identity", "l1": 0.0},  # keeps nothing
    ],
)
def test_compiled_autograd(options: dict[str, Any], p: float, part: str) -> None:
    """All calls share one cache of graphs: none may get the graph of another shape or l1."""

    def gradient(shape: tuple[int, ...], l1: float) -> Tensor:
        x = torch.linspace(-2, 3, math.prod(shape)).reshape(shape).requires_grad_()
        y, penalty = act_reg(x, **{"l1": l1, "p": p, "seed": 1, **options})
        parts = {"output": y.square().sum(), "penalty": penalty}
        loss = sum(parts.values()) if part == "both" else parts[part]
        loss.backward()
        assert x.grad is not None
        return x.grad

    compiler = torch.compile(backend="eager", fullgraph=True, dynamic=True)
    calls = [(shape, l1) for shape in SHAPES for l1 in (0.3, 0.7)]
    with torch.device("cpu"):
        expected = [gradient(*call) for call in calls]
        with torch._dynamo.compiled_autograd._enable(compiler):
            compiled = [gradient(*call) for call in calls]
    assert_close(compiled, expected)


def test_anomaly_mode_names_the_call() -> None:
    with torch.autograd.set_detect_anomaly(True):
        x = torch.tensor([torch.inf], requires_grad=True)
        output = act_reg(x, "softsign").output  # its slope at infinity is NaN
        name = traceback.extract_stack()[-1].name
        with (
            pytest.warns(UserWarning, match=f"(?s)Error detected in ActRegBackward.*{name}"),
            pytest.raises(RuntimeError, match="ActRegBackward.* returned nan"),
        ):
            output.sum().backward()


def test_penalty_of_the_gradient() -> None:
    """The loss contains its own gradient (create_graph=True)."""

    def gradients(f: Callable[..., Any]) -> Tensor:
        w = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4).requires_grad_()
        x = torch.linspace(-2, 1, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
        output, penalty = f(x @ w, "silu", l1=0.3, l2=0.2, p=0.3, penalty_on="output", seed=1)
        loss = output.square().sum() + penalty
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(loss + dx.square().sum(), w)[0]

    assert_close(gradients(act_reg), gradients(reference.act_reg))


def test_half_precision_does_not_underflow_in_the_penaltys_tangent() -> None:
    x = torch.randn(1 << 17).abs().half()
    tangents = [
        jvp(lambda t, f=f: f(t, "identity", l1=1e-3).penalty, (x,), (torch.ones_like(x),))[1]
        for f in (act_reg, reference.act_reg)
    ]
    assert_close(*tangents, check_dtype=False)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_vmap_over_no_examples(p: float) -> None:
    output, penalty = vmap(lambda t: act_reg(t, l1=0.1, p=p), randomness="different")(
        torch.zeros(0, 3)
    )
    assert output.shape == (0, 3) and penalty.shape == (0,)
    seeded = vmap(lambda t: act_reg(t, l1=0.1, p=p, seed=1).penalty)(torch.zeros(0, 3))
    assert seeded.shape == (0,)
    assert vmap(grad(lambda t: act_reg(t, l1=0.1, p=p, seed=1).penalty))(
        torch.zeros(0, 3)
    ).shape == (0, 3)


def test_a_coefficient_of_0_is_off_for_an_infinite_gradient_too() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    penalty = act_reg(x, "identity", l2=1.0).penalty
    (dx,) = torch.autograd.grad(penalty, x, torch.tensor(torch.inf))
    assert dx.tolist() == [torch.inf, -torch.inf]


def test_the_second_derivative_has_its_kinks_where_the_kernels_have_them() -> None:
    x = torch.tensor([0.7, 0.3], requires_grad=True)  # float32(0.7) is not 0.7
    penalty = act_reg(x, "hardtanh", l2=1.0, reduction="sum", max_val=0.7).penalty
    (dx,) = torch.autograd.grad(penalty, x, create_graph=True)
    assert torch.autograd.grad(dx.sum(), x)[0].tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    "options",
    [{}, {"p": 0.4, "seed": 3}, {"l1": 0.3}, {"activation": "leaky_relu"}, {"activation": "gelu"}],
    ids=str,
)
@pytest.mark.parametrize("part", ["output", "penalty"])
def test_batched_gradients_depend_on_x(part: str, options: dict[str, Any]) -> None:
    """Batched gradients are differentiable by x, as torch's are, even if the derivative is 0."""
    results = []
    for f in (act_reg, reference.act_reg):
        x = torch.tensor([-1.0, 2.0, 0.3], requires_grad=True)
        y = torch.atleast_1d(getattr(f(x, **options), part))
        ways = {"is_grads_batched": True, "create_graph": True}
        (jacobian,) = torch.autograd.grad(y, x, torch.eye(len(y)), **ways)
        assert jacobian.requires_grad
        results.append((jacobian, *torch.autograd.grad(jacobian.square().sum(), x)))
    assert_close(*results)


@pytest.mark.parametrize("options", [{}, {"p": 0.5}, {"activation": "identity", "p": 0.5}], ids=str)
def test_create_graph_through_a_checkpoint(options: dict[str, Any]) -> None:
    """A checkpoint allows only one unpacking of each saved tensor."""
    x = torch.randn(5, requires_grad=True)
    y = checkpoint(lambda x: act_reg(x, seed=1, **options).output, x, use_reentrant=False)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    expected = reference.act_reg(x, seed=1, **options).output
    assert_close(dx, torch.autograd.grad(expected.square().sum(), x)[0])
