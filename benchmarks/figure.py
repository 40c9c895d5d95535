"""The figure, as SVG: speed over size, with a band from the 20th to the 80th percentile.

It carries the digest of the results it was drawn from, so that a stale figure is found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from .providers import PROVIDERS
from .results import calls_of, digest

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = {
    "act_reg": "#0072B2",
    "eager": "#E69F00",
    "compile": "#009E73",
    "max-autotune": "#D55E00",
    "cooperative": "#CC79A7",
    "plain": "#B8B8B8",
    "copy": "#6F6F6F",
}
CASE = {"place": "call", "activation": "gelu", "dtype": "float32", "p": 0.1, "penalty": "both"}
BYTES = {"forward": 2 * 4, "backward": 3 * 4}  # for each element: x and y; x, dy and dx


def name_of(results: dict[str, Any]) -> str:
    """The file's name, or nothing if the results have fewer than three sizes."""
    sizes = {c.case["elements"] for c in calls_of(results) if CASE.items() <= c.case.items()}
    return f"{results['machine']['device']}-size.svg" if len(sizes) > 2 else ""


def draw(results: dict[str, Any], path: Path) -> None:
    calls = [call for call in calls_of(results) if CASE.items() <= call.case.items()]
    figure = Figure(figsize=(12, 5), layout="constrained")  # no pyplot: no global state
    figure.suptitle("Speed over size: gelu, L1, L2, dropout of 0.1, float32", fontsize=14)
    sides = figure.subplots(1, len(BYTES), sharey=True)
    for axes, (direction, bytes_each) in zip(sides, BYTES.items(), strict=True):
        part = [(c.case["elements"], c.rows) for c in calls if c.direction == direction]
        for name in (n for n in PROVIDERS if any(n in rows for _, rows in part)):
            line = sorted((n, rows[name]["seconds"]) for n, rows in part if name in rows)
            sizes = [elements for elements, _ in line]
            speed, fast, slow = ([n * bytes_each / s[i] / 1e9 for n, s in line] for i in range(3))
            axes.fill_between(sizes, slow, fast, color=COLOURS[name], alpha=0.15, lw=0)
            style: dict[str, Any] = {"ls": "--"} if name == "copy" else {"marker": "o", "ms": 4}
            style |= {"lw": 2.8 if name == "act_reg" else 1.6, "color": COLOURS[name]}
            axes.plot(sizes, speed, label=name, **style)
        axes.set(title=direction, xlabel="elements", yscale="log")
        axes.set_xscale("log", base=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    sides[0].set_ylabel("GB/s")
    handles, labels = sides[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "size", "svg.fonttype": "none"}):
        metadata = {"Description": f"results {digest(results)}", "Date": None}
        figure.savefig(path, metadata=metadata, bbox_inches="tight")


def is_current(path: Path, results: dict[str, Any]) -> bool:
    return path.exists() and f"results {digest(results)}" in path.read_text()
