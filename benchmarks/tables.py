"""The tables and sentences of the pages and of the terminal, each made from calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import cases
from .markdown import aligned, table
from .providers import PROVIDERS
from .results import Call, calls_of, wrong

UNITS = ((1e-6, 1e-9, "ns"), (1e-3, 1e-6, "us"), (1.0, 1e-3, "ms"), (float("inf"), 1.0, "s"))
NETWORKS = {"step": "feed-forward block", "deep": "8-layer perceptron"}
ORDERS = {"activation": cases.EVERY, "dtype": cases.DTYPES, "penalty": tuple(cases.PENALTIES)}


def duration(seconds: float) -> str:
    """Three digits."""
    for limit, unit, name in UNITS:
        if seconds < limit:
            return f"{seconds / unit:#.3g}".rstrip(".") + f" {name}"
    raise ValueError(seconds)


def spread_of(seconds: Sequence[float]) -> str:
    median, low, high = map(duration, seconds)
    return f"{median} ({low} to {high})"


def number(value: float) -> str:
    """Of a ratio: two decimals below ten, none above."""
    return f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


def times_faster(row: dict[str, Any] | None) -> str:
    """How many times faster act_reg is than this provider."""
    return f"{number(row['per_act_reg'][0])}x" if row and "per_act_reg" in row else ""


def per(row: dict[str, Any] | None, base: str) -> str:
    """The provider's time as a multiple of that of the base."""
    return number(row[f"per_{base}"][0]) if row and f"per_{base}" in row else ""


def span(values: Iterable[str]) -> str:
    """From the least to the greatest of some numbers, with or without an x behind them."""
    found = sorted(set(filter(None, values)), key=lambda text: float(text.rstrip("x")))
    return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else ""


def shown(axis: str, value: Any) -> str:
    if axis == "elements":
        return cases.size(value)
    return f"{value:g}" if axis == "p" else str(value)


def pivot(
    calls: Iterable[Call], axes: Sequence[str], cells: Callable[[Call], dict[str, str]]
) -> str:
    """A line for each combination of the axes, with the cells of all its calls.

    Sorted by the axes: numbers by size, names in the order of the plan.
    """
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for call in calls:
        values = {**call.case, "direction": call.direction}
        lines.setdefault(tuple(values[axis] for axis in axes), {}).update(cells(call))

    def place(key: tuple[Any, ...]) -> list[Any]:
        pairs = zip(axes, key, strict=True)
        return [ORDERS[axis].index(v) if axis in ORDERS else v for axis, v in pairs]

    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    return table(
        [*axes, *columns],
        (
            [*map(shown, axes, key), *(lines[key].get(column, "") for column in columns)]
            for key in sorted(lines, key=place)
        ),
    )


def varying(calls: Sequence[Call], *axes: str) -> list[str]:
    return [axis for axis in axes if len({call.case[axis] for call in calls}) > 1]


def rivals_of(call: Call) -> list[str]:
    return [n for n in PROVIDERS if n in call.rows and n not in ("act_reg", "copy")]


def ratios(calls: Sequence[Call], *axes: str) -> str:
    """act_reg's time as a multiple of a copy's, and how many times faster it is than others."""

    def cells(call: Call) -> dict[str, str]:
        found = {f"{call.direction}, copy = 1": per(call.rows["act_reg"], "copy")}
        for name in rivals_of(call):
            found[f"{call.direction}, than {name}"] = times_faster(call.rows[name])
        return found

    return pivot(calls, varying(calls, *axes), cells)


def times(calls: Sequence[Call]) -> str:
    """The time of every provider."""

    def cells(call: Call) -> dict[str, str]:
        return {n: spread_of(call.rows[n]["seconds"]) for n in PROVIDERS if n in call.rows}

    return pivot(calls, ("elements", "direction"), cells)


def memory_of(row: dict[str, Any], elements: int) -> list[str]:
    """Bytes kept for backward and peak bytes, for each element."""
    return [f"{row['saved'] / elements:.2f}", f"{row['peak'] / elements:.1f}"]


def memory(calls: Sequence[Call]) -> str:
    def cells(call: Call) -> dict[str, str]:
        found = {}
        for name, row in call.rows.items():
            if "saved" in row:
                launches = f", {row['launches']} launches" if row["launches"] else ""
                text = ", ".join(memory_of(row, call.case["elements"])) + launches
                found[f"{name}: kept, peak"] = text
        return found

    forward = [call for call in calls if call.direction == "forward"]
    return pivot(forward, ("activation", "dtype", "p"), cells)


def networks(calls: Sequence[Call]) -> str:
    """A line for each provider."""
    head = ["place", "dtype", "p", "elements", "direction", "provider", "time", "act_reg is faster"]
    lines = []
    for case, direction, _, rows in calls:
        axes = [shown(axis, case[axis]) for axis in head[:4]]
        for name, row in rows.items():
            time = [spread_of(row["seconds"]), times_faster(row)]
            kept, peak = memory_of(row, case["elements"])
            lines.append([*axes, direction, name, *time, per(row, "plain"), kept, peak])
    return table([*head, "plain = 1", "kept", "peak"], lines)


