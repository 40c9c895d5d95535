"""The table on the terminal, and the numbers as a person reads them, which the report shares."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from .cases import Case
from .compare import Change
from .providers import PROVIDERS
from .results import rows, wrong

UNITS = ((1e-6, 1e-9, "ns"), (1e-3, 1e-6, "us"), (1.0, 1e-3, "ms"), (float("inf"), 1.0, "s"))


def duration(seconds: float) -> str:
    """Three digits."""
    for limit, unit, name in UNITS:
        if seconds < limit:
            return f"{seconds / unit:#.3g}".rstrip(".") + f" {name}"
    raise ValueError(seconds)


def factor(value: float) -> str:
    """Two digits, but three from 100 on, and of those below 1 two places."""
    return f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


def percent(multiple: float) -> str:
    """Of the floor's speed."""
    return f"{100 / multiple:.0f} %"


def size(elements: int) -> str:
    power = elements.bit_length() - 1
    return f"2^{power}" if 1 << power == elements else str(elements)


SHOWN = 10  # of the changes that do not count


class Call(NamedTuple):
    """A case in one direction, and what each provider took for it."""

    case: dict[str, Any]
    direction: str
    slices: list[str]
    found: dict[str, dict[str, Any]]


def calls_of(results: dict[str, Any]) -> list[Call]:
    """In the order of the plan; those in which the operator was timed."""
    slices = {tuple(group["case"].values()): group["slices"] for group in results["groups"]}
    found: dict[tuple[Any, ...], Call] = {}
    for row in rows(results):
        case = {axis: row[axis] for axis in Case._fields}
        key = tuple(case.values())
        call = Call(case, row["direction"], slices[key], {})
        found.setdefault((*key, row["direction"]), call).found[row["provider"]] = row
    return [call for call in found.values() if "fused" in call.found]


def print_results(results: dict[str, Any], console: Console) -> None:
    machine = results["machine"]
    console.print(headline(machine), style="bold")
    for line in results["slices"]:
        console.print(f"  {line}")
    calls = calls_of(results)
    timed = [call for call in calls if call.case["place"] == "call"]
    blocks = [call for call in calls if call.case["place"] != "call"]
    if timed:
        console.print(_table("In a call of its own", timed))
    if blocks:
        console.print(_table("In networks", blocks))
    console.print(_legend(results))
    for line in wrong(results):
        console.print(f"[red]not timed: {line}[/red]")
    for left in results["left_out"]:
        console.print(f"left out, {left['why']}: {' '.join(map(str, left['case'].values()))}")


def headline(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    name = machine["name"]
    if machine["device"] == "cpu":
        name += f", {machine['threads']} threads, {machine['instructions']}"
    versions = f"torch {machine['torch']}, Python {machine['python']}"
    return f"{name}, {versions}, commit {machine['commit'][:12] or 'unknown'}"


def rivals_of(calls: Iterable[Call]) -> list[str]:
    present = {name for call in calls for name in call.found}
    return [name for name in PROVIDERS if name in present and name not in ("floor", "fused")]


def _table(title: str, calls: list[Call]) -> Table:
    rivals = rivals_of(calls)
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for column in ("elements", "where", "activation", "dtype", "p", "penalty", "direction"):
        table.add_column(column, justify="right" if column in ("elements", "p") else "left")
    for column in ("time", "20-80 %", "GB/s", "of floor", "kept", "peak"):
        table.add_column(column, justify="right")
    is_gpu = any(call.found["fused"]["launches"] for call in calls)
    for column in ("host", "launches") if is_gpu else ():
        table.add_column(column, justify="right")
    for rival in rivals:
        table.add_column(f"x {rival}", justify="right", style="cyan")
    for case, direction, _, found in calls:
        ours = found["fused"]
        low, high = ours["seconds"][1:]
        n = case["elements"]
        table.add_row(
            size(n),
            case["place"],
            case["activation"],
            case["dtype"],
            f"{case['p']:g}",
            case["penalty"],
            direction,
            duration(ours["seconds"][0]),
            f"{duration(low)}-{duration(high)}",
            f"{ours['gb_per_s']:.1f}" if "gb_per_s" in ours else "",
            percent(ours["floors"][0]) if "floors" in ours else "",
            f"{ours['saved'] / n:.2f}",
            f"{ours['peak'] / n:.1f}",
            *([duration(ours["host"]), str(ours["launches"])] if is_gpu else []),
            *(factor(found[r]["faster"][0]) if r in found else "" for r in rivals),
        )
    return table


def _legend(results: dict[str, Any]) -> str:
    lines = [
        "time: median of a call of act_reg; of floor: its speed as a share of the memory's own;",
        "host: until a call has been launched; launches: kernels of forward and backward;",
        "kept, peak: bytes for each element, kept for backward and at the most in the whole call;",
        "x rival: act_reg is so many times faster, the median of the ratios of the same rounds",
    ]
    used = {row["provider"] for row in rows(results)} - {"fused"}
    lines += [f"{name}: {p.computes}" for name, p in PROVIDERS.items() if name in used]
    lines += [f"{name}: {why}" for name, why in results["absent"].items()]
    return "\n".join(lines)


def print_changes(changes: list[Change], threshold: float, console: Console) -> None:
    table = Table(title=f"Time as one of before (beyond {threshold:.0%} counts)", pad_edge=False)
    for column in ("case", "against", "ratio", "interval", ""):
        table.add_column(column, justify="left" if column in ("case", "against", "") else "right")
    middle = [c for c in changes if not c.is_slower(threshold) and not c.is_faster(threshold)]
    for change in [c for c in changes if c not in middle] + middle[:SHOWN]:
        word = "[green]faster" if change.is_faster(threshold) else ""
        word = "[red]slower" if change.is_slower(threshold) else word
        interval = f"{change.low:.2f} to {change.high:.2f}"
        table.add_row(change.what, change.against, f"{change.ratio:.2f}", interval, word)
    console.print(table)
    if changes:
        typical = statistics.median(change.ratio for change in changes)
        console.print(
            f"{len(middle)} of {len(changes)} are within their uncertainty of no change or below "
            f"the threshold; the median ratio is {typical:.3f}"
        )
