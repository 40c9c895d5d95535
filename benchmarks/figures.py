"""The figures: speed over size, a bar for each activation, and memory; as PNG and SVG.

Each carries the digest of the results it was drawn from, by which a stale one is found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from actreg_ext import activations

from .providers import ALL, PROVIDERS
from .results import digest, rows
from .table import headline, size

# Of Okabe and Ito, which colour-blind people tell apart.
COLOURS = {
    "floor": "#6F6F6F",
    "fused": "#0072B2",
    "fused-compile": "#56B4E9",
    "eager": "#E69F00",
    "compile": "#009E73",
    "max-autotune": "#D55E00",
    "cooperative": "#CC79A7",
    "activation": "#B8B8B8",
    "triton-dropout": "#8C6D31",
    "liger": "#7B5EA7",
}
LABELS = {
    "floor": "the memory alone: clone, add",
    "fused": "act_reg",
    "fused-compile": "act_reg, compiled",
    "eager": "plain PyTorch",
    "compile": "torch.compile",
    "max-autotune": "torch.compile, max-autotune",
    "cooperative": "torch.compile, cooperative reductions",
    "activation": "does less: the activation alone",
    "triton-dropout": "does less: Triton's dropout alone",
    "liger": "does less: Liger's activation alone",
}
INK = "#222222"
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
    figure, panels = _panels(
        results, "Speed over size: gelu, L1, L2 and dropout of 0.1, float32", 2
    )
    for axes, direction in zip(panels, ("forward", "backward"), strict=True):
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
        _head(axes, direction, "elements", "GB/s")
    _legend(figure, panels[0])
    return figure


def of_activations(results: dict[str, Any]) -> Figure | None:
    """Time in multiples of the floor's, which the bars begin at, activation by activation."""
    found = [row for row in every_activation(results) if "floors" in row]
    ours = [r for r in found if r["provider"] == "fused" and r["direction"] == "forward"]
    if not ours:
        return None
    names = [row["activation"] for row in sorted(ours, key=lambda row: row["floors"][0])]
    title = f"Each activation, with L1, L2 and dropout of 0.1: float32, {size(_elements(ours[0]))}"
    figure, panels = _panels(results, f"{title} elements", 2, height=9.0)
    shown = [name for name in providers_in(found) if PROVIDERS[name].does == ALL]
    for axes, direction in zip(panels, ("forward", "backward"), strict=True):
        part = [row for row in found if row["direction"] == direction]
        _bars(axes, names, shown, part, lambda row: row["floors"], start=1)
        axes.axvline(1, color=COLOURS["floor"], ls="--", lw=1.6, label=LABELS["floor"])
        axes.set_xscale("log")
        _head(axes, direction, "time as a multiple of the memory's alone", "")
    _legend(figure, panels[0])
    return figure


def of_memory(results: dict[str, Any]) -> Figure | None:
    """Bytes for each element, kept for backward and at the most at one time."""
    found = [r for r in every_activation(results) if "saved" in r and r["direction"] == "forward"]
    names = list(dict.fromkeys(row["activation"] for row in found))
    if not names:
        return None
    title = "Memory of a call: L1, L2 and dropout of 0.1, float32"
    figure, panels = _panels(results, title, 2, height=9.0)
    for axes, key in zip(panels, ("saved", "peak"), strict=True):
        _bars(axes, names, providers_in(found), found, lambda row: [row[key] / _elements(row)])  # noqa: B023
        head = {"saved": "kept for backward", "peak": "peak of forward and backward"}[key]
        _head(axes, head, "bytes for each element", "")
    _legend(figure, panels[0])
    return figure


def every_activation(results: dict[str, Any]) -> Rows:
    """The rows of the largest size at which all activations were measured; none if never."""
    found = pick(results, place="call", dtype="float32", p=0.1, penalty="both")
    names: dict[int, set[str]] = {}
    for row in found:
        names.setdefault(_elements(row), set()).add(row["activation"])
    at = max((n for n, there in names.items() if there == set(activations())), default=None)
    return [row for row in found if row["elements"] == at]


def _bars(
    axes: Axes,
    names: list[str],
    shown: list[str],
    found: Rows,
    value: Callable[[dict[str, Any]], list[float]],
    start: float = 0.0,
) -> None:
    """For each name one bar of each provider, with the spread where there is one."""
    width = 0.8 / len(shown)
    for i, provider in enumerate(shown):
        part = {r["activation"]: value(r) for r in found if r["provider"] == provider}
        here = [(k, part[name]) for k, name in enumerate(names) if name in part]
        at = [k + (i - (len(shown) - 1) / 2) * width for k, _ in here]
        middle = [v[0] - start for _, v in here]
        axes.barh(at, middle, width, start, color=COLOURS[provider], label=LABELS[provider])
        spreads = [(y, v[1], v[2]) for y, (_, v) in zip(at, here, strict=True) if len(v) == 3]
        if spreads:
            axes.hlines(*zip(*spreads, strict=True), color=INK, lw=0.7)
    is_left = axes.get_subplotspec().is_first_col()  # type: ignore[union-attr]
    axes.set_yticks(range(len(names)), names if is_left else [""] * len(names))
    axes.invert_yaxis()
    axes.margins(y=0.01)


FIGURES: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "size": over_size,
    "activations": of_activations,
    "memory": of_memory,
}


def _elements(row: dict[str, Any]) -> int:
    return int(row["elements"])


def _panels(
    results: dict[str, Any], title: str, count: int, height: float = 5.6
) -> tuple[Figure, list[Axes]]:
    # A Figure of its own, not pyplot: no window system, no state left behind.
    figure = Figure(figsize=(12, height), facecolor="white")
    panels = list(figure.subplots(1, count).flat)
    figure.suptitle(title, x=0.07, y=1 - 0.18 / height, ha="left", va="top", fontsize=16, color=INK)
    where = headline(results["machine"])
    figure.text(0.07, 1 - 0.56 / height, where, va="top", fontsize=9.5, color=INK)
    bottom, top = 0.62 / height, 1 - 1.52 / height
    figure.subplots_adjust(0.1, bottom, 0.98, top, wspace=0.12)
    return figure, panels


def _head(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=INK)
    axes.set_xlabel(x, fontsize=11, color=INK)
    axes.set_ylabel(y, fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=10)
    axes.grid(axis="x" if not y else "both", alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    height = figure.get_figheight()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.06, 1 - 0.74 / height),
        ncols=len(labels),
        frameon=False,
        fontsize=10.5,
        columnspacing=1.2,
    )
