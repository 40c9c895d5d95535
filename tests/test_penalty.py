"""The penalty: its value and accuracy, the reductions, the same bits with any threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from actreg_ext import reference
from actreg_ext.functional import act_reg
from tests import table, tolerance


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_value(dtype: torch.dtype, device: str, p: float) -> None:
    """The errors of all activations together: the error of one sum may be small by luck."""
    x = table.random_inputs(dtype, device, wide=False)
    calls = [(v, s) for v in table.VARIANTS for s in table.SETTINGS if s["p"] == p]
    ours, eager = (
        torch.stack([f(x, **v, **s, reduction="sum", seed=0).penalty for v, s in calls])
        for f in (act_reg, reference.act_reg)
    )
    assert ours.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    true = [tolerance.true_penalty(variant, x.cpu(), setting) for variant, setting in calls]
    truth = tolerance.Numbers(*(torch.cat(part) for part in zip(*true, strict=True)))
    tolerance.assert_accurate(ours, eager, truth, truth.high.abs(), calls)


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ((4, 3, 5), {"sum": 1, "mean": 60, "batch": 4, "token": 12}),
        ((6,), {"sum": 1, "mean": 6, "batch": 6, "token": 1}),
        ((), {"sum": 1, "mean": 1, "batch": 1, "token": 1}),
        ((1, 1), {"sum": 1, "mean": 1, "batch": 1, "token": 1}),
    ],
)
@pytest.mark.parametrize("function", [act_reg, reference.act_reg], ids=["fused", "reference"])
def test_reductions(
    function: Any, dtype: torch.dtype, device: str, shape: tuple[int, ...], counts: dict[str, int]
) -> None:
    x = torch.full(shape, -2.0, dtype=dtype, device=device, requires_grad=True)
    for reduction, count in counts.items():
        penalty = function(x, "identity", l1=0.5, l2=0.25, reduction=reduction).penalty
        assert penalty.shape == ()
        torch.testing.assert_close(penalty.item(), x.numel() * (0.5 * 2 + 0.25 * 4) / count)
        (dx,) = torch.autograd.grad(penalty, x)
        torch.testing.assert_close(dx, torch.full_like(dx, (-0.5 - 2 * 0.25 * 2) / count))


@pytest.mark.parametrize("reduction", ["sum", "mean", "batch", "token"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_an_empty_tensor_has_no_penalty(
    device: str, reduction: str, shape: tuple[int, ...]
) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    output, penalty = act_reg(x, "sigmoid", l1=1.0, l2=1.0, p=0.5, reduction=reduction)
    assert output.shape == shape and penalty == 0
    penalty.backward()
    assert x.grad.shape == shape


def test_l2_has_no_half(device: str) -> None:
    x = torch.tensor([3.0], device=device, requires_grad=True)
    penalty = act_reg(x, "identity", l2=1.0).penalty
    assert penalty == 9
    penalty.backward()
    assert x.grad == 6


@pytest.mark.parametrize("penalty_on", ["activation", "output"])
def test_penalty_on(device: str, penalty_on: str) -> None:
    """A penalty on the output counts the kept elements, multiplied by s."""
    x = torch.full((1024,), -3.0, device=device, requires_grad=True)
    options = dict(p=0.25, l1=0.5, l2=0.25, reduction="sum", seed=1, penalty_on=penalty_on)
    output, penalty = act_reg(x, "identity", **options)
    t = output if penalty_on == "output" else x
    expected = 0.5 * t.abs().sum() + 0.25 * t.square().sum()
    torch.testing.assert_close(penalty, expected)
    ours, theirs = (
        torch.autograd.grad(value, x, retain_graph=True)[0] for value in (penalty, expected)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", table.HALF_TYPES, ids=table.describe)
@pytest.mark.parametrize(("l1", "l2"), [(1.0, 0.0), (0.0, 1.0)])
def test_sums_of_many_halves_are_exact(
    device: str, dtype: torch.dtype, l1: float, l2: float
) -> None:
    """2^22 half-precision numbers are summed with a relative error below 1e-6."""
    x = torch.randn(2**22, device=device).to(dtype)
    t = x.double()
    for p in (0.0, 0.5):
        penalty = act_reg(x, "identity", l1=l1, l2=l2, p=p, reduction="sum", seed=1).penalty
        expected = l1 * t.abs().sum() + l2 * t.square().sum()
        assert abs(penalty.item() / expected.item() - 1) < 1e-6


@pytest.mark.parametrize("n", [1000, 16384, 16385, 300_001])
def test_threads_do_not_matter(threads: None, dtype: torch.dtype, n: int) -> None:
    x = torch.randn(n).to(dtype)
    for p in (0.0, 0.5):
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(act_reg(x, "silu", l1=0.3, l2=0.7, p=p, seed=1))
        for output, penalty in results:
            assert torch.equal(output, results[0].output)
            assert torch.equal(penalty, results[0].penalty)


def test_the_penalty_alone_and_the_output_alone(device: str) -> None:
    """The gradient is right if only one of the two results is used."""
    x = table.random_inputs(torch.float32, device, wide=False).requires_grad_()
    both, output, penalty = (
        table.gradient(act_reg(x, "gelu", l1=0.5, reduction="sum"), x, dy, dpenalty)
        for dy, dpenalty in (
            (torch.ones_like(x), 1.0),
            (torch.ones_like(x), 0.0),
            (torch.zeros_like(x), 1.0),
        )
    )
    result = act_reg(x, "gelu", l1=0.5, reduction="sum")
    assert torch.equal(torch.autograd.grad(result.output.sum(), x)[0], output)
    result = act_reg(x, "gelu", l1=0.5, reduction="sum")
    assert torch.equal(torch.autograd.grad(result.penalty, x)[0], penalty)
    torch.testing.assert_close(both, output + penalty)


def test_eval_mode_has_a_penalty(device: str) -> None:
    x = torch.randn(100, device=device)
    evaluated = act_reg(x, "tanh", l1=1.0, l2=1.0, p=0.5, training=False, penalty_on="output")
    assert torch.equal(evaluated.penalty, act_reg(x, "tanh", l1=1.0, l2=1.0).penalty)
    assert torch.equal(evaluated.output, act_reg(x, "tanh").output)
