"""Every finite number of float16 and bfloat16: output and gradient, one by one.

The error at each x may be at most twice the error of eager PyTorch at the same x, plus one ulp of
the exact result. That is Note [The rule] with bins of one number, and without its exception for
places where the slope changes its sign.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from actreg_ext import reference
from actreg_ext.functional import act_reg
from tests import table, tolerance


@cache
def numbers(dtype: torch.dtype) -> Tensor:
    """All finite numbers of the dtype, sorted."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16, device="cpu").view(dtype)
    return x[x.isfinite()].sort().values


@pytest.mark.parametrize("dtype", table.HALF_TYPES, ids=table.describe)
def test_every_number(variant: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    x = numbers(dtype)
    true = tolerance.true_jet(variant, x)
    gradients = [torch.ones_like(x), table.random_gradients(x)]
    truths = [true.value, *(true.slope * dy.double() for dy in gradients)]

    def results(function: Any) -> list[Tensor]:
        leaf = x.to(device).requires_grad_()
        y = function(leaf, **variant).output
        dxs = [torch.autograd.grad(y, leaf, dy.to(y), retain_graph=True)[0] for dy in gradients]
        return [y, *dxs]

    for ours, eager, truth in zip(
        results(act_reg), results(reference.act_reg), truths, strict=True
    ):
        # A result that is the number nearest to the truth is right; only the rest is compared.
        at = (ours.detach().cpu() != truth.to(dtype)).nonzero().flatten()
        if not len(at):
            continue
        exact = tolerance.Numbers(truth[at], torch.zeros_like(truth[at]))
        judged = (result.detach().cpu()[at] for result in (ours, eager))
        size = exact.high.abs().clamp(min=torch.finfo(dtype).smallest_normal)  # also for 0
        tolerance.assert_accurate(*judged, exact, size, x[at].tolist(), 1)
