"""Fixtures: the rows of the table, and a state of torch that each test finds and leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests import table


@pytest.fixture(params=table.PLAIN, ids=table.describe)
def activation(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each activation of the registry, as keyword arguments of act_reg."""
    return request.param


@pytest.fixture(params=table.VARIANTS, ids=table.describe)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each activation, and again with parameters that are not its defaults."""
    return request.param


@pytest.fixture(params=table.DTYPES, ids=table.describe)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=table.DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=table.DEVICES)
def default_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """For tests that make their tensors wherever torch does."""
    if request.param != "cpu":
        torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from one state of the generator, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
