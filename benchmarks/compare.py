"""What got slower since an older results file, and how certain that is.

Two sessions may be days apart, so their times are not compared. Compared are ratios that each
session measured within its rounds: act_reg's time over that of a copy, in networks over eager's.
Note [Uncertainty]: for normally distributed noise the standard error of a median of n values is
1.2533 sigma / sqrt(n), and the 20th and 80th percentile are 1.683 sigma apart. Ratios are compared
by their logarithms. The interval is two standard errors of the difference of both sessions.
A change counts if the whole interval lies beyond the threshold.
"""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

from .markdown import table
from .results import calls_of
from .timing import Spread

THRESHOLD = 1.1
SHOWN = 10  # of the changes that do not count


class Change(NamedTuple):
    """The new ratio over the old one: more than 1 is slower."""

    case: str
    ratio: float
    low: float
    high: float

    def verdict(self) -> str:
        return "slower" * (self.low > THRESHOLD) or "faster" * (self.high < 1 / THRESHOLD)


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """In the cases that both have, the worst first."""
    before, after = _ratios(old), _ratios(new)
    found = []
    for case in before.keys() & after.keys():
        ratio = after[case][0].median / before[case][0].median
        factor = math.exp(2 * math.hypot(*(_error(*of[case]) for of in (before, after))))
        found.append(Change(case, ratio, ratio / factor, ratio * factor))
    return sorted(found, key=lambda change: (-change.low, change.case))


def _error(ratios: Spread, rounds: int) -> float:
    """The standard error of the logarithm of the median; see Note [Uncertainty]."""
    return 1.2533 * math.log(ratios.high / ratios.low) / 1.683 / math.sqrt(rounds)


def _ratios(results: dict[str, Any]) -> dict[str, tuple[Spread, int]]:
    found = {}
    for call in calls_of(results):
        name = " ".join(map(str, (*call.case.values(), call.direction)))
        ours, eager = call.rows["act_reg"], call.rows.get("eager", {})
        if "per_copy" in ours:
            found[name] = (Spread(*ours["per_copy"]), ours["rounds"])
        elif "per_act_reg" in eager:
            median, low, high = eager["per_act_reg"]
            found[name] = (Spread(1 / median, 1 / high, 1 / low), eager["rounds"])
    return found


def report(found: list[Change]) -> str:
    if not found:
        return "The two files have no case in common."
    counting = [change for change in found if change.verdict()]
    others = [change for change in found if not change.verdict()]
    lines = []
    for change in counting + others[:SHOWN]:
        interval = f"{change.low:.2f} to {change.high:.2f}"
        lines.append((change.case, f"{change.ratio:.2f}", interval, change.verdict()))
    head = ("act_reg's time, as a multiple", "new / old", "interval", "")
    changed = f"{len(counting)} of {len(found)} cases changed by more than {THRESHOLD - 1:.0%}"
    typical = statistics.median(change.ratio for change in found)
    return f"{table(head, lines)}\n\n{changed}; the median ratio is {typical:.3f}."
