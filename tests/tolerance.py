"""How accurate the operator must be, and the exact results ("the truth") to compare with.

Note [The rule]
The operator's error may be at most twice the error of eager PyTorch in the same dtype, plus one
ulp. Eager PyTorch is reference.act_reg in that dtype. The truth is reference.act_reg in float64;
for float64 the truth is exact.py.

Errors are counted in ulps of the truth. They are compared in bins of 256 neighbouring inputs: the
largest error of eager PyTorch in a bin sets the limit of that bin alone. So an ill-conditioned
place does not excuse errors elsewhere.

There are three exceptions, for all formulas:

- A gradient is the sum of a part from dy and a part from dpenalty, which may cancel. Its ulp is
  the ulp of |part 1| + |part 2|.
- Where the slope changes its sign (for gelu near x = -0.75) the truth is near 0, so its ulp is
  tiny. There the ulp is the largest one among the neighbours.
- Dropout multiplies a and its error by s, but the ulp of the product may be that of a or twice
  that. And the mask may drop all inputs of a bin at which eager PyTorch's error is large. So an
  output with dropout may also have the error that the rule allows without dropout, times s.
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

# Inputs in a bin, and neighbours on each side. About 90 inputs of one sign share an exponent.
BIN, REACH = 256, 32


class Numbers(NamedTuple):
    """Numbers with twice the precision of float64: each is high + low."""

    high: Tensor
    low: Tensor


class Jet(NamedTuple):
    value: Tensor
    slope: Tensor


class Gradient(NamedTuple):
    total: Numbers
    size: Tensor  # the number whose ulp is the unit of the error


def true_output(variant: dict[str, Any], x: Tensor, p: float, seed: int = 0) -> Numbers:
    """The exact output."""
    if x.dtype is torch.float64:
        return _numbers(_jets(variant, x).value * _scale(x, p, seed))
    return _once(_reference(x.double(), variant, p=p, seed=seed).output)


def true_gradient(
    variant: dict[str, Any], x: Tensor, dy: Tensor, setting: dict[str, Any], seed: int = 0
) -> Gradient:
    """The exact gradient for dpenalty = 1 and D = 1."""
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
    """Value and slope in float64, as the truth for the smaller dtypes."""
    x = x.double().requires_grad_()
    y = _reference(x, variant).output
    return Jet(y.detach(), torch.autograd.grad(y.sum(), x)[0])


@cache
def _slope_is_near_zero(variant: tuple[tuple[str, Any], ...], xs: tuple[float, ...]) -> Tensor:
    return _near_zero(true_jet(dict(variant), torch.tensor(xs, dtype=torch.float64)).slope)


def _near_zero(slope: Tensor) -> Tensor:
    """Whether the slope changes its sign within REACH neighbours."""
    changes = F.pad(slope[1:] * slope[:-1] < 0, (REACH, REACH + 1))
    return changes.unfold(0, 2 * REACH + 1, 1).any(-1)


def _among_neighbours(size: Tensor, where: Tensor) -> Tensor:
    """`size`, but the largest size among the neighbours in the places `where`."""
    largest = F.pad(size, (REACH, REACH)).unfold(0, 2 * REACH + 1, 1).amax(-1)
    return largest.where(where, size)


def true_penalty(variant: dict[str, Any], x: Tensor, setting: dict[str, Any], seed: int = 0) -> Any:
    """The exact penalty for D = 1."""
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
    """0 for each dropped element, the factor s for each kept one."""
    return reference.act_reg(torch.ones_like(x), "identity", p=p, seed=seed).output.numpy()


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x.clamp(-300, 300)))  # beyond: 0 or 1 in the smaller dtypes


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


# Replacements for activations whose float64 results in PyTorch are not exact enough. In the tails
# 1 + erf and 1 + tanh (gelu, gelu_tanh) and the slopes of sigmoid, tanh and softsign cancel. Near 0
# tanhshrink cancels. The gradient of hardsigmoid multiplies by 1/6 rounded to float32.
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
    """float64 numbers as `Numbers`: exact enough as the truth for the smaller dtypes."""
    return Numbers(high.detach(), torch.zeros_like(high))


def _numbers(values: Any) -> Numbers:
    high = values.astype(float)
    return Numbers(torch.from_numpy(high), torch.from_numpy((values - high).astype(float)))


def ulp(size: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of `dtype` at numbers of that size."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(size).exponent - 1
    exponent = exponent.clamp(min=round(math.log2(info.smallest_normal)))
    return torch.ldexp(torch.full_like(size, info.eps), exponent)


def errors(got: Tensor, truth: Numbers, size: Tensor) -> Tensor:
    """The errors in ulps of `size`; 0 if `got` and the rounded truth are both NaN or both inf."""
    rounded = truth.high.to(got.dtype)
    right = (got == rounded) | (got.isnan() & rounded.isnan())
    error = ((got.double() - truth.high) - truth.low).abs() / ulp(size, got.dtype)
    return error.where(~right | rounded.isfinite(), 0.0).nan_to_num(math.inf, math.inf)


def limits(eager: Tensor, truth: Numbers, size: Tensor, count: int = BIN) -> Tensor:
    """What Note [The rule] allows for each result, in ulps, in bins of `count` results."""
    theirs = errors(eager.detach().cpu(), truth, size)
    # If eager PyTorch overflows or returns NaN, that excuses the operator at this x only.
    theirs = theirs.where(theirs.isfinite(), 0.0)
    bins = F.pad(theirs, (0, -len(theirs) % count)).unflatten(0, (-1, count))
    return 2 * bins.amax(1).repeat_interleave(count)[: len(theirs)] + 1


def assert_accurate(
    got: Tensor,
    eager: Tensor,
    truth: Numbers,
    size: Tensor,
    places: Sequence[Any],
    count: int = BIN,
    allowed: Tensor | None = None,
) -> None:
    """Assert Note [The rule] in bins of `count` results. `places` are the inputs x, sorted.

    `allowed` is another limit for each result: the larger limit counts.
    """
    ours, theirs = (errors(tensor.detach().cpu(), truth, size) for tensor in (got, eager))
    ours = ours.where(theirs.isfinite(), 0.0)
    limit = limits(eager, truth, size, count)
    allowed = limit if allowed is None else allowed.maximum(limit)
    worst = int((ours - allowed).argmax())
    window = places[worst // count * count :][:count]
    assert ours[worst] <= allowed[worst], (
        f"at {places[worst]!r} the result {got[worst].item()!r} is off by {ours[worst]:.3g} ulp, "
        f"more than the {allowed[worst]:.3g} ulp that eager PyTorch's error between {window[0]!r} "
        f"and {window[-1]!r} allows"
    )


def assert_output(output: Tensor, eager: Tensor, truth: Numbers, x: Tensor) -> None:
    assert_accurate(output, eager, truth, truth.high.abs(), x.tolist())


def assert_dropped(output: Tensor, variant: dict[str, Any], x: Tensor, p: float) -> None:
    """Assert Note [The rule] for an output with the mask of seed 0."""
    eager, plain = (reference.act_reg(x, **variant, p=q, seed=0).output for q in (p, 0.0))
    truth, true_plain = (true_output(variant, x.cpu(), q) for q in (p, 0.0))
    size, plain_size = truth.high.abs(), true_plain.high.abs()
    scale = 65536 / max(reference.kept_of_65536(p), 1)
    scaled = scale * ulp(plain_size, x.dtype) / ulp(size, x.dtype)
    allowed = limits(plain, true_plain, plain_size) * scaled.where(size > 0, 0.0)
    assert_accurate(output, eager, truth, size, x.tolist(), allowed=allowed)


def assert_gradient(dx: Tensor, eager: Tensor, truth: Gradient, x: Tensor) -> None:
    assert_accurate(dx, eager, truth.total, truth.size, x.tolist())
