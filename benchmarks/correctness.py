"""Whether the numbers are right: each provider against float64, before it is timed.

Where dropout is random, which elements were kept is read off the output; the rest of the output and
the whole gradient then are no longer random. That neither too many nor too few were kept is
asserted as well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from actreg_ext import reference

from .cases import TRAINED, Case
from .places import Subject, block_of, subject
from .providers import Layer, Provider, coefficients

SIGMAS = 6  # a fair share lies outside once in 5e8 times
BLOCK_FACTOR = 8  # matrix products add up the errors of thousands of terms


def tolerance(dtype: torch.dtype) -> float:
    """For the same formula in that type, relative to the norm; the tests are far stricter.

    PyTorch's hardsigmoid and hardswish have a float32 one sixth in float64.
    """
    return max(8 * torch.finfo(dtype).eps, 1e-7)


def relative_error(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The largest of all, in the sense of the norms; infinite if there is a NaN."""
    if len(found) != len(truth):
        return math.inf
    worst = 0.0
    for a, b in zip(found, truth, strict=True):
        if a.shape != b.shape:
            return math.inf
        size, off = b.norm().item(), (a.double() - b).norm().item()
        error = off / size if size else off
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


Tensors = tuple[Tensor, ...]


class Error(NamedTuple):
    """Relative to the norms: of output and gradients, and of the penalty."""

    values: float
    penalty: float

    def is_right(self, case: Case) -> bool:
        """A sum is allowed what a naive one of so many terms is off by, in its type."""
        dtype = getattr(torch, case.dtype)
        factor = 1 if case.place == "call" else BLOCK_FACTOR
        allowed = factor * tolerance(dtype)
        of_sums = torch.finfo(torch.float32 if dtype.itemsize < 4 else dtype).eps
        roots = math.sqrt(case.elements) * of_sums
        return self.values <= allowed and self.penalty <= allowed + roots


WRONG = Error(math.inf, math.inf)


class Exact(NamedTuple):
    """In float64 and without dropout, for one provider's duties."""

    a: Tensor
    penalty: Tensor
    slope: Tensor
    of_penalty: Tensor  # its gradient


def compared(outputs: Tensors, gradients: Tensors, truth: Tensors, slopes: Tensors) -> Error:
    """Of an output and perhaps a penalty, and of the gradients."""
    with torch.no_grad():
        values = relative_error((outputs[0], *gradients), (truth[0], *slopes))
        return Error(values, relative_error(outputs[1:], truth[1 : len(outputs)]))


class Judge:
    """Knows the truth of one case, which is slow to find, once for all providers."""

    def __init__(self, case: Case) -> None:
        self.case, self.exact = case, dict[bool, Exact]()

    def error(self, provider: Provider, timed: Subject) -> Error:
        """How far it is off: infinite if it drops the wrong share."""
        if timed.is_floor:
            return Error(0.0, 0.0)
        if self.case.place == "call":
            return self._call_error(provider, timed)
        return _block_error(self.case, provider, timed)

    def _call_error(self, provider: Provider, timed: Subject) -> Error:
        x = timed.ready(timed.xs[0])
        outputs = timed.call(x)
        gradients = timed.gradients(x, outputs, keep=False)
        drops = self.case.p > 0 and "dropout" in provider.does
        exact = self._find("activation" in provider.does, timed.xs[0].detach())
        of_penalty = exact.of_penalty if timed.outputs > 1 else 0.0
        y, dx = exact.a, exact.slope * timed.dy.double()
        if drops:
            share = provider.share(self.case.p)
            can_tell = exact.a.to(x.dtype) != 0
            rest = gradients[0].double() - of_penalty  # tells where the output is 0 either way
            keep = torch.where(can_tell, outputs[0] != 0, (rest - dx).abs() < rest.abs())
            if not _is_fair(keep, can_tell, share):
                return WRONG
            y, dx = (torch.where(keep, t / share, 0.0) for t in (y, dx))
        return compared(outputs, gradients, (y, exact.penalty), (dx + of_penalty,))

    def _find(self, has_activation: bool, x: Tensor) -> Exact:
        if has_activation not in self.exact:
            wide = x.double().requires_grad_()
            a, penalty = _wide(self.case, has_activation)(wide)
            (slope,) = torch.autograd.grad(a, wide, torch.ones_like(a), retain_graph=True)
            (of_penalty,) = torch.autograd.grad(penalty, wide)
            self.exact[has_activation] = Exact(a.detach(), penalty.detach(), slope, of_penalty)
        return self.exact[has_activation]


def _wide(case: Case, has_activation: bool = True) -> Layer:
    """The reference of what is computed, without dropout."""
    name = case.activation if has_activation else "identity"
    options = coefficients(case._replace(activation=name))
    return lambda x: reference.act_reg(x, name, reduction="sum", **options)


def without_dropout(case: Case) -> Case:
    """The block that stands for it in the check."""
    return case._replace(p=0.0, place="mlp" if case.place in TRAINED else case.place)


def _is_fair(keep: Tensor, counted: Tensor, share: float) -> bool:
    n = int(counted.sum())
    kept = int((keep & counted).sum())
    return abs(kept - n * share) <= SIGMAS * math.sqrt(n * share * (1 - share)) + 1


def _block_error(case: Case, provider: Provider, timed: Subject) -> Error:
    """Of the block without dropout: behind a matrix product no mask can be read off."""
    case = without_dropout(case)
    x = timed.xs[0].detach().requires_grad_()
    ours = subject(case, provider, [x], timed.dy)
    outputs = ours.call(x)
    gradients = ours.gradients(x, outputs, keep=False)
    wide = x.detach().double().requires_grad_()
    block = block_of(case, _wide(case)).to(x.device, x.dtype).double()
    truth = Subject(block, [wide], timed.dy.double(), ours.outputs, list(block.parameters()))
    expected = truth.call(wide)
    return compared(outputs, gradients, expected, truth.gradients(wide, expected, keep=False))
