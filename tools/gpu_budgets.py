"""The table of budgets that gpu_check.py prints: are the kernels as fast as they should be?"""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import aligned, table
from benchmarks.results import Call, calls_of

COMPILERS = ("compile", "max-autotune", "cooperative")
# Rival, with dropout or without (None: both), and the largest ratio allowed of our time to its.
BUDGETS = [("copy", None, 1.10), ("eager", None, 1 / 4)]
BUDGETS += [
    (name, drops, limit) for drops, limit in ((True, 1 / 1.5), (False, 1.0)) for name in COMPILERS
]
DROPOUT = {None: "", True: " with dropout", False: " without dropout"}


def ratio(call: Call, rival: str) -> float | None:
    """Our time over the rival's."""
    if rival == "copy":
        return call.rows["act_reg"].get("per_copy", [None])[0]
    inverse = call.rows.get(rival, {}).get("per_act_reg")
    return 1 / inverse[0] if inverse else None


def shown_budgets(results: dict[str, Any]) -> str:
    """For each budget the worst call of the largest size, and how many calls exceed the budget."""
    calls = [call for call in calls_of(results) if call.case["place"] == "call"]
    largest = max((call.case["elements"] for call in calls), default=0)
    calls = [call for call in calls if call.case["elements"] == largest]
    lines = []
    for direction in ("forward", "backward"):
        for rival, drops, limit in BUDGETS:
            ratios = [
                (value, "{activation} {dtype} p={p}".format_map(call.case))
                for call in calls
                if call.direction == direction and drops in (None, call.case["p"] > 0)
                if (value := ratio(call, rival))
            ]
            if ratios:
                what, (worst, at) = f"{direction} / {rival}{DROPOUT[drops]}", max(ratios)
                over = f"{sum(value > limit for value, _ in ratios)} of {len(ratios)}"
                lines.append([what, f"{limit:.2f}", f"{worst:.2f}", at, over])
    return aligned(table(("our time / the rival's", "budget", "worst", "where", "over"), lines))
