"""The figures: speed over size, a bar for each activation, and memory; as PNG and SVG.

Each carries the digest of the results it was drawn from, by which a stale one is found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from actreg_ext import activations

from .canvas import COLOURS, LABELS, bars, head, legend, panels
from .providers import ALL, PROVIDERS
from .results import digest, rows
from .table import size

FORMATS = (".png", ".svg")
Rows = list[dict[str, Any]]


def expected(results: dict[str, Any]) -> list[str]:
    """The names of the files that `draw_all` makes."""
    prefix = results["machine"]["device"]
    drawn = [name for name, draw in FIGURES.items() if draw(results)]
    return [f"{prefix}-{name}{suffix}" for name in drawn for suffix in FORMATS]


def draw_all(results: dict[str, Any], folder: Path) -> list[Path]:
    """Those that the results have something to show in."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in expected(results):
        path = folder / name
        with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
            figure = FIGURES[path.stem.split("-")[1]](results)
            assert figure
            extra = {"Date": None} if path.suffix == ".svg" else {}
            metadata = {"Description": f"results {digest(results)}", **extra}
            figure.savefig(path, metadata=metadata, dpi=110)
        found.append(path)
    return found


def is_current(path: Path, results: dict[str, Any]) -> bool:
    """Whether the figure was drawn from these results."""
    return path.exists() and f"results {digest(results)}".encode() in path.read_bytes()


def pick(results: dict[str, Any], **wanted: Any) -> Rows:
    return [row for row in rows(results) if all(row[key] == v for key, v in wanted.items())]


def providers_in(found: Rows) -> list[str]:
    present = {row["provider"] for row in found}
    return [name for name in PROVIDERS if name in present]


def over_size(results: dict[str, Any]) -> Figure | None:
    """GB/s of what has to be moved, in a band from the 20th to the 80th percentile."""
    setting = {"place": "call", "activation": "gelu", "dtype": "float32", "p": 0.1}
    found = pick(results, **setting, penalty="both")
    if len({row["elements"] for row in found}) < 3:
        return None
    figure, sides = panels(results, "Speed over size: gelu, L1, L2 and dropout of 0.1, float32", 2)
    for axes, direction in zip(sides, ("forward", "backward"), strict=True):
        part = [row for row in found if row["direction"] == direction]
        for name in providers_in(part):
            line = sorted((row for row in part if row["provider"] == name), key=_elements)
            at = [row["elements"] for row in line]
            speeds, slow, fast = (
                [row["gb_per_s"] * row["seconds"][0] / row["seconds"][i] for row in line]
                for i in (0, 2, 1)
            )
            is_ours, is_floor = name == "fused", name == "floor"
            axes.fill_between(at, slow, fast, color=COLOURS[name], alpha=0.15, lw=0)
            axes.plot(
                at,
                speeds,
                color=COLOURS[name],
                lw=2.8 if is_ours else 1.6,
                ls="--" if is_floor else "-",
                marker="" if is_floor else "o",
                ms=4,
                zorder=3 if is_ours else 2,
                label=LABELS[name],
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        head(axes, direction, "elements", "GB/s")
    legend(figure, sides[0])
    return figure


def of_activations(results: dict[str, Any]) -> Figure | None:
    """Time in multiples of the floor's, which the bars begin at, activation by activation."""
    found = [row for row in every_activation(results) if "floors" in row]
    ours = [r for r in found if r["provider"] == "fused" and r["direction"] == "forward"]
    if not ours:
        return None
    names = [row["activation"] for row in sorted(ours, key=lambda row: row["floors"][0])]
    title = f"Each activation, with L1, L2 and dropout of 0.1: float32, {size(_elements(ours[0]))}"
    figure, sides = panels(results, f"{title} elements", 2, height=9.0)
    shown = [name for name in providers_in(found) if PROVIDERS[name].does == ALL]
    for axes, direction in zip(sides, ("forward", "backward"), strict=True):
        part = [row for row in found if row["direction"] == direction]
        bars(axes, names, shown, part, lambda row: row["floors"], start=1)
        axes.axvline(1, color=COLOURS["floor"], ls="--", lw=1.6, label=LABELS["floor"])
        axes.set_xscale("log")
        head(axes, direction, "time as a multiple of the memory's alone", "")
    legend(figure, sides[0])
    return figure


def of_memory(results: dict[str, Any]) -> Figure | None:
    """Bytes for each element, kept for backward and at the most at one time."""
    found = [r for r in every_activation(results) if "saved" in r and r["direction"] == "forward"]
    names = list(dict.fromkeys(row["activation"] for row in found))
    if not names:
        return None
    title = "Memory of a call: L1, L2 and dropout of 0.1, float32"
    figure, sides = panels(results, title, 2, height=9.0)
    for axes, key in zip(sides, ("saved", "peak"), strict=True):
        bars(axes, names, providers_in(found), found, lambda row: [row[key] / _elements(row)])  # noqa: B023
        title = {"saved": "kept for backward", "peak": "peak of forward and backward"}[key]
        head(axes, title, "bytes for each element", "")
    legend(figure, sides[0])
    return figure


def every_activation(results: dict[str, Any]) -> Rows:
    """The rows of the largest size at which all activations were measured; none if never."""
    found = pick(results, place="call", dtype="float32", p=0.1, penalty="both")
    names: dict[int, set[str]] = {}
    for row in found:
        names.setdefault(_elements(row), set()).add(row["activation"])
    at = max((n for n, there in names.items() if there == set(activations())), default=None)
    return [row for row in found if row["elements"] == at]


FIGURES: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "size": over_size,
    "activations": of_activations,
    "memory": of_memory,
}


def _elements(row: dict[str, Any]) -> int:
    return int(row["elements"])
