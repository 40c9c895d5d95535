"""How exact the operator has to be, and the truth that is measured against.

Note [The rule]
The error may be twice that of eager PyTorch in the same dtype, plus one ulp. Eager PyTorch is
reference.act_reg. The truth is reference.act_reg in float64, and for float64 exact.py. Errors are
counted in ulps of the truth, and compared in bins of 256 neighbours in x, so that neither large
values nor ill-conditioned places excuse errors elsewhere. Two allowances, for all formulas alike:
a gradient that is a sum is judged by the sizes of its terms, and where the slope changes its
sign (gelu's near -0.75), so that its ulp shrinks and the error does not, by its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import actreg_ext
from actreg_ext import reference
from tests import exact

BIN, REACH = 256, 32  # in a number of inputs: 90 of one sign have the same exponent


class Numbers(NamedTuple):
    """Numbers of twice the precision of float64: the sums of two tensors of it."""

    high: Tensor
    low: Tensor


class Jet(NamedTuple):
    value: Tensor
    slope: Tensor


class Gradient(NamedTuple):
    total: Numbers
    size: Tensor  # what its ulp is measured at


def true_output(variant: dict[str, Any], x: Tensor, p: float, seed: int = 0) -> Numbers:
    """What the output is."""
    if x.dtype is torch.float64:
        return _numbers(_jets(variant, x).value * _scale(x, p, seed))
    return _once(_reference(x.double(), variant, p=p, seed=seed).output)


def true_gradient(
    variant: dict[str, Any], x: Tensor, dy: Tensor, setting: dict[str, Any], seed: int = 0
) -> Gradient:
    """What the gradient for dpenalty = 1 and D = 1 is."""
    if x.dtype is torch.float64:
        jets = _jets(variant, x)
        parts = exact.gradient(jets, dy.numpy(), _scale(x, setting["p"], seed), **setting)
        near_zero = _near_zero(_numbers(jets.slope).high)
        size = _numbers(abs(parts[0]) + abs(parts[1])).high
        return Gradient(_numbers(parts[0] + parts[1]), _among_neighbours(size, near_zero))
    near_zero = _slope_is_near_zero(tuple(variant.items()), tuple(x.tolist()))
    x = x.double().requires_grad_()
    output, penalty = _reference(x, variant, **setting, reduction="sum", seed=seed)
    (from_dy,) = torch.autograd.grad(output, x, dy.double(), retain_graph=True)
    (from_penalty,) = torch.autograd.grad(penalty, x)
    size = _among_neighbours(from_dy.abs() + from_penalty.abs(), near_zero)
    return Gradient(_once(from_dy + from_penalty), size)


def true_jet(variant: dict[str, Any], x: Tensor) -> Jet:
    """Value and slope in float64, which is more than enough to judge the lower types by."""
    x = x.double().requires_grad_()
    y = _reference(x, variant).output
    return Jet(y.detach(), torch.autograd.grad(y.sum(), x)[0])


@cache
def _slope_is_near_zero(variant: tuple[tuple[str, Any], ...], xs: tuple[float, ...]) -> Tensor:
    return _near_zero(true_jet(dict(variant), torch.tensor(xs, dtype=torch.float64)).slope)


def _near_zero(slope: Tensor) -> Tensor:
    """Where the slope changes its sign, or one of the neighbours' does."""
    changes = F.pad(slope[1:] * slope[:-1] < 0, (REACH, REACH + 1))
    return changes.unfold(0, 2 * REACH + 1, 1).any(-1)


def _among_neighbours(size: Tensor, where: Tensor) -> Tensor:
    """There, the largest size of the neighbours."""
    largest = F.pad(size, (REACH, REACH)).unfold(0, 2 * REACH + 1, 1).amax(-1)
    return largest.where(where, size)


def true_penalty(variant: dict[str, Any], x: Tensor, setting: dict[str, Any], seed: int = 0) -> Any:
    """What the penalty for D = 1 is."""
    if x.dtype is torch.float64:
        scale = _scale(x, setting["p"], seed)
        return _numbers(exact.penalty(_jets(variant, x), scale, **setting))
    x = x.double()
    return _once(_reference(x, variant, **setting, reduction="sum", seed=seed).penalty[None])


def _reference(x: Tensor, variant: dict[str, Any], **options: Any) -> reference.ActRegOutput:
    with mock.patch.dict(reference.ACTIVATIONS, _ACCURATE):
        return reference.act_reg(x, **variant, **options)


def _jets(variant: dict[str, Any], x: Tensor) -> exact.Jets:
    parameters = {**actreg_ext.activations()[variant["activation"]], **variant}
    name = parameters.pop("activation")
    return exact.jets(name, tuple(parameters.values()), tuple(x.tolist()))


