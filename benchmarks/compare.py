"""What got slower since an older results file, and how sure that is.

Two sessions are days and other loads apart, so times are not compared but multiples of the memory's
own time (in blocks: of eager PyTorch's), which were measured round by round within each session.
Note [Uncertainty]: for noise like a normal distribution's the standard error of a median of n is
1.2533 sigma / sqrt(n), and the 20th and 80th percentiles lie 1.683 sigma apart; in logarithms, as
they are ratios. The interval given is two standard errors of the difference of both sessions.
A change counts when the whole interval lies beyond the threshold.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .results import rows
from .timing import Spread

KEY = ("place", "activation", "dtype", "p", "penalty", "elements", "direction")


class Change(NamedTuple):
    """The new multiple as one of the old; above 1 is slower."""

    what: str
    ratio: float
    low: float
    high: float
    against: str

    def is_slower(self, threshold: float) -> bool:
        return self.low > 1 + threshold

    def is_faster(self, threshold: float) -> bool:
        return self.high < 1 / (1 + threshold)


def standard_error(ratios: Spread, rounds: int) -> float:
    """Of the logarithm of the median; see Note [Uncertainty]."""
    return 1.2533 * math.log(ratios.high / ratios.low) / 1.683 / math.sqrt(rounds)


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Of the operator in each case that both have; the worst first."""
    before, after = _multiples(old), _multiples(new)
    found = []
    for key in before.keys() & after.keys():
        (a, n, against), (b, m, _) = before[key], after[key]
        ratio = b.median / a.median
        error = 2 * math.hypot(standard_error(a, n), standard_error(b, m))
        low, high = ratio * math.exp(-error), ratio * math.exp(error)
        found.append(Change(" ".join(str(part) for part in key), ratio, low, high, against))
    return sorted(found, key=lambda change: (-change.low, change.what))


def missing(old: dict[str, Any], new: dict[str, Any]) -> int:
    """How many cases only one of them has."""
    return len(_multiples(old).keys() ^ _multiples(new).keys())


def _multiples(results: dict[str, Any]) -> dict[tuple[Any, ...], tuple[Spread, int, str]]:
    found = {}
    for row in rows(results):
        key = tuple(row[part] for part in KEY)
        if row["provider"] == "fused" and "floors" in row:
            found[key] = (Spread(*row["floors"]), row["rounds"], "the floor")
        elif row["provider"] == "eager" and row["place"] != "call" and "faster" in row:
            median, low, high = row["faster"]
            found[key] = (Spread(1 / median, 1 / high, 1 / low), row["rounds"], "eager")
    return found
