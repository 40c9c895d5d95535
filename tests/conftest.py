"""Fixtures: the rows of the table in table.py, and the global state of torch around each test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests import pairs, table


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all",
        action="store_true",
        help="run every combination of the tests marked 'pairs', and the tests marked 'rare'",
    )


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Unless --all is given, run a part of the combinations of each test marked 'pairs'.

    Then the tests marked 'rare' do not run either, unless the command names one.
    """
    if config.getoption("all"):
        return
    products = defaultdict[object, list[pytest.Function]](list)
    left_out = set[pytest.Item]()
    is_named = any("::" in argument for argument in config.args)
    for item in items:
        if item.get_closest_marker("rare") and not is_named:
            left_out.add(item)
        elif isinstance(item, pytest.Function) and item.get_closest_marker("pairs"):
            products[item.function].append(item)
    for product in products.values():
        chosen = pairs.covering([tuple(map(id, item.callspec.params.values())) for item in product])
        left_out.update(
            item for item, is_chosen in zip(product, chosen, strict=True) if not is_chosen
        )
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


@pytest.fixture(params=table.PLAIN, ids=table.describe)
def activation(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each activation of the registry, as keyword arguments of act_reg."""
    return request.param


@pytest.fixture(params=table.VARIANTS, ids=table.describe)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each activation with its defaults, and again with other parameters."""
    return request.param


@pytest.fixture(params=table.DTYPES, ids=table.describe)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=table.DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=table.DEVICES)
def default_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each device as torch's default device: the test creates its tensors there."""
    if request.param != "cpu":
        torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same state of the generator."""
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
