"""The timings that tools/gpu_check.py has had made, held to budgets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# direction, rival, with dropout or without (None: both), the largest ratio of our time to its.
BUDGETS = [
    ("forward", "floor", None, 1.10),
    ("backward", "floor", None, 1.10),
    *[(direction, "eager", None, 1 / 4) for direction in ("forward", "backward")],
    *[
        (direction, rival, drops, 1 / 1.5 if drops else 1.0)
        for rival in ("compile", "max-autotune", "cooperative")
        for direction in ("forward", "backward")
        for drops in (True, False)
    ],
]


def ratios(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our time as one of the rival's, in single calls of the largest size."""
    calls = [row for row in rows if row["place"] == "call"]
    largest = max((row["elements"] for row in calls), default=0)
    found = []
    for row in (row for row in calls if row["elements"] == largest):
        if row["provider"] == "fused" and "floors" in row:
            found.append({**row, "rival": "floor", "ratio": row["floors"][0]})
        elif "faster" in row:
            found.append({**row, "rival": row["provider"], "ratio": 1 / row["faster"][0]})
    return found


def held_to_budgets(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each budget the worst row, and how many are over it."""
    found, all_ratios = [], ratios(rows)
    for direction, rival, drops, limit in BUDGETS:
        ours = [r for r in all_ratios if (r["direction"], r["rival"]) == (direction, rival)]
        ours = [r for r in ours if drops in (None, r["p"] > 0)]
        if not ours:
            continue
        worst = max(ours, key=lambda r: r["ratio"])
        found.append(
            {
                "direction": direction,
                "rival": rival,
                "dropout": drops,
                "limit": limit,
                "worst": worst["ratio"],
                "at": f"{worst['activation']} {worst['dtype']} p={worst['p']}",
                "over": sum(r["ratio"] > limit for r in ours),
                "rows": len(ours),
            }
        )
    return found


def table(budgets: list[dict[str, Any]]) -> str:
    form = "{:40} {:>7} {:>7}  {:30} {}"
    lines = [form.format("our time / the rival's", "budget", "worst", "where", "over")]
    for b in budgets:
        dropout = {None: "", True: " with dropout", False: " without"}[b["dropout"]]
        what = f"{b['direction']} / {b['rival']}{dropout}"
        numbers = (f"{b['limit']:.2f}", f"{b['worst']:.2f}", b["at"])
        lines.append(form.format(what, *numbers, f"{b['over']} of {b['rows']}"))
    return "\n".join(lines)
