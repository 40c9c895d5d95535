"""Checks a provider against float64 before it is timed. docs/performance.md says what is allowed.

The check reads off the output which elements dropout kept. With these known, output, penalty and
gradient are no longer random. The kept share must be plausible, too.
"""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from actreg_ext import reference

from .cases import TRAINED, Case
from .places import Subject, block_of, subject
from .providers import Layer, Provider, coefficients

SIGMAS = 6  # a fair share is this far off once in 5e8 times
BLOCK_FACTOR = 8  # matrix products add up the errors of thousands of terms
Tensors = tuple[Tensor, ...]


def tolerance(dtype: torch.dtype) -> float:
    """The relative error allowed to the same formula in that type; the tests are far stricter.

    At least 1e-7: PyTorch's hardsigmoid and hardswish use a float32 one sixth in float64.
    """
    return max(8 * torch.finfo(dtype).eps, 1e-7)


def relative_error(found: Tensors, truth: Tensors) -> float:
    """The largest norm of a difference over the norm of the truth; infinite if there is a NaN."""
    if [a.shape for a in found] != [b.shape for b in truth]:
        return math.inf
    worst = 0.0
    for a, b in zip(found, truth, strict=True):
        size, off = b.norm().item(), (a.double() - b).norm().item()
        error = off / size if size else off
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


class Error(NamedTuple):
    """The relative errors of output and gradients, and of the penalty."""

    values: float
    penalty: float

    def is_right(self, case: Case) -> bool:
        """The penalty may also have the error of a naive sum of that many terms in its type."""
        dtype = getattr(torch, case.dtype)
        allowed = tolerance(dtype) * (1 if case.place == "call" else BLOCK_FACTOR)
        of_sums = torch.finfo(torch.float32 if dtype.itemsize < 4 else dtype).eps
        roots = math.sqrt(case.elements) * of_sums
        return self.values <= allowed and self.penalty <= allowed + roots


def compared(outputs: Tensors, gradients: Tensors, truth: Tensors, slopes: Tensors) -> Error:
    """The errors of an output, perhaps a penalty, and gradients."""
    with torch.no_grad():
        values = relative_error((outputs[0], *gradients), (truth[0], *slopes))
        return Error(values, relative_error(outputs[1:], truth[1 : len(outputs)]))


class Judge:
    """Checks the providers of one case. The truth, slow to compute, is computed once."""

    def __init__(self, case: Case, x: Tensor) -> None:
        self.case, self.x = case, x.detach()

    def error(self, provider: Provider, timed: Subject) -> Error:
        """Infinite if the provider drops the wrong share."""
        if timed.is_copy:
            return Error(0.0, 0.0)
        if self.case.place == "call":
            return self._call_error(provider, timed)
        return _block_error(self.case, provider, timed)

    def _call_error(self, provider: Provider, timed: Subject) -> Error:
        x = timed.xs[0]
        outputs = timed.call(x)
        gradients = timed.gradients(x, outputs, keep=False)
        y, penalty, slope, of_penalty = self._truth
        of_penalty = of_penalty if timed.outputs > 1 else torch.zeros_like(y)
        dx = slope * timed.dy.double()
        if self.case.p > 0 and provider.regularizes:
            share = provider.share(self.case.p)
            can_tell = y.to(x.dtype) != 0
            # Where the output is 0 either way, the gradient tells.
            rest = gradients[0].double() - of_penalty
            keep = torch.where(can_tell, outputs[0] != 0, (rest - dx).abs() < rest.abs())
            n, kept = int(can_tell.sum()), int(keep[can_tell].sum())
            if abs(kept - n * share) > SIGMAS * math.sqrt(n * share * (1 - share)) + 1:
                return Error(math.inf, math.inf)
            y, dx = (torch.where(keep, t / share, 0.0) for t in (y, dx))
        return compared(outputs, gradients, (y, penalty), (dx + of_penalty,))

    @cached_property
    def _truth(self) -> Tensors:
        """In float64, without dropout: a, the penalty, and the gradients of both."""
        x = self.x.double().requires_grad_()
        a, penalty = _exact(self.case)(x)
        (slope,) = torch.autograd.grad(a, x, torch.ones_like(a), retain_graph=True)
        (of_penalty,) = torch.autograd.grad(penalty, x)
        return a.detach(), penalty.detach(), slope, of_penalty


def _exact(case: Case) -> Layer:
    """The reference, without dropout."""
    options = {"activation": case.activation, "reduction": "sum", **coefficients(case)}
    return partial(reference.act_reg, **options)


def without_dropout(case: Case) -> Case:
    """The network that is checked in place of the one that is timed."""
    return case._replace(p=0.0, place="mlp" if case.place in TRAINED else case.place)


def _block_error(case: Case, provider: Provider, timed: Subject) -> Error:
    """Without dropout: behind a matrix product no mask can be read off."""
    case = without_dropout(case)
    x = timed.xs[0].detach().requires_grad_()
    ours = subject(case, provider, [x], timed.dy)
    outputs = ours.call(x)
    gradients = ours.gradients(x, outputs, keep=False)
    wide = x.detach().double().requires_grad_()
    block = block_of(case, _exact(case)).to(x.device, x.dtype).double()
    truth = Subject(block, [wide], timed.dy.double(), ours.outputs, list(block.parameters()))
    expected = truth.call(wide)
    return compared(outputs, gradients, expected, truth.gradients(wide, expected, keep=False))
