"""Programs traced by each tracer of PyTorch are right for other sizes, seeds and calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from functorch.compile import aot_function, min_cut_rematerialization_partition, nop
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.export import Dim
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from actreg_ext.functional import act_reg

REDUCTIONS = ["sum", "mean", "batch", "token"]
pytestmark = pytest.mark.usefixtures("nothing_compiled_yet")


def penalty_of(reduction: str) -> Callable[[Tensor], Tensor]:
    return lambda x: act_reg(x, "gelu", l1=1.0, l2=0.5, reduction=reduction).penalty


@pytest.mark.parametrize("reduction", REDUCTIONS)
class TestAnotherSize:
    """A program traced with 2 rows has the right penalty for 8 rows."""

    def test_make_fx(self, reduction: str) -> None:
        f = penalty_of(reduction)
        traced = make_fx(f, tracing_mode="symbolic")(torch.ones(2, 4))
        assert_close(traced(torch.ones(8, 4)), f(torch.ones(8, 4)))

    def test_jit_trace(self, reduction: str) -> None:
        f = penalty_of(reduction)
        traced = torch.jit.trace(f, (torch.ones(2, 4),))
        assert_close(traced(torch.ones(8, 4)), f(torch.ones(8, 4)))

    def test_aot_function(self, reduction: str) -> None:
        f = penalty_of(reduction)
        traced = aot_function(f, nop, nop, dynamic=True)
        for rows in (2, 8):
            x = torch.randn(rows, 4, requires_grad=True)
            results = [(y := g(x), *torch.autograd.grad(y, x)) for g in (traced, f)]
            assert_close(*results)

    @pytest.mark.parametrize("dim", [Dim("rows", min=1, max=100), Dim.AUTO, Dim.DYNAMIC], ids=str)
    @pytest.mark.parametrize("strict", [False, True])
    def test_export(self, reduction: str, strict: bool, dim: Any) -> None:
        model = Penalized(l1=1.0, l2=0.5, p=0.3, reduction=reduction, seed=3)
        shapes = {"x": {0: dim}}
        program = torch.export.export(
            model, (torch.randn(3, 4),), dynamic_shapes=shapes, strict=strict
        )
        x = torch.randn(9, 4)
        assert_close(program.module()(x), model(x))


class Penalized(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(act_reg(x, "gelu", **self.options))


def gate(x: Tensor, w: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """A gate on the tokens of one expert, whose number depends on the data."""
    g, v = (x[x[:, 0] > 0] @ w).chunk(2, -1)
    output, penalty = act_reg(g, **options)
    return output * v, penalty


GATES: list[dict[str, Any]] = [
    {"activation": "silu"},
    {"activation": "silu", "l1": 0.3, "l2": 0.1, "p": 0.3, "seed": 3, "reduction": "token"},
    {"activation": "relu", "l1": 0.3, "reduction": "mean"},
    {"activation": "relu", "p": 0.3, "seed": 3},
]


class TestSizesThatAreData:
    @pytest.mark.parametrize(
        ("backend", "options"),
        [*(("aot_eager", options) for options in GATES), ("inductor", GATES[1])],
    )
    def test_compile(self, backend: str, options: dict[str, Any]) -> None:
        w = torch.randn(6, 8, requires_grad=True)
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            compiled = torch.compile(gate, backend=backend, fullgraph=True)
            for rows in (10, 4):
                x = torch.randn(rows, 6)
                results = []
                for f in (compiled, gate):
                    output, penalty = f(x, w, options)
                    loss = output.square().sum() + penalty
                    results.append((output, penalty, *torch.autograd.grad(loss, w)))
                assert_close(*results)
            x = -torch.ones(3, 6)  # selects no token
            assert_close(compiled(x, w, options), gate(x, w, options))

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("options", GATES)
    def test_export(self, options: dict[str, Any], strict: bool) -> None:
        class Expert(nn.Module):
            def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
                return gate(x, w, options)

        w = torch.randn(6, 8)
        program = torch.export.export(Expert(), (torch.randn(10, 6), w), strict=strict)
        x = torch.randn(10, 6)
        assert_close(program.module()(x, w), Expert()(x, w))


def spread(t: Tensor) -> Tensor:
    """The same values with strides twice as large."""
    return torch.stack([t, t], -1)[..., 0]


HOOKS: dict[str, Callable[[], Any]] = {
    "none": nullcontext,
    "copy": lambda: saved_tensors_hooks(torch.clone, lambda t: t),
    "other strides": lambda: saved_tensors_hooks(spread, lambda t: t),
    "save_on_cpu": save_on_cpu,
}
SAVED: list[dict[str, Any]] = [  # these keep: input, output, bits, bits and seed, seed
    {"activation": "gelu", "l2": 0.1, "p": 0.3},
    {"activation": "tanh", "l1": 0.2},
    {"activation": "relu", "l1": 0.2},
    {"activation": "leaky_relu", "p": 0.3},
    {"activation": "identity", "p": 0.3},
]


# Compiled autograd reads the .grad of saved tensors, which warns.
LOOKS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@LOOKS
@pytest.mark.parametrize("options", SAVED, ids=lambda o: o["activation"])
@pytest.mark.parametrize("hooks", HOOKS)
def test_compiled_autograd(hooks: str, options: dict[str, Any]) -> None:
    """With hooks, compiled autograd traces with placeholders for the saved tensors."""
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    gradients = []
    for is_compiled in (False, True):
        with HOOKS[hooks]():
            output, penalty = act_reg(x, seed=3, **options)
            loss = output.square().sum() + penalty
        x.grad = None
        compiler = torch.compile(backend="eager")
        with compiled_autograd._enable(compiler) if is_compiled else nullcontext():
            loss.backward()
        gradients.append(x.grad)
    assert_close(*gradients)


@LOOKS
@pytest.mark.parametrize("options", SAVED, ids=lambda o: o["activation"])
def test_compiled_autograd_of_second_derivatives(options: dict[str, Any]) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    gradients = []
    for is_compiled in (False, True):
        output, penalty = act_reg(x * 1, seed=3, **options)
        loss = output.square().sum() + penalty
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        x.grad = None
        compiler = torch.compile(backend="eager", fullgraph=True)
        with compiled_autograd._enable(compiler) if is_compiled else nullcontext():
            dx.square().sum().backward()
        gradients.append(x.grad)
    assert_close(*gradients)


@pytest.mark.parametrize("options", SAVED[-3:], ids=lambda o: o["activation"])
def test_hooks_around_a_compiled_function(options: dict[str, Any]) -> None:
    """AOTAutograd passes the tensors that hooks return directly to the operators."""
    x = torch.randn(8, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return act_reg(x, seed=3, **options).output

    gradients = []
    for g in (torch.compile(f, backend="aot_eager", fullgraph=True), f):
        with saved_tensors_hooks(spread, lambda t: t):
            y = g(x)
        gradients += torch.autograd.grad(y.square().sum(), x)
    assert_close(*gradients)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_seed_is_counted_up_after_the_call(backend: str) -> None:
    def f(x: Tensor, seed: Tensor) -> Tensor:
        output = act_reg(x, "gelu", p=0.4, seed=seed).output
        seed[1] += 1
        return output

    x, compiled = torch.randn(1000, requires_grad=True), torch.compile(f, backend=backend)
    seeds = [torch.tensor([3, 0]), torch.tensor([3, 0])]
    for _ in range(2):
        outputs = [g(x, seed) for g, seed in zip((compiled, f), seeds, strict=True)]
        assert_close(*[(y, *torch.autograd.grad(y.sum(), x)) for y in outputs])
    assert torch.equal(*seeds) and seeds[0][1] == 2


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_integers_of_64_bits_are_seeds(backend: str) -> None:
    """All 64-bit ints are seeds, and a new seed does not compile again."""

    def f(x: Tensor, seed: int) -> Tensor:
        return act_reg(x, "gelu", p=0.4, seed=seed).output

    x, compiled = torch.randn(100), torch.compile(f, backend=backend, fullgraph=True)
    for seed in (2**63, 2**63 + 6, 2**64 - 1, 2**64 - 7, 5, 7, -9, -(2**63)):
        assert_close(compiled(x, seed), f(x, seed))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_close(compiled(x, 2**63 + 77), f(x, 2**63 + 77))


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    return act_reg(x, "identity", p=0.5).output, act_reg(x, "identity", p=0.5).output


@pytest.mark.parametrize(
    "f",
    [
        twice,
        vmap(twice, randomness="different"),
        vmap(twice, randomness="same"),
        lambda x: tuple(grad(lambda x: twice(x)[0].sum())(x) for _ in range(2)),
    ],
    ids=["plain", "different", "same", "grad"],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_two_equal_calls_have_two_masks(f: Any, requires_grad: bool) -> None:
    """Two equal calls draw two masks, although AOTAutograd merges equal calls of operators."""
    x = torch.ones(4, 250, requires_grad=requires_grad)
    traced = aot_function(f, nop, nop, partition_fn=min_cut_rematerialization_partition)
    first, second = traced(x)
    assert not torch.equal(first, second)
    if requires_grad and first.requires_grad:
        gradients = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (first, second)]
        assert torch.equal(gradients[0], first) and torch.equal(gradients[1], second)


class Counting(TorchDispatchMode):
    """A mode that records every operator and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_that_watch_leave_the_source_of_the_seed() -> None:
    """A checkpoint may repeat a forward under such a mode, so both must draw the same seed."""
    x = torch.ones(8)
    with Counting() as mode:
        act_reg(x, p=0.5)
    assert mode.called == ["actreg.forward_random.default"]
    x = torch.ones(1000, requires_grad=True)
    y = checkpoint(lambda x: act_reg(x, "tanh", p=0.5).output, x, use_reentrant=False)
    with Counting():
        (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx != 0, y != 0)


def test_a_fake_tensor_outside_its_mode() -> None:
    with FakeTensorMode():
        x = torch.empty(4, 3)
    assert act_reg(x, p=0.5).output.shape == x.shape
