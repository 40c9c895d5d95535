"""The tables of the pages, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .cases import DTYPES, PENALTIES, every_activation
from .providers import ALL, PROVIDERS
from .results import rows, wrong
from .table import Call, calls_of, duration, factor, percent, rivals_of, size

SIDES = ("forward", "backward")


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    text = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
    return "\n".join(text) if len(text) > 2 else ""


def shown(axis: str, value: Any) -> str:
    return size(value) if axis == "elements" else f"{value:g}" if axis == "p" else str(value)


def ratios(calls: Sequence[Call], axes: Sequence[str], complete: bool = False) -> str:
    """A line for each case: of the floor and times faster, forward then backward.

    An axis on which all are the same is no column. Complete: only rivals that do all of it.
    """
    axes = [axis for axis in axes if len({call.case[axis] for call in calls}) > 1]
    rivals = [r for r in rivals_of(calls) if not complete or PROVIDERS[r].does == ALL]
    head = [*axes]
    for side in SIDES:
        head += [f"{side}, of the floor", *(f"than {rival}" for rival in rivals)]
    lines: dict[tuple[Any, ...], dict[str, Call]] = {}
    for call in calls:
        lines.setdefault(tuple(call.case[axis] for axis in axes), {})[call.direction] = call
    return table(
        head,
        (
            [*map(shown, axes, key), *(c for side in SIDES for c in cells(by.get(side), rivals))]
            for key, by in sorted(lines.items(), key=lambda line: place_of(axes, line[0]))
        ),
    )


def place_of(axes: Sequence[str], values: Sequence[Any]) -> list[Any]:
    """To sort by: numbers by size, names as the plan has them."""
    orders = {"activation": every_activation(), "dtype": DTYPES, "penalty": tuple(PENALTIES)}
    return [
        orders[axis].index(value) if axis in orders else value
        for axis, value in zip(axes, values, strict=True)
    ]


def cells(call: Call | None, rivals: Sequence[str]) -> list[str]:
    found = call.found if call else {}
    floors = found.get("fused", {}).get("floors")
    faster = [found.get(rival, {}).get("faster") for rival in rivals]
    return [percent(floors[0]) if floors else "", *(factor(f[0]) if f else "" for f in faster)]


def times(calls: Sequence[Call], axes: Sequence[str]) -> str:
    """The times themselves, of every provider."""
    names = ["fused", *(n for n in PROVIDERS if n != "fused" and any(n in c.found for c in calls))]

    def line(call: Call) -> list[str]:
        values = {**call.case, "direction": call.direction}
        found = [call.found.get(name) for name in names]
        spreads = [spread_of(row["seconds"]) if row else "" for row in found]
        return [*(shown(axis, values[axis]) for axis in axes), *spreads]

    return table([*axes, *names], map(line, calls))


def spread_of(seconds: Sequence[float]) -> str:
    return "{} ({}-{})".format(*map(duration, seconds))


def smallest(calls: Sequence[Call]) -> str:
    """What a call costs in which there is nothing to do."""
    small = [call for call in calls if call.case["place"] == "call" and call.direction in SIDES]
    least = min((call.case["elements"] for call in small), default=1 << 62)
    if least > 64:
        return ""
    parts = []
    for call in small:
        if call.case["elements"] == least:
            found = call.found
            faster = [
                f"{factor(found[rival]['faster'][0])} times faster than {rival}"
                for rival in ("eager", "compile")
                if rival in found
            ]
            time = duration(found["fused"]["host"])
            parts.append(f"{call.direction} {time} ({', '.join(faster)})")
    return f"A call of {least} elements, which is overhead alone: {'; '.join(parts)}."


def steps(calls: Sequence[Call]) -> str:
    """The training steps in a sentence for each network."""
    networks = {"step": "a perceptron around it", "deep": "a perceptron of eight such layers"}
    return "\n\n".join(filter(None, (step(calls, *network) for network in networks.items())))


def step(calls: Sequence[Call], place: str, network: str) -> str:
    parts, what = [], ""
    for call in calls:
        found, case = call.found, call.case
        if case["place"] != place or "eager" not in found:
            continue
        ours, theirs = found["fused"], found["eager"]
        megabytes = [
            [f"{found[key] / 1e6:.1f}" for found in (ours, theirs)] for key in ("saved", "peak")
        ]
        kept, peak = (
            f"the same {own} MB" if own == other else f"{own} instead of {other} MB"
            for own, other in megabytes
        )
        faster = factor(theirs["faster"][0])
        parts.append(
            f"{case['dtype']} {faster} times faster than eager, keeping {kept} for backward, "
            f"{peak} at the peak"
        )
        what = f"{case['activation']}, penalties {case['penalty']}, dropout of {case['p']:g}"
    return f"A training step of {network} ({what}): {'; '.join(parts)}." if parts else ""


def blocks(calls: Sequence[Call]) -> str:
    head = ["where", "type", "p", "elements", "direction", "provider", "time", "faster"]
    lines = []
    for call in calls:
        for name, row in call.found.items():
            case = call.case
            axes = [case["place"], case["dtype"], f"{case['p']:g}", size(case["elements"])]
            faster = factor(row["faster"][0]) if "faster" in row else ""
            memory = [f"{row[key] / case['elements']:.1f}" for key in ("saved", "peak")]
            time = spread_of(row["seconds"])
            lines.append([*axes, call.direction, name, time, faster, *memory])
    return table([*head, "kept", "peak"], lines)


def memory(calls: Sequence[Call]) -> str:
    """Bytes for each element, kept and at the most, and launches where there are kernels."""
    calls = [call for call in calls if call.direction == "forward"]
    names = [n for n in PROVIDERS if any("saved" in call.found.get(n, {}) for call in calls)]
    head = ["activation", "type", "p", *(f"{name}: kept, peak" for name in names)]
    lines = []
    for call in calls:
        case, line = call.case, []
        for name in names:
            row = call.found.get(name)
            text = (
                "{:.2f}, {:.1f}".format(*(row[k] / case["elements"] for k in ("saved", "peak")))
                if row
                else ""
            )
            line.append(text + (f", {row['launches']} launches" if row and row["launches"] else ""))
        lines.append([case["activation"], case["dtype"], f"{case['p']:g}", *line])
    return table(head, lines)


def errors(results: dict[str, Any]) -> str:
    """Of each provider and type the largest; of output and gradients, and of the penalty."""
    worst: dict[str, dict[str, list[float]]] = {}
    for row in rows(results):
        if row["provider"] != "floor":
            of_type = worst.setdefault(row["provider"], {}).setdefault(row["dtype"], [0.0, 0.0])
            of_type[:] = map(max, of_type, (row["error"], row["penalty_error"]))
    dtypes = list(dict.fromkeys(dtype for found in worst.values() for dtype in found))
    lines = (
        [name, *("{:.1e}, {:.1e}".format(*found[d]) if d in found else "" for d in dtypes)]
        for name, found in worst.items()
    )
    return table(["provider", *dtypes], lines)


def machine(results: dict[str, Any]) -> str:
    """Everything that is known of it, the clocks and the load before and after."""
    facts = {k: v for k, v in results["machine"].items() if k not in ("before", "after")}
    for moment in ("before", "after"):
        for key, value in results["machine"].get(moment, {}).items():
            values = value.items() if isinstance(value, dict) else [(key, value)]
            facts |= {f"{name}, {moment}": found for name, found in values}
    facts |= {"command": f"`{results['command']}`", "preset": results["preset"]}
    facts |= {"measured": "<br>".join(results["slices"])}
    lines = ([key.replace("_", " "), plain(value)] for key, value in facts.items() if value)
    return table(["", ""], lines)


def plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return str(value)


def providers(results: dict[str, Any]) -> str:
    used = {name for call in calls_of(results) for name in call.found}
    lines = [[f"`{n}`", p.computes] for n, p in PROVIDERS.items() if n in used]
    lines += [[f"`{n}`", f"not here: {why}"] for n, why in results["absent"].items()]
    return table(["provider", "what it computes"], lines)


def omissions(results: dict[str, Any]) -> str:
    """What was not timed and why."""
    lines = [f"- not timed: {line}" for line in wrong(results)]
    for left in results["left_out"]:
        case = " ".join(str(value) for value in left["case"].values())
        lines.append(f"- {left['why']}: {case}: {', '.join(left['providers'])}")
    return "\n".join(lines)