def _scale(x: Tensor, p: float, seed: int) -> Any:
    """0 for each element that is dropped, the factor s for the others."""
    return reference.act_reg(torch.ones_like(x), "identity", p=p, seed=seed).output.numpy()


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x.clamp(-300, 300)))  # beyond that it is 0 or 1 in lower types


def _tanh(x: Tensor) -> Tensor:
    tail = torch.sign(x) * (1 - 2 * _sigmoid(-2 * x.abs()))
    return torch.where(x.abs() < 1, torch.tanh(x.clamp(-1, 1)), tail)


def _tanhshrink(x: Tensor) -> Tensor:
    z = x.clamp(-0.02, 0.02)
    series = z**3 / 3 - 2 * z**5 / 15 + 17 * z**7 / 315
    return torch.where(x.abs() < 0.02, series, x - _tanh(x))


def _softsign(x: Tensor) -> Tensor:
    size = x.abs()
    return torch.where(size < 1, x / (1 + size), torch.sign(x) * (1 - 1 / (1 + size)))


# Where PyTorch's float64 is not exact enough to judge the lower types by: 1 + erf, 1 + tanh and the
# slopes of sigmoid, tanh and softsign cancel in the tails, tanhshrink cancels near 0, and
# hardsigmoid's gradient multiplies with a float32 one sixth.
_ACCURATE = {
    "sigmoid": (_sigmoid, None),
    "tanh": (_tanh, None),
    "tanhshrink": (_tanhshrink, None),
    "softsign": (_softsign, None),
    "gelu": (lambda x: x * torch.special.erfc(x * -math.sqrt(0.5)) / 2, None),
    "gelu_tanh": (
        lambda x: x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)),
        None,
    ),
    "hardsigmoid": (lambda x: F.relu6(x + 3) / 6, None),
}


def _once(high: Tensor) -> Numbers:
    """float64 as it is: more than enough to judge the lower types by."""
    return Numbers(high.detach(), torch.zeros_like(high))


def _numbers(values: Any) -> Numbers:
    high = values.astype(float)
    return Numbers(torch.from_numpy(high), torch.from_numpy((values - high).astype(float)))


def ulp(size: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring numbers of `dtype` at numbers of that size."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(size).exponent - 1
    exponent = exponent.clamp(min=round(math.log2(info.smallest_normal)))
    return torch.ldexp(torch.full_like(size, info.eps), exponent)


def errors(got: Tensor, truth: Numbers, size: Tensor) -> Tensor:
    """The errors in ulps of `size`; none where the truth overflows or is NaN and so does `got`."""
    rounded = truth.high.to(got.dtype)
    right = (got == rounded) | (got.isnan() & rounded.isnan())
    error = ((got.double() - truth.high) - truth.low).abs() / ulp(size, got.dtype)
    return error.where(~right | rounded.isfinite(), 0.0).nan_to_num(math.inf, math.inf)


def assert_accurate(
    got: Tensor,
    eager: Tensor,
    truth: Numbers,
    size: Tensor,
    places: Sequence[Any],
    count: int = BIN,
) -> None:
    """Asserts Note [The rule] for results of neighbouring places, as x is, in bins of `count`."""
    ours, theirs = (errors(tensor.detach().cpu(), truth, size) for tensor in (got, eager))
    # Where eager PyTorch overflows or makes a NaN it excuses the same there, but nowhere else.
    ours = ours.where(theirs.isfinite(), 0.0)
    theirs = theirs.where(theirs.isfinite(), 0.0)
    bins = F.pad(theirs, (0, -len(theirs) % count)).unflatten(0, (-1, count))
    allowed = 2 * bins.amax(1).repeat_interleave(count)[: len(theirs)] + 1
    worst = int((ours - allowed).argmax())
    window = places[worst // count * count :][:count]
    assert ours[worst] <= allowed[worst], (
        f"at {places[worst]!r} the result {got[worst].item()!r} is off by {ours[worst]:.3g} ulp, "
        f"more than the {allowed[worst]:.3g} ulp that eager PyTorch's error between {window[0]!r} "
        f"and {window[-1]!r} allows"
    )


def assert_output(output: Tensor, eager: Tensor, truth: Numbers, x: Tensor) -> None:
    assert_accurate(output, eager, truth, truth.high.abs(), x.tolist())


def assert_gradient(dx: Tensor, eager: Tensor, truth: Gradient, x: Tensor) -> None:
    assert_accurate(dx, eager, truth.total, truth.size, x.tolist())
