"""Every CUDA kernel once, against float64: make gpu-check runs this first, and under sanitizers.

From aligned and unaligned addresses, with whole tiles and ends, in one block and in many.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from actreg_ext import reference
from actreg_ext.functional import act_reg, act_reg_
from benchmarks.correctness import relative_error, tolerance
from tests import gpu, table

gpu.require()
pytestmark = pytest.mark.cuda

# With these, backward gets the input, the input, the output and bits.
KINDS = (("gelu", 0.25), ("softplus", 0.25), ("tanh", 0.0), ("relu", 0.0))
# (offset, elements): whole tiles, ends, unaligned views, and many blocks that finish together.
TINY = (3, 5)
VIEWS = ((0, 8192), (1, 4101), TINY, (0, 2**20 + 3), (1, 2**20 + 3))


class Call(NamedTuple):
    name: str
    l2: float
    dtype: torch.dtype
    p: float
    n: int

    def inputs(self) -> Tensor:
        return torch.linspace(-4, 4, self.n, dtype=torch.float64).to(self.dtype)


def results(function: Callable[..., Any], x: Tensor, call: Call) -> tuple[Tensor, ...]:
    """Output, penalty and gradient; for the tiny tensor the second derivative as well."""
    x = x.requires_grad_()
    y, penalty = function(x, call.name, l1=0.5, l2=call.l2, p=call.p, seed=1)
    dy = torch.linspace(1, 2, len(x), dtype=torch.float64).to(x)
    again = call.n == TINY[1]
    gradients = (dy, torch.ones_like(penalty))
    (dx,) = torch.autograd.grad((y, penalty), x, gradients, create_graph=again)
    found = [y, penalty, dx]
    if again:
        found += torch.autograd.grad(dx, x, dy, materialize_grads=True)
    return tuple(t.detach().cpu() for t in found)


@lru_cache(maxsize=len(VIEWS))
def truth(call: Call) -> tuple[Tensor, ...]:
    return results(reference.act_reg, call.inputs().double(), call)


def test_smoke() -> None:
    for (name, l2), dtype, p, (offset, n) in itertools.product(
        KINDS, table.DTYPES, (0.0, 0.3), VIEWS
    ):
        call = Call(name, l2, dtype, p, n)
        true = truth(call)
        view = torch.empty(n + offset, dtype=dtype, device="cuda")[offset:]
        found = results(act_reg, view.copy_(call.inputs()), call)
        placed = act_reg_(view.detach(), name, l1=0.5, l2=l2, p=p, seed=1)
        for ours, theirs, factor in (
            (found[:3], true[:3], 1),
            (tuple(t.cpu() for t in placed), true[:2], 1),
            (found[3:], true[3:], 4),
        ):
            error = relative_error(ours, theirs)
            assert error <= factor * tolerance(dtype), (call, offset, error)
