"""The part of a product that `make test` runs: see tests/pairs.py."""

from __future__ import annotations

from itertools import product

import pytest

from tests.pairs import covering, pairs_of

PRODUCTS = [
    [],
    [(1,), (2,)],
    list(product(range(24), range(4), range(1), range(13))),
    # Not a full product: the third parameter depends on the first.
    [(a, b, a % 3 + c) for a, b, c in product(range(7), range(4), range(2))],
]


@pytest.mark.parametrize("combinations", PRODUCTS, ids=len)
def test_every_pair_is_there(combinations: list[tuple[int, ...]]) -> None:
    chosen = covering(combinations)
    part = [c for c, is_chosen in zip(combinations, chosen, strict=True) if is_chosen]
    pairs = {pair for combination in combinations for pair in pairs_of(combination)}
    assert {pair for combination in part for pair in pairs_of(combination)} == pairs
    assert all(combination in part for combination in combinations if len(combination) < 2)


def test_the_part_is_small() -> None:
    """At least 24 * 13 combinations are needed, as each has one of so many pairs."""
    assert sum(covering(PRODUCTS[2])) == 24 * 13
