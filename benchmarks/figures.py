"""The figures, as SVG: speed over size, and the time of each activation.

Each figure carries the digest of the results it was drawn from, so that a stale one is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cases import EVERY, size
from .providers import PROVIDERS
from .results import Call, calls_of, digest

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = {
    "act_reg": "#0072B2",
    "act_reg-compile": "#56B4E9",
    "eager": "#E69F00",
    "compile": "#009E73",
    "max-autotune": "#D55E00",
    "cooperative": "#CC79A7",
    "plain": "#B8B8B8",
    "copy": "#6F6F6F",
}
SIDES = ("forward", "backward")
PASSES = {"forward": 2, "backward": 3}  # over the memory: x and y; x, dy and dx
WHAT = "L1, L2, dropout of 0.1, float32"


def path_of(results: dict[str, Any], name: str) -> str:
    return f"{results['machine']['device']}-{name}.svg"


def expected(results: dict[str, Any]) -> list[str]:
    """The names of the files that `draw_all` writes."""
    return [path_of(results, name) for name, draw in FIGURES.items() if draw(calls_of(results))]


def draw_all(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw those for which there are results."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        if figure := draw(calls_of(results)):
            path = folder / path_of(results, name)
            with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
                metadata = {"Description": f"results {digest(results)}", "Date": None}
                figure.savefig(path, metadata=metadata, bbox_inches="tight")
            written.append(path)
    return written


def is_current(path: Path, results: dict[str, Any]) -> bool:
    """Whether the figure was drawn from these results."""
    return path.exists() and f"results {digest(results)}" in path.read_text()


def panels(title: str, heads: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(12, height), layout="constrained")  # no pyplot: no global state
    figure.suptitle(title, fontsize=14)
    sides = list(figure.subplots(1, len(heads), sharey=True))
    for axes, head in zip(sides, heads, strict=True):
        axes.set_title(head)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure, sides


def legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def over_size(calls: list[Call]) -> Figure | None:
    """GB/s, with a band from the 20th to the 80th percentile."""
    wanted = {"place": "call", "activation": "gelu", "dtype": "float32", "p": 0.1}
    wanted["penalty"] = "both"
    found = [call for call in calls if wanted.items() <= call.case.items()]
    if len({call.case["elements"] for call in found}) < 3:
        return None
    figure, sides = panels(f"Speed over size: gelu, {WHAT}", SIDES, 5)
    for axes in sides:
        part = [call for call in found if call.direction == axes.get_title()]
        for name in (n for n in PROVIDERS if any(n in call.rows for call in part)):
            line = sorted((c.case["elements"], c.rows[name]) for c in part if name in c.rows)
            at = [elements for elements, _ in line]
            speeds, fast, slow = (
                [PASSES[axes.get_title()] * n * 4 / row["seconds"][i] / 1e9 for n, row in line]
                for i in range(3)
            )
            axes.fill_between(at, slow, fast, color=COLOURS[name], alpha=0.15, lw=0)
            style: dict[str, Any] = {"ls": "--"} if name == "copy" else {"marker": "o", "ms": 4}
            width = 2.8 if name == "act_reg" else 1.6
            axes.plot(at, speeds, color=COLOURS[name], lw=width, label=name, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("elements")
    sides[0].set_ylabel("GB/s")
    legend(figure, sides[0])
    return figure


def of_activations(calls: list[Call]) -> Figure | None:
    """Time as a multiple of a copy's, at the largest size at which all activations were timed."""
    wanted = {"place": "call", "dtype": "float32", "p": 0.1, "penalty": "both"}
    sizes: dict[int, dict[str, list[Call]]] = {}
    for call in calls:
        if wanted.items() <= call.case.items() and "per_copy" in call.rows["act_reg"]:
            sides_of = sizes.setdefault(call.case["elements"], {})
            sides_of.setdefault(call.direction, []).append(call)
    sizes = {n: of for n, of in sizes.items() if len(of.get(SIDES[0], ())) >= len(EVERY)}
    if not sizes:
        return None
    elements, of = max(sizes.items())
    order = sorted(of[SIDES[0]], key=lambda call: call.rows["act_reg"]["per_copy"][0])
    names = [call.case["activation"] for call in order]
    title = f"Time, copy = 1: {WHAT}, {size(elements)} elements"
    figure, sides = panels(title, SIDES, 9)
    for axes in sides:
        shown = [n for n, provider in PROVIDERS.items() if provider.regularizes]
        shown = [n for n in shown if all(n in call.rows for call in of[axes.get_title()])]
        shown.remove("copy")
        for i, provider in enumerate(shown):
            found = {c.case["activation"]: c.rows[provider] for c in of[axes.get_title()]}
            middle, low, high = zip(*(found[name]["per_copy"] for name in names), strict=True)
            at = [y + (i + 0.5) * 0.8 / len(shown) - 0.4 for y in range(len(names))]
            axes.barh(at, middle, 0.8 / len(shown), color=COLOURS[provider], label=provider)
            axes.hlines(at, low, high, color="#222222", lw=0.7)
        axes.axvline(1, color=COLOURS["copy"], ls="--", label="copy")
        axes.set_xscale("log")
    sides[0].set_yticks(range(len(names)), names)
    sides[0].set_ylim(len(names) - 0.5, -0.5)
    legend(figure, sides[0])
    return figure


FIGURES: dict[str, Callable[[list[Call]], Figure | None]] = {
    "size": over_size,
    "activations": of_activations,
}
