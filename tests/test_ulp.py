"""No error is larger than docs/accuracy.md says. tools/ulp.py measures, as it did for that page.

The test also compares tests/exact.cpp, which tools/ulp.py uses, with exact.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from actreg_ext import _C
from actreg_ext.functional import act_reg
from tests import exact, table
from tools import ulp

LONGDOUBLE = 2.0**-11  # rounding error of exact.py's results, in ulps of float64


def page_of(text: str) -> dict[str, dict[str, dict[str, str]]]:
    """The page's numbers: table -> activation -> column -> number."""
    found = {}
    for section in text.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if line]
        columns, _, *rows = cells
        found[title] = {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}
    return found


PAGE = page_of(ulp.PAGE.read_text())


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    ulp.build()


def limits(kind: str, name: str) -> dict[str, str]:
    """The row of docs/accuracy.md for the kernels in use."""
    return PAGE[f"{kind}, {_C.cpu_capability()}"][name]


def assert_within(founds: ulp.Founds, allowed: list[str]) -> None:
    for found, limit in zip(founds, allowed, strict=True):
        assert found.worst <= float(limit), f"{found.worst:.4g} ulp at {found.at!r}"


def tried(x: float) -> Tensor:
    """Floats that the page is about: x, where the largest error was found, some near, some far."""
    at = torch.tensor(x).view(torch.int32).long()
    others = torch.cat([torch.arange(-1000, 1001) + at, torch.arange(0, 2**32, 262147)])
    others = others % 2**32 // ulp.STRIDE * ulp.STRIDE
    floats = torch.cat([at[None], others]).to(torch.int32).view(torch.float32)
    return floats[floats.isfinite()]


def test_float32_is_as_accurate_as_documented(activation: dict[str, Any]) -> None:
    row = limits("float32", activation["activation"])
    places = [float(row[f"{what} at x ="] or 0) for what in ("value", "slope")]
    x = torch.cat([tried(place) for place in places])
    founds = ulp.measure(activation, x, ulp.results(activation, False, x))
    assert_within(founds, [row["value"], row["slope"]])


OF_OUTPUT = [variant for variant in table.PLAIN if ulp.output_tells(variant)]


@pytest.mark.parametrize("variant", OF_OUTPUT, ids=lambda variant: variant["activation"])
def test_slopes_from_the_output_are_as_accurate_as_documented(variant: dict[str, Any]) -> None:
    row = limits("Slopes from the output, float32", variant["activation"])
    x = torch.cat([tried(float(row[place])) for place in ("at x =", "these at x =")])
    founds = ulp.measure_slopes(variant, x, ulp.results(variant, False, x, of_output=True))
    assert_within(founds, [row["ulps"], row["ulps of 1"]])
    x.requires_grad_()  # act_reg has the same slopes; a penalty makes it keep the output
    (dx,) = torch.autograd.grad(act_reg(x, **variant, l2=1.0).output.sum(), x)
    assert torch.equal(dx, ulp.results(variant, False, x.detach(), of_output=True)[1])


@pytest.mark.parametrize("dtype", ulp.OTHER_DTYPES, ids=table.describe)
def test_other_dtypes_are_as_accurate_as_documented(
    activation: dict[str, Any], dtype: torch.dtype
) -> None:
    row = limits("Other dtypes", activation["activation"])
    x = ulp.inputs(dtype)
    x = x[:4096] if dtype == torch.float64 else x
    founds = ulp.measure(activation, x, ulp.results(activation, False, x))
    assert_within(founds, [row[f"{table.describe(dtype)} {what}"] for what in ("value", "slope")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=table.describe)
def test_errors_are_counted(activation: dict[str, Any], dtype: torch.dtype) -> None:
    """The error counts as at most 1/2 ulp for rounded exact results, and as more 3 floats away."""
    x = table.random_inputs(dtype, "cpu", wide=False)[:: 8 if dtype == torch.float64 else 32]
    x = x[x.abs() < 64]  # exact.py has too few digits for tanh's slope beyond
    name, parameters = ulp.parameters_of(activation)
    jets = exact.jets(name, parameters, tuple(x.tolist()))
    value, slope = (torch.from_numpy(jet.astype(float)).to(dtype) for jet in jets)
    for found in ulp.measure(activation, x, (value, slope)):
        assert found.worst <= 0.5 + LONGDOUBLE
    infinity = torch.tensor(math.inf, dtype=dtype)
    for _ in range(3):
        value, slope = value.nextafter(infinity), slope.nextafter(infinity)
    for found in ulp.measure(activation, x, (value, slope)):
        assert 2.5 - LONGDOUBLE <= found.worst <= 7 and found.at in x.tolist()
        assert found.nearest <= 2  # only near the zero of a slope
