"""The tables and sentences of the pages and of the terminal, each made from calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import cases
from .markdown import table
from .providers import PROVIDERS
from .results import Call

UNITS = ((1e-6, 1e-9, "ns"), (1e-3, 1e-6, "us"), (1.0, 1e-3, "ms"), (float("inf"), 1.0, "s"))
NETWORKS = {"step": "feed-forward block", "deep": "8-layer perceptron"}
PENALTIES = {"both": "L1 + L2", "l1": "L1", "l2": "L2", "none": "no penalty"}
ORDERS = {"activation": cases.EVERY, "dtype": cases.DTYPES, "penalty": tuple(cases.PENALTIES)}


def duration(seconds: float) -> str:
    """Three digits."""
    unit, name = next((unit, name) for limit, unit, name in UNITS if seconds < limit)
    return f"{seconds / unit:#.3g}".rstrip(".") + f" {name}"


def number(value: float) -> str:
    """Of a ratio: two decimals below ten, none above."""
    return f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


def per(row: dict[str, Any], base: str) -> str:
    """The provider's time as a multiple of the base's."""
    return number(row[f"per_{base}"][0]) if f"per_{base}" in row else ""


def faster(row: dict[str, Any]) -> str:
    """How many times faster act_reg is than this provider."""
    return f"{per(row, 'act_reg')}x" if "per_act_reg" in row else ""


def shown(axis: str, value: Any) -> str:
    if axis == "elements":
        return cases.size(value)
    return f"{value:g}" if axis == "p" else str(value)


def pivot(
    calls: Sequence[Call], axes: Iterable[str], cells: Callable[[Call], dict[str, str]]
) -> str:
    """A line for each combination of the axes that vary, with the cells of all its calls.

    Sorted by the axes: numbers by size, names in the order of the plan.
    """
    axes = [axis for axis in axes if len({call.case[axis] for call in calls}) > 1]
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for call in calls:
        lines.setdefault(tuple(call.case[axis] for axis in axes), {}).update(cells(call))

    def place(key: tuple[Any, ...]) -> list[Any]:
        pairs = zip(axes, key, strict=True)
        return [ORDERS[axis].index(v) if axis in ORDERS else v for axis, v in pairs]

    head = list(dict.fromkeys(column for line in lines.values() for column in line))
    body = []
    for key in sorted(lines, key=place):
        body.append([*map(shown, axes, key), *(lines[key].get(column, "") for column in head)])
    return table([*axes, *head], body)


def ratios(calls: Sequence[Call], *axes: str) -> str:
    """act_reg's time as a multiple of a copy's, and how many times faster it is than others."""

    def cells(call: Call) -> dict[str, str]:
        found = {f"{call.direction}, copy = 1": per(call.rows["act_reg"], "copy")}
        for name in PROVIDERS:
            if name in call.rows and name not in ("act_reg", "copy"):
                found[f"{call.direction}, than {name}"] = faster(call.rows[name])
        return found

    return pivot(calls, axes, cells)


def memory(calls: Sequence[Call]) -> str:
    """Bytes for each element, kept for backward and at the peak."""

    def cells(call: Call) -> dict[str, str]:
        return {
            f"{name}: kept, peak": ", ".join(bytes_each(row, call.case["elements"])[:2])
            for name, row in call.rows.items()
            if "saved" in row
        }

    forward = [call for call in calls if call.direction == "forward"]
    return pivot(forward, ("activation", "dtype", "p"), cells)


def bytes_each(row: dict[str, Any], elements: int) -> list[str]:
    if "saved" not in row:
        return ["", "", ""]
    peak, launches = f"{row['peak'] / elements:.1f}", str(row["launches"] or "")
    return [f"{row['saved'] / elements:.2f}", peak, launches]


def details(calls: Sequence[Call]) -> str:
    """A line for each provider, with everything that was measured."""
    axes = [axis for axis in cases.Case._fields if len({call.case[axis] for call in calls}) > 1]
    lines = []
    for case, direction, _, rows in calls:
        where = [*(shown(axis, case[axis]) for axis in axes), direction]
        for name in (name for name in PROVIDERS if name in rows):
            row = rows[name]
            median, low, high = map(duration, row["seconds"])
            multiples = [faster(row), per(row, "copy"), per(row, "plain")]
            memory = bytes_each(row, case["elements"])
            lines.append([*where, name, f"{median} ({low} to {high})", *multiples, *memory])
    head = ["direction", "provider", "time (20 % to 80 %)", "act_reg is faster"]
    return table([*axes, *head, "copy = 1", "plain = 1", "kept", "peak", "launches"], lines)


def steps(calls: Sequence[Call]) -> str:
    """The training steps, for README: times as multiples of the plain step's."""
    lines = []
    for case, _, _, rows in calls:
        ours, eager, compiled = (rows.get(name, {}) for name in ("act_reg", "eager", "compile"))
        penalty = PENALTIES[case["penalty"]]
        name = f"{NETWORKS[case['place']]}, {case['activation']}, {penalty}"
        multiples = [per(row, "plain") for row in (ours, eager, compiled)]
        kept = " instead of ".join(f"{row['saved'] / 1e6:.1f} MB" for row in (ours, eager))
        lines.append([name, case["dtype"], *multiples, faster(eager), faster(compiled), kept])
    head = ["training step", "dtype", "act_reg / plain", "eager / plain", "torch.compile / plain"]
    against = ["act_reg against eager", "act_reg against torch.compile"]
    return table([*head, *against, "kept for backward"], lines)


def headline(calls: Sequence[Call]) -> str:
    """The training steps in one sentence."""

    def span(provider: str, base: str) -> str:
        rows = (call.rows.get(provider, {}) for call in calls)
        values = sorted(row[f"per_{base}"][0] for row in rows if f"per_{base}" in row)
        return " to ".join(dict.fromkeys(map(number, (values[0], values[-1])))) if values else ""

    if ours := span("act_reg", "plain"):
        return (
            f"A training step regularized by act_reg takes {ours} times as long as the same step "
            f"without any regularization; in eager PyTorch {span('eager', 'plain')} times as long."
        )
    return (
        f"A training step regularized by act_reg is {span('eager', 'act_reg')} times faster than "
        "the same step in eager PyTorch."
    )


def smallest(calls: Sequence[Call]) -> str:
    """The overhead of a call."""
    small = [c for c in calls if c.case["place"] == "call" and c.direction in cases.DIRECTIONS[:2]]
    least = min((call.case["elements"] for call in small), default=1 << 62)
    parts = []
    for call in small:
        if call.case["elements"] == least <= 64:
            rows = [(n, call.rows[n]) for n in ("act_reg", "eager", "compile") if n in call.rows]
            hosts = [f"{name} {duration(row['host'])}" for name, row in rows]
            parts.append(f"{call.direction} {', '.join(hosts)}")
    return f"Overhead, a call on {least} elements: {'; '.join(parts)}." if parts else ""


def errors(calls: Sequence[Call]) -> str:
    """The largest errors of each provider and dtype: of output and gradients, of the penalty."""
    worst: dict[str, dict[str, list[float]]] = {}
    for call in calls:
        for name, row in call.rows.items():
            found = worst.setdefault(name, {}).setdefault(call.case["dtype"], [0.0, 0.0])
            found[:] = map(max, found, row["errors"])
    dtypes = [dtype for dtype in cases.DTYPES if any(dtype in found for found in worst.values())]
    lines = (
        [name, *("{:.1e}, {:.1e}".format(*found[d]) if d in found else "" for d in dtypes)]
        for name, found in worst.items()
        if name != "copy"
    )
    return table(["provider", *dtypes], lines)
