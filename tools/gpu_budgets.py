"""Holds the timings of tools/gpu_check.py to the budgets of the kernels."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import aligned, table
from benchmarks.results import Call, calls_of

# Rival, with dropout or without (None: both), and the largest ratio allowed of our time to its.
BUDGETS = [
    ("copy", None, 1.10),
    ("eager", None, 1 / 4),
    *[(name, True, 1 / 1.5) for name in ("compile", "max-autotune", "cooperative")],
    *[(name, False, 1.0) for name in ("compile", "max-autotune", "cooperative")],
]


def ratio(call: Call, rival: str) -> float | None:
    """Our time over the rival's."""
    if rival == "copy":
        return call.rows["act_reg"].get("per_copy", [None])[0]
    inverse = call.rows.get(rival, {}).get("per_act_reg")
    return 1 / inverse[0] if inverse else None


def held_to_budgets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For each budget the worst call of the largest size, and how many calls exceed it."""
    calls = [call for call in calls_of(results) if call.case["place"] == "call"]
    largest = max((call.case["elements"] for call in calls), default=0)
    found = []
    for direction in ("forward", "backward"):
        part = [call for call in calls if call.direction == direction]
        part = [call for call in part if call.case["elements"] == largest]
        for rival, drops, limit in BUDGETS:
            ratios = [
                (value, f"{call.case['activation']} {call.case['dtype']} p={call.case['p']}")
                for call in part
                if drops in (None, call.case["p"] > 0) and (value := ratio(call, rival))
            ]
            if ratios:
                budget: dict[str, Any] = {"direction": direction, "rival": rival, "dropout": drops}
                budget["limit"], (budget["worst"], budget["at"]) = limit, max(ratios)
                budget["over"], budget["rows"] = sum(r > limit for r, _ in ratios), len(ratios)
                found.append(budget)
    return found


def shown(budgets: list[dict[str, Any]]) -> str:
    dropout = {None: "", True: " with dropout", False: " without dropout"}
    lines = (
        (
            f"{b['direction']} / {b['rival']}{dropout[b['dropout']]}",
            f"{b['limit']:.2f}",
            f"{b['worst']:.2f}",
            b["at"],
            f"{b['over']} of {b['rows']}",
        )
        for b in budgets
    )
    return aligned(table(("our time / the rival's", "budget", "worst", "where", "over"), lines))
