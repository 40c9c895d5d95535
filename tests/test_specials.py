"""At NaN, infinities, signed zeros, denormal numbers and kinks the results are PyTorch's.

PyTorch may have several results: its vectorized and its scalar loops differ (for the gradient of
elu or relu6 at NaN), and so do its dtypes (for gelu at infinity). Each of them counts as right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import actreg_ext
from actreg_ext import reference
from actreg_ext.functional import act_reg
from tests import exact, table

INF, NAN = math.inf, math.nan
Function = Callable[..., reference.ActRegOutput]


def special_points(variant: dict[str, Any], dtype: torch.dtype, device: str) -> Tensor:
    """The kinks, the next numbers on both sides, and the limits of the dtype."""
    info = torch.finfo(dtype)
    parameters = [value for name, value in variant.items() if name != "activation"]
    defaults = actreg_ext.activations()[variant["activation"]].values()
    kinks = {0.0, 1.0, 3.0, 6.0, 0.5, *map(abs, parameters), *filter(None, defaults)}
    at = torch.tensor([s * kink for kink in kinks for s in (1, -1)], dtype=dtype, device=device)
    sides = [torch.nextafter(at, torch.full_like(at, end)) for end in (INF, -INF)]
    sizes = [INF, 0.0, info.smallest_normal * info.eps, info.smallest_normal, info.max]
    ends = torch.tensor([NAN, *sizes, *(-size for size in sizes)], dtype=torch.float64)
    return torch.cat([at, *sides, ends.to(at)])


def evaluate(function: Function, x: Tensor, variant: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The output and the slope at x."""
    x = x.detach().clone().requires_grad_()
    output = function(x, **variant).output
    return output.detach(), torch.autograd.grad(output.sum(), x)[0]


def in_one_tensor(function: Function, x: Tensor, variant: dict[str, Any]) -> list[Tensor]:
    """The results for x in a tensor of 64 copies, which vectorized loops compute."""
    return [result[: len(x)] for result in evaluate(function, x.repeat(64), variant)]


def one_by_one(function: Function, x: Tensor, variant: dict[str, Any]) -> list[Tensor]:
    """The results for each number in its own tensor, which the loop for the tail computes."""
    results = zip(*(evaluate(function, number, variant) for number in x.split(1)), strict=True)
    return [torch.cat(parts) for parts in results]


def places(x: Tensor) -> list[Tensor]:
    """x on the devices to ask PyTorch on: CUDA kernels lose some NaNs and signs of zeros."""
    return [x] if x.is_cpu else [x, x.cpu()]


def is_answer(ours: Tensor, answer: Tensor) -> Tensor:
    """Whether both are NaN, or equal within 1 %, which is enough to tell the sides of a kink."""
    smallest = torch.finfo(ours.dtype).smallest_normal * torch.finfo(ours.dtype).eps
    return torch.isclose(ours.double(), answer.double(), 0.01, smallest, equal_nan=True)


