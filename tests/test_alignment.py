"""The results do not depend, in any bit, on the address where a tensor begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from actreg_ext.functional import act_reg
from tests import table

END = 261  # elements after a whole tile of the CUDA kernels
OFFSETS = ((0, 0), (1, 0), (0, 1), (3, 3))  # (of x, of dy), in elements


def at_offset(x: Tensor, offset: int) -> Tensor:
    """The same numbers in memory that begins `offset` elements after an aligned address."""
    return x.new_empty(len(x) + offset)[offset:].copy_(x)


@pytest.mark.pairs
@pytest.mark.parametrize("penalty_on", ["activation", "output"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_alignment_changes_no_bit(
    activation: dict[str, Any], dtype: torch.dtype, device: str, p: float, penalty_on: str
) -> None:
    """Also if the backward reads bits or the output, as it does without L2."""
    tile = 2048 if dtype is torch.float64 else 8192
    start, dy = torch.randn(2, tile + END, device=device).to(dtype)
    for l2 in (0.25, 0.0) if p < 1 else (0.25,):
        options = {**activation, "l1": 0.5, "l2": l2, "p": p, "penalty_on": penalty_on, "seed": 1}
        results = []
        for of_x, of_dy in OFFSETS:
            x = at_offset(start, of_x).requires_grad_()
            result = act_reg(x, **options)
            results.append((*result, table.gradient(result, x, at_offset(dy, of_dy))))
        for others in results[1:]:
            assert all(map(torch.equal, others, results[0]))
