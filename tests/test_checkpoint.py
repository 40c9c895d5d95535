"""Activation checkpointing: a repeated forward has the same masks, and counts once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from actreg_ext import collect_penalty
from actreg_ext.functional import act_reg
from actreg_ext.nn import ActReg

BACKENDS = ["aot_eager", "inductor"]
pytestmark = pytest.mark.usefixtures("nothing_compiled_yet", "default_device")


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"l1": 0.5, "l2": 0.25, "p": 0.5, **options}
    layers = [(nn.Linear(8, 8), ActReg("tanh", **options)) for _ in range(2)]
    return nn.Sequential(*[layer for pair in layers for layer in pair])


def plain(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def checkpointed(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(model, x, use_reentrant=False)


def in_segments(model: nn.Sequential, x: Tensor) -> Tensor:
    return checkpoint_sequential(model, 2, x, use_reentrant=False)


def nested(model: nn.Sequential, x: Tensor) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        return model[2:](checkpoint(model[:2], x, use_reentrant=False))

    return checkpoint(inner, x, use_reentrant=False)


def train(run: Callable[..., Tensor], steps: int = 3, **options: Any) -> list[Tensor]:
    """The losses, penalties, gradients and generator states of some training steps."""
    model, seen = network(**options), []
    for step in range(steps):
        torch.manual_seed(step)
        y = run(model, torch.randn(4, 8))
        penalty = collect_penalty(model)
        model.zero_grad()
        (y.square().sum() + penalty).backward()
        seen += [
            y.detach(),
            penalty.detach(),
            *[p.grad for p in model.parameters()],
            torch.rand(()),
        ]
    assert collect_penalty(model) == 0
    return seen


@pytest.mark.parametrize("penalty_on", ["activation", "output"])
@pytest.mark.parametrize("run", [checkpointed, in_segments, nested])
def test_eager(run: Callable[..., Tensor], penalty_on: str) -> None:
    assert_close(train(run, penalty_on=penalty_on), train(plain, penalty_on=penalty_on))


def test_penalty_collected_after_the_backward_of_the_rest() -> None:
    """A forward repeated before collect_penalty adds nothing to the collected penalty."""
    model, x = network(), torch.randn(4, 8)
    y = checkpointed(model, x)
    y.sum().backward(retain_graph=True)
    penalty = collect_penalty(model)
    penalty.backward()
    assert collect_penalty(model) == 0
    # The sum of two forwards, although each of them ran twice.
    model = network(p=0.0)
    once = collect_penalty_of(model, x)
    outputs = checkpointed(model, x), checkpointed(model, x)
    for y in outputs:
        y.sum().backward(retain_graph=True)
    assert_close(collect_penalty(model), 2 * once)
    # Steps that are over do not count. The newest forward does, although nothing uses its output.
    checkpointed(model, x).sum().backward()
    checkpointed(model, x).sum().backward()
    assert_close(collect_penalty(model), once)


def collect_penalty_of(model: nn.Module, x: Tensor) -> Tensor:
    model(x)
    return collect_penalty(model)


def test_masks_follow_preserve_rng_state() -> None:
    """True (default): the gradient has the output's mask. False: another one, as nn.Dropout."""

    def masks_agree(**options: Any) -> bool:
        x = torch.ones(256, requires_grad=True)
        y = checkpoint(
            lambda x: act_reg(x * 1, "identity", p=0.5).output, x, use_reentrant=False, **options
        )
        y.sum().backward()
        return torch.equal(x.grad, y)

    assert masks_agree()
    assert not masks_agree(preserve_rng_state=False)


def test_reentrant_penalty_of_a_module_is_refused() -> None:
    """Its penalty would be lost: one forward runs under no_grad, one in the backward."""
    model = network()
    x = torch.randn(4, 8, requires_grad=True)
    y = checkpoint(model, x, use_reentrant=True)
    assert collect_penalty(model) == 0
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        y.sum().backward()


@pytest.mark.parametrize("how", ["no penalty", "function"])
def test_reentrant(how: str) -> None:
    """Allowed if there is no penalty, or if the checkpointed function returns the penalty."""
    model = network(**({"l1": 0.0, "l2": 0.0} if how == "no penalty" else {}))

    def layer(x: Tensor) -> tuple[Tensor, Tensor]:
        if how == "function":
            return tuple(act_reg(x * 1, "silu", l1=0.5, p=0.5))
        return model(x), x.sum()

    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=True)):
        x = torch.linspace(-1, 1, 32).reshape(4, 8).requires_grad_()
        torch.manual_seed(1)
        y, penalty = run(x)
        (y.square().sum() + penalty).backward()
        gradients.append(x.grad)
    assert_close(*gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_function(backend: str) -> None:
    """The forward that the compiled backward repeats has the first forward's two masks."""

    def block(x: Tensor) -> tuple[Tensor, Tensor]:
        y, first = act_reg(x.exp(), "identity", l1=0.5, p=0.5)
        z, second = act_reg(y.sin(), "identity", l1=0.5, p=0.5, penalty_on="output")
        return torch.stack([y, z]), first + second

    @torch.compile(backend=backend, fullgraph=True)
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return checkpoint(block, x, use_reentrant=False)

    x = torch.linspace(-1, 1, 256, requires_grad=True)
    (y, z), penalty = step(x)
    first, second = 2.0 * (y != 0), 2.0 * (z != 0)  # the masks, times their scale
    assert 0 < second.sum() < first.sum() < 512
    a = x.exp()
    expected_y = first * a
    expected_z = second * expected_y.sin()
    expected = expected_y.sum() + expected_z.sum() + 0.5 / 256 * (a.sum() + expected_z.abs().sum())
    assert_close(y.sum() + z.sum() + penalty, expected)
    assert_close(
        *[torch.autograd.grad(loss, x) for loss in (y.sum() + z.sum() + penalty, expected)]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("collects_inside", [False, True])
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # from Linear, on a GPU
@torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
def test_compiled_module(backend: str, collects_inside: bool) -> None:
    """A checkpoint inside a compiled graph, with the setting that ActReg's docstring names."""
    model = network(p=0.0)

    def loss(x: Tensor) -> Tensor:
        y = checkpointed(model, x).square().sum()
        return y + collect_penalty(model) if collects_inside else y

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    for _ in range(3):
        x, results = torch.randn(4, 8), []
        for f in (compiled, loss):
            value = f(x) if collects_inside else f(x) + collect_penalty(model)
            results.append((value, *torch.autograd.grad(value, tuple(model.parameters()))))
        assert_close(*results)
    assert collect_penalty(model) == 0