def steps(calls: Sequence[Call]) -> str:
    """The training steps, for README: times as multiples of the plain step's."""
    lines = []
    for case, _, _, rows in calls:
        rows = {name: rows.get(name, {}) for name in ("act_reg", "eager", "compile")}
        kept = [f"{rows[name]['saved'] / 1e6:.1f} MB" for name in ("act_reg", "eager")]
        of_plain = [per(row, "plain") for row in rows.values()]
        lines.append(
            [
                f"{NETWORKS[case['place']]}, {case['activation']}",
                case["dtype"],
                *of_plain,
                times_faster(rows["eager"]),
                times_faster(rows["compile"]),
                " instead of ".join(kept),
            ]
        )
    head = ["training step", "dtype", "act_reg / plain", "eager / plain", "torch.compile / plain"]
    faster = ["act_reg against eager", "act_reg against torch.compile"]
    return table([*head, *faster, "kept for backward"], lines)


def headline(calls: Sequence[Call]) -> str:
    """The training steps in one sentence."""
    ours = span(per(call.rows["act_reg"], "plain") for call in calls)
    eager = span(per(call.rows.get("eager"), "plain") for call in calls)
    if ours:
        return (
            f"A training step regularized by act_reg takes {ours} times as long as the same step "
            f"without any regularization; in eager PyTorch {eager} times as long."
        )
    faster = span(times_faster(call.rows.get("eager")) for call in calls)
    return (
        f"A training step regularized by act_reg is {faster} faster than the same step in eager "
        "PyTorch."
    )


def summary(calls: Sequence[Call]) -> list[str]:
    """Calls with dropout on large tensors, in one sentence for each direction."""
    found = []
    for direction in cases.DIRECTIONS[:2]:
        part = [call for call in calls if call.direction == direction and call.case["p"] > 0]
        faster = [
            f"{span(times_faster(call.rows.get(rival)) for call in part)} faster than {rival}"
            for rival in ("eager", "compile")
        ]
        if part:
            found.append(f"A call, {direction}, is {' and '.join(faster)} ({setting(part)}).")
    return found


def setting(calls: Sequence[Call]) -> str:
    """What all of them have in common."""

    def common(axis: str, form: Callable[[Any], str]) -> str:
        values = {call.case[axis] for call in calls}
        return form(values.pop()) if len(values) == 1 else ""

    penalties = {"both": "L1 and L2", "l1": "L1", "l2": "L2", "none": "no penalty"}
    parts = (
        common("activation", str),
        common("dtype", str),
        common("penalty", lambda name: penalties[name]),
        common("p", lambda p: f"dropout of {p:g}"),
        common("elements", lambda n: f"{cases.size(n)} elements"),
    )
    return ", ".join(filter(None, parts))


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
    """The largest errors of each provider and type: of output and gradients, of the penalty."""
    worst: dict[str, dict[str, list[float]]] = {}
    for call in calls:
        for name, row in call.rows.items():
            if name != "copy":
                found = worst.setdefault(name, {}).setdefault(call.case["dtype"], [0.0, 0.0])
                found[:] = map(max, found, row["errors"])
    dtypes = list(dict.fromkeys(dtype for found in worst.values() for dtype in found))
    lines = (
        [name, *("{:.1e}, {:.1e}".format(*found[d]) if d in found else "" for d in dtypes)]
        for name, found in worst.items()
    )
    return table(["provider", *dtypes], lines)


def machine(results: dict[str, Any]) -> str:
    """Everything that is known about the machine and the session."""
    facts = {k: v for k, v in results["machine"].items() if k not in ("before", "after")}
    for moment in ("before", "after"):
        state = results["machine"].get(moment, {})
        facts |= {f"{name}, {moment}": found for name, found in state.items()}
    facts |= {"command": f"`{results['command']}`", "preset": results["preset"]}
    facts |= {"measured": "<br>".join(results["slices"])}

    def text(value: Any) -> str:
        pairs = value.items() if isinstance(value, dict) else ()
        return ", ".join(f"{key} {part}" for key, part in pairs) or str(value)

    lines = ([key.replace("_", " "), text(value)] for key, value in facts.items() if value)
    return table(["", ""], lines)


def providers(calls: Sequence[Call]) -> str:
    used = {name for call in calls for name in call.rows}
    lines = [[f"`{n}`", provider.computes] for n, provider in PROVIDERS.items() if n in used]
    return table(["provider", "what it computes"], lines)


def omissions(results: dict[str, Any]) -> str:
    """What was not timed and why."""
    lines = [f"- not timed: {line}" for line in wrong(results)]
    for left in results["left_out"]:
        case = " ".join(str(value) for value in left["case"].values())
        lines.append(f"- {left['why']}: {case}: {', '.join(left['providers'])}")
    return "\n".join(lines)


def overview(results: dict[str, Any]) -> str:
    """For the terminal."""

    def cells(call: Call) -> dict[str, str]:
        ours = call.rows["act_reg"]
        found = {"act_reg": spread_of(ours["seconds"]), "copy = 1": per(ours, "copy")}
        found |= {f"than {name}": times_faster(call.rows[name]) for name in rivals_of(call)}
        kept, peak = memory_of(ours, call.case["elements"])
        return {**found, "kept": kept, "peak": peak, "launches": str(ours["launches"] or "")}

    calls, axes = calls_of(results), (*cases.Case._fields, "direction")
    parts = [
        *results["slices"],
        aligned(pivot(calls, axes, cells)),
        "copy = 1: act_reg's time as a multiple of a copy's; than eager: how many times faster",
        "act_reg is; kept, peak: bytes for each element, kept for backward and at most.",
        *(f"{name}: {provider.computes}" for name, provider in PROVIDERS.items()),
        omissions(results),
    ]
    return "\n".join(filter(None, parts))
