"""Fewer combinations: of a large product of parameters, a part that still has every pair of values.

A fault usually shows with one value, or with two together: an activation in one dtype, a dtype with
one penalty. So `make test` runs a part of each product, in which any two values of two parameters
meet at least once. `make test-all` runs the whole products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

Combination = Sequence[int]  # one value of each parameter, or what stands for it


def pairs_of(combination: Combination) -> Iterator[tuple[int, int, int, int]]:
    """Each two parameters with their values."""
    for (i, a), (j, b) in combinations(enumerate(combination), 2):
        yield i, a, j, b


def covering(product: Sequence[Combination]) -> list[bool]:
    """Whether each combination is in the part; the same part in every run.

    Greedy: first the combinations all of whose pairs are new, then those that have one pair less
    that is new, and so on down to a single new pair. A combination of fewer than two values, which
    has no pair, is always in the part.
    """
    chosen = [len(combination) < 2 for combination in product]
    seen: set[tuple[int, int, int, int]] = set()
    most = max((len(c) * (len(c) - 1) // 2 for c in product), default=0)
    for wanted in range(most, 0, -1):
        for at, combination in enumerate(product):
            new = set(pairs_of(combination)) - seen
            if not chosen[at] and len(new) >= wanted:
                chosen[at] = True
                seen |= new
    return chosen
