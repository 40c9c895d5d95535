"""Every float32 number on a GPU, and a sample on the CPU, compared with float64.

The reason is a GPU's approximate instructions. The test compares values, slopes from x, and slopes
from y if the backward may compute them so. The limits are those of Note [The rule] plus one ulp,
because the largest error of all numbers is larger than the largest error of a sample. A bin is
three octaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import actreg_ext
from actreg_ext import _C, ops, reference
from actreg_ext.functional import act_reg
from tests import table, tolerance

OCTAVE = 2**23  # float32 numbers with one sign and exponent; 255 octaves are finite
BIN = 3  # octaves
STRIDE = 65537  # on the CPU; odd, so that the last bits vary
# Activations with approximate instructions come first, in case the device time ends.
FIRST = ("gelu", "silu", "tanh", "sigmoid", "softplus", "mish", "gelu_tanh")
VARIANTS = sorted(table.PLAIN, key=lambda variant: variant["activation"] not in FIRST)


def slopes(variant: dict[str, Any], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The operator's slopes: its gradients for dy = 1, from x and, if it may be kept, from y."""
    values = {**actreg_ext.activations()[variant["activation"]], **variant}
    name, parameters = values.pop("activation"), tuple(values.values())
    given = {"slope": x}
    kept = [_C.kept(x.dtype, name, parameters, 0.0, False, 0.0, l2) for l2 in (0.0, 1.0)]
    if kept[0] in ("input", "output") and kept[1] == "output":  # by another formula than from x
        given["slope from y"] = y
    # Without a gradient of the penalty, l2 only allows the backward to take the output.
    attributes = (name, parameters, 0.0, False, (0.0, 1.0), "sum", ())
    return {
        what: ops.backward(torch.ones_like(x), None, at, None, *attributes, x_is_output=at is y)
        for what, at in given.items()
    }


def sizes_of(truth: Tensor, octave: int) -> Tensor:
    """The numbers whose ulp is the unit of the error: |truth|, or the largest |truth| nearby.

    The latter is used where a slope changes its sign, as in Note [The rule]. `octave` is the count
    of tested numbers in an octave.
    """
    cells = truth.view(-1, max(octave // 64, 1))
    reach = math.ceil(octave / 3 / cells.shape[1])

    def largest(each: Tensor) -> Tensor:
        return F.max_pool1d(each[None], 2 * reach + 1, 1, reach)[0]

    changes = (largest(cells.amax(1)) > 0) & (largest(-cells.amin(1)) > 0)
    nearby = largest(cells.abs().amax(1))
    return torch.where(changes[:, None], nearby[:, None], cells.abs()).flatten()


def errors(variant: dict[str, Any], x: Tensor, octave: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The errors in ulps of values and slopes: (what, ours, eager PyTorch's)."""
    true, narrow = tolerance.true_jet(variant, x), x.clone().requires_grad_()
    eager = reference.act_reg(narrow, **variant).output
    (eager_slope,) = torch.autograd.grad(eager.sum(), narrow)
    y = act_reg(x, **variant).output
    for what, ours in {"value": y, **slopes(variant, x, y)}.items():
        of_slope = what != "value"
        theirs, truth = (eager_slope, true.slope) if of_slope else (eager.detach(), true.value)
        numbers, sizes = tolerance.Numbers(truth, torch.zeros_like(truth)), sizes_of(truth, octave)
        a, b = (tolerance.errors(t, numbers, sizes) for t in (ours, theirs))
        is_finite = b.isfinite()  # eager PyTorch's overflow or NaN excuses ours
        yield what, a.where(is_finite, 0.0), b.where(is_finite, 0.0)


def check(variant: dict[str, Any], chunks: Iterator[Tensor], octave: int) -> None:
    """Assert the rule in each bin. The GPU finds each bin's worst error without waiting."""
    found: dict[str, list[Tensor]] = {}
    for x in chunks:
        for what, ours, theirs in errors(variant, x, octave):
            for bin_of_x, a, b in zip(
                *(each.split(BIN * octave) for each in (x, ours, theirs)), strict=True
            ):
                worst = a.argmax()
                row = torch.stack([a[worst], bin_of_x[worst].double(), b.amax()])
                found.setdefault(what, []).append(row)
    for what, rows in found.items():
        bins = torch.stack(rows).cpu()
        error, at, _ = bins[bins[:, 0].argmax()].tolist()
        print(f"{variant['activation']} {what}: at most {error:.4g} ulp, at {at:.9g}")
        error, at, theirs = bins[(bins[:, 0] - 2 * bins[:, 2]).argmax()].tolist()
        assert error <= 2 * theirs + 2, (
            f"the {what} at {at!r} is off by {error:.4g} ulp; eager PyTorch nearby by {theirs:.4g}"
        )


def all_floats() -> Iterator[Tensor]:
    for sign in (1, -1):
        for octave in range(0, 255, BIN):
            bits = torch.arange(octave * OCTAVE, (octave + BIN) * OCTAVE, device="cuda")
            yield sign * bits.to(torch.int32).view(torch.float32)


def some_floats() -> Iterator[Tensor]:
    for sign in (1, -1):
        bits = torch.arange(0, 255 * OCTAVE, STRIDE)
        yield sign * bits.to(torch.int32).view(torch.float32)


ON: list[Any] = [
    ("cpu", some_floats, 128),
    pytest.param(("cuda", all_floats, OCTAVE), marks=[pytest.mark.cuda, pytest.mark.slow]),
]


@pytest.mark.parametrize("on", ON[: len(table.DEVICES)], ids=lambda on: on[0])
@pytest.mark.parametrize("variant", VARIANTS, ids=table.describe)
def test_float32(
    variant: dict[str, Any], on: tuple[str, Callable[[], Iterator[Tensor]], int]
) -> None:
    """All finite numbers on a GPU, some on the CPU."""
    _, chunks, octave = on
    check(variant, chunks(), octave)
