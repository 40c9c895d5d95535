"""The truth that errors are measured by (tests/exact.cpp) agrees with exact.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests import exact, table
from tools import ulp

LONGDOUBLE = 2.0**-11  # ulps of float64, in which exact.py's results are rounded


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    ulp.build()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=table.describe)
def test_errors_are_counted(activation: dict[str, Any], dtype: torch.dtype) -> None:
    """Rounded results of many digits are off by half an ulp at most; three numbers on, by more."""
    x = table.random_inputs(dtype, "cpu", wide=False)[:: 8 if dtype == torch.float64 else 32]
    x = x[x.abs() < 64]  # where exact.py has digits enough for the slope of tanh
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
        assert found.nearest <= 2  # near the zero of a slope
