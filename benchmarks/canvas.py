"""How the figures look: colours, panels, bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .table import headline

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


def panels(
    results: dict[str, Any], title: str, count: int, height: float = 5.6
) -> tuple[Figure, list[Axes]]:
    # A Figure of its own, not pyplot: no window system, no state left behind.
    figure = Figure(figsize=(12, height), facecolor="white")
    sides = list(figure.subplots(1, count).flat)
    figure.suptitle(title, x=0.07, y=1 - 0.18 / height, ha="left", va="top", fontsize=16, color=INK)
    where = headline(results["machine"])
    figure.text(0.07, 1 - 0.56 / height, where, va="top", fontsize=9.5, color=INK)
    bottom, top = 0.62 / height, 1 - 1.52 / height
    figure.subplots_adjust(0.1, bottom, 0.98, top, wspace=0.12)
    return figure, sides


def head(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=INK)
    axes.set_xlabel(x, fontsize=11, color=INK)
    axes.set_ylabel(y, fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=10)
    axes.grid(axis="x" if not y else "both", alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)


def legend(figure: Figure, axes: Axes) -> None:
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


def bars(
    axes: Axes,
    names: list[str],
    shown: list[str],
    found: list[dict[str, Any]],
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