def test_answers_are_torchs(variant: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    x = special_points(variant, dtype, device)
    ours = in_one_tensor(act_reg, x, variant)
    theirs = [
        [result.to(x) for result in evaluated(reference.act_reg, place.to(precision), variant)]
        for place in places(x)
        for precision in (dtype, torch.float32, torch.float64)
        for evaluated in (in_one_tensor, one_by_one)
    ]
    for which, name in enumerate(("output", "slope")):
        answers = [answer[which] for answer in theirs]
        right = torch.stack([is_answer(ours[which], answer) for answer in answers]).any(0)
        wrong = [(x[i], ours[which][i], [a[i] for a in answers]) for i in (~right).nonzero()]
        assert not wrong, f"{name}: (x, ours, torch's answers) {wrong}"


PENALTIES = [{}, {"l1": 0.5}, {"l2": 0.125}, {"l1": 0.5, "l2": 0.125}]


def second_derivative(
    function: Function, x: Tensor, variant: dict[str, Any], penalty: dict[str, float]
) -> Tensor:
    """The second derivative of output.sum() + penalty."""
    x = x.detach().clone().requires_grad_()
    outputs = function(x, **variant, **penalty, reduction="sum")
    (dx,) = torch.autograd.grad(sum(output.sum() for output in outputs), x, create_graph=True)
    if not dx.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(dx.sum(), x, materialize_grads=True)[0]


def true_second_derivative(
    variant: dict[str, Any], x: float, l1: float = 0.0, l2: float = 0.0
) -> float:
    """The same from exact.py. It uses 1e50 for any larger x, which is near enough to the limit."""
    parameters = {**actreg_ext.activations()[variant["activation"]], **variant}
    name = parameters.pop("activation")
    x = min(max(x, -1e50), 1e50)
    a, da, dda = exact.derivatives(name, tuple(parameters.values()), x)
    return float((1 + l1 * mpmath.sign(a)) * dda + 2 * l2 * (da * da + a * dda))


# (activation, x) where our second derivative is neither PyTorch's nor a limit. hardswish at NaN:
# ours is 1/3, because the slope is (x + 1.5) / 3; PyTorch's is 0. softplus at its threshold: ours
# is the one of the curved side; PyTorch's is 0.
EXCEPTIONS = {("hardswish", "nan"), ("softplus", "20.0")}


@pytest.mark.pairs
@pytest.mark.parametrize("penalty", PENALTIES, ids=table.describe)
def test_second_derivatives_are_torchs(
    variant: dict[str, Any],
    dtype: torch.dtype,
    device: str,
    penalty: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are PyTorch's or those of exact.py: PyTorch's may cancel to 0 or be NaN."""
    # PyTorch's own hardsigmoid has no second derivative.
    hardsigmoid = (lambda x: F.relu6(x + 3) / 6, None)
    monkeypatch.setitem(reference.ACTIVATIONS, "hardsigmoid", hardsigmoid)
    sizes = torch.tensor([1e30, 1e4, 100.0, 20.0, 1e-30], dtype=torch.float64)
    x = special_points(variant, dtype, device)
    x = torch.cat([x, sizes.to(x), -sizes.to(x)])
    many = x.repeat(64)  # so that vectorized loops compute
    ours = second_derivative(act_reg, many, variant, penalty)[: len(x)]
    asked = [
        place.to(kind) for place in places(many) for kind in (dtype, torch.float32, torch.float64)
    ]
    theirs = [
        second_derivative(reference.act_reg, place, variant, penalty)[: len(x)].to(x)
        for place in asked
    ]
    right = torch.stack([is_answer(ours, answer) for answer in theirs]).any(0)
    wrong = []
    for i in (~right).nonzero().flatten().tolist():
        if (variant["activation"], str(x[i].item())) in EXCEPTIONS:
            continue
        answers = [
            second_derivative(reference.act_reg, place[i : i + 1], variant, penalty).to(x)
            for place in asked
        ]
        answers += [answer[i : i + 1] for answer in theirs]
        if x[i].isfinite() or x[i].isinf():
            truth = true_second_derivative(variant, x[i].item(), **penalty)
            answers.append(torch.tensor([truth], dtype=torch.float64).to(x))
        elif all(answer.isnan() for answer in answers):
            continue
        if not any(is_answer(ours[i : i + 1], answer) for answer in answers):
            wrong.append((x[i], ours[i], answers))
    assert not wrong, f"(x, ours, torch's answers and the true one) {wrong}"


def test_zeros_have_torchs_sign(variant: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    x = special_points(variant, dtype, device)
    ours, _ = in_one_tensor(act_reg, x, variant)
    theirs = [
        evaluated(reference.act_reg, place.to(precision), variant)[0].to(x)
        for place in places(x)
        for precision in (dtype, torch.float64)  # a half type may round to 0
        for evaluated in (in_one_tensor, one_by_one)
    ]
    right = torch.stack([(a != 0) | (a.signbit() == ours.signbit()) for a in theirs]).any(0)
    wrong = x[(ours == 0) & ~right]
    assert not len(wrong), f"the output is a zero of the wrong sign at {wrong}"


def test_every_lane_agrees(variant: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    """Vectors and the tail of a tensor give the same bits."""
    x = special_points(variant, dtype, device)
    for whole, rest in zip(
        in_one_tensor(act_reg, x, variant), one_by_one(act_reg, x, variant), strict=True
    ):
        torch.testing.assert_close(whole, rest, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", table.HALF_TYPES, ids=table.describe)
def test_halves_are_rounded_once(dtype: torch.dtype, device: str) -> None:
    """Results are rounded to nearest, ties to even: 1.5 times every number has many ties."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(dtype)
    output = act_reg(x, "leaky_relu", negative_slope=1.5).output
    expected = torch.where(x > 0, x, (x.float() * 1.5).to(dtype))
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
    number = ~x.isnan()  # the sign of a NaN is unspecified
    assert torch.equal(output.signbit()[number], expected.signbit()[number])


both = pytest.mark.parametrize("function", [act_reg, reference.act_reg], ids=["fused", "reference"])


@both
@pytest.mark.parametrize("special", [INF, -INF, NAN])
def test_dropped_is_zero(
    function: Function, dtype: torch.dtype, device: str, special: float
) -> None:
    """A dropped infinity becomes 0, not NaN as in a multiplication by a mask."""
    x = torch.full((4096,), special, dtype=dtype, device=device, requires_grad=True)
    output, penalty = function(x, "identity", p=0.5, l1=1.0, l2=1.0, penalty_on="output", seed=1)
    kept = function(torch.ones_like(x), "identity", p=0.5, seed=1).output != 0
    assert torch.equal(output == 0, ~kept)
    torch.testing.assert_close(output[kept], torch.full_like(output[kept], special), equal_nan=True)
    (dx,) = torch.autograd.grad(
        [output, penalty], x, [torch.ones_like(x), torch.ones_like(penalty)]
    )
    assert torch.equal(dx[~kept], torch.zeros_like(dx[~kept]))


@both
def test_everything_dropped(function: Function, dtype: torch.dtype, device: str) -> None:
    x = torch.tensor([INF, -INF, NAN, 1.0], dtype=dtype, device=device, requires_grad=True)
    output, penalty = function(x, "identity", p=1.0, l1=1.0, l2=1.0, penalty_on="output")
    assert torch.equal(output, torch.zeros_like(x))
    assert penalty == 0
    (dx,) = torch.autograd.grad([output, penalty], x, [x.detach(), torch.ones_like(penalty)])
    assert torch.equal(dx, torch.zeros_like(x))


@both
@pytest.mark.parametrize(
    ("x", "l1", "l2", "penalty", "slope"),
    [
        (INF, 0.0, 0.0, 0.0, 0.0),
        (NAN, 0.0, 0.0, 0.0, 0.0),
        (INF, 0.5, 0.0, INF, 0.5),
        (-INF, 0.5, 0.0, INF, -0.5),
        (-INF, 0.0, 0.5, INF, -INF),
        (NAN, 0.5, 0.0, NAN, 0.0),  # the gradient is 0 as torch.sgn(NaN)
        (1e30, 0.5, 0.0, 5e29, 0.5),  # the sum of squares would overflow
        (1e30, 0.0, 0.5, INF, 1e30),
    ],
)
def test_a_coefficient_of_zero_is_off(
    function: Function, device: str, x: float, l1: float, l2: float, penalty: float, slope: float
) -> None:
    at = torch.tensor([x], device=device, requires_grad=True)
    result = function(at, "identity", l1=l1, l2=l2)
    (dx,) = torch.autograd.grad(result.penalty, at)
    for got, expected in ((result.penalty, penalty), (dx[0], slope)):
        torch.testing.assert_close(got.item(), torch.tensor(expected).item(), equal_nan=True)


@pytest.mark.parametrize("dy", [INF, -INF, NAN])
def test_flat_places_stop_every_gradient(variant: dict[str, Any], device: str, dy: float) -> None:
    """Where the slope is 0 the gradient is 0, even if dy is not finite, as for torch's relu."""
    x = special_points(variant, torch.float32, device).requires_grad_()
    output = act_reg(x, **variant).output
    gradient = torch.full_like(x, dy)
    slope, dx = (
        torch.autograd.grad(output, x, g, retain_graph=True)[0]
        for g in (torch.ones_like(x), gradient)
    )
    flat = slope == 0
    assert torch.equal(dx[flat], torch.zeros_like(dx[flat]))
    steep = (slope != 0) & x.isfinite() & slope.isfinite()
    torch.testing.assert_close(dx[steep], (gradient * slope)[steep], equal_nan=True)
    assert steep.any()
