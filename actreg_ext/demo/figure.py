"""The figure: learning curves, the train-test gap, how often units fire, and step times."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from .experiment import FUSED, PLAIN, UNREGULARIZED, VARIANTS, Setting
from .report import Report

# Colours of Okabe and Ito's palette, which colour-blind people can tell apart. ActReg's thin dark
# line is on top of plain PyTorch's wide light line, so both are visible where they coincide.
COLOUR = {UNREGULARIZED.name: "#6F6F6F", PLAIN.name: "#E69F00", FUSED.name: "#0072B2"}
WIDTH = {UNREGULARIZED.name: 2.0, PLAIN.name: 5.0, FUSED.name: 1.8}
INK = "#222222"


def draw(report: Report, setting: Setting, path: Path) -> None:
    """Draw the four panels and write them to `path`; its suffix chooses the format."""
    # A Figure object instead of pyplot: it needs no display and leaves no global state.
    figure = Figure(figsize=(12, 8.4), dpi=150, facecolor="white")
    grid = figure.subplots(2, 2)
    _curves(grid[0, 0], report)
    _gap(grid[0, 1], report)
    _activity(grid[1, 0], report)
    _times(grid[1, 1], report)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=10)
    title = f"Learning handwritten digits from {setting.train_images} images"
    figure.text(0.07, 0.95, title, fontsize=17, color=INK)
    figure.text(
        0.07, 0.922, setting.describe(len(report.runs[FUSED.name])), fontsize=10.5, color=INK
    )
    lines = [Line2D([], [], color=COLOUR[v.name], lw=WIDTH[v.name]) for v in VARIANTS]
    labels = [v.name for v in VARIANTS]
    figure.legend(
        lines,
        labels,
        loc="upper right",
        bbox_to_anchor=(0.985, 0.99),
        ncols=3,
        frameon=False,
        fontsize=12,
    )
    figure.subplots_adjust(0.07, 0.075, 0.97, 0.855, wspace=0.22, hspace=0.36)
    figure.savefig(path)


def _head(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(x, fontsize=11, color=INK)
    axes.set_ylabel(y, fontsize=11, color=INK)


def _curves(axes: Axes, report: Report) -> None:
    _head(axes, "Validation loss of each seed, and their mean", "epoch", "cross-entropy")
    for name, runs in report.runs.items():
        for run in runs:
            epochs = range(1, run.epochs + 1)
            axes.plot(epochs, run.validation_losses, color=COLOUR[name], lw=0.8, alpha=0.35)
        # The mean ends where the first seed stops, so it is always over all seeds.
        common = list(zip(*(run.validation_losses for run in runs), strict=False))
        line = [mean(losses) for losses in common]
        axes.plot(range(1, len(line) + 1), line, color=COLOUR[name], lw=WIDTH[name])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=0)


def _gap(axes: Axes, report: Report) -> None:
    _head(axes, "Accuracy on test (filled) and train (open) images", "accuracy, %", "")
    seeds = len(report.runs[FUSED.name])
    for row, (name, runs) in enumerate(report.runs.items()):
        for i, run in enumerate(runs):
            height = -row + 0.3 - 0.6 * i / (seeds - 1)
            accuracies = [run.test_accuracy, run.train_accuracy]
            axes.plot(accuracies, [height] * 2, lw=1.5, alpha=0.6, color=COLOUR[name])
            for accuracy, fill in zip(accuracies, (COLOUR[name], "white"), strict=True):
                axes.plot(accuracy, height, "o", ms=6, color=COLOUR[name], mfc=fill, zorder=3)
        gap = report.mean(name, lambda run: run.accuracy_gap)
        axes.text(
            1.0,
            -row + 0.43,
            f"gap {gap:.1f} points",
            ha="right",
            color=INK,
            fontsize=11,
            transform=axes.get_yaxis_transform(),
        )
    axes.set_yticks([0, -1, -2], [v.name for v in VARIANTS], fontsize=11)
    axes.set_ylim(-2.5, 0.65)


def _activity(axes: Axes, report: Report) -> None:
    _head(axes, "How often each hidden unit fires", "hidden units, sorted, %", "test images, %")
    for name, runs in report.runs.items():
        activity = torch.stack([run.activity.sort(descending=True).values for run in runs]).mean(0)
        share = torch.linspace(0, 100, len(activity))
        axes.plot(share, activity, color=COLOUR[name], lw=WIDTH[name])
    for i, name in enumerate(report.runs):
        inactive = report.mean(name, lambda run: run.inactive)
        axes.text(
            0.98,
            0.94 - 0.07 * i,
            f"{name}: {inactive:.0f} % of the activations are 0",
            ha="right",
            color=COLOUR[name],
            fontsize=11,
            transform=axes.transAxes,
        )
    axes.set_xlim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylim(0, 128)


def _times(axes: Axes, report: Report) -> None:
    _head(axes, "Time of each training step, and the median", "milliseconds", "")
    for row, (name, times) in enumerate(report.times.items()):
        milliseconds = [1e3 * seconds for seconds in times]
        heights = [-row + 0.25 * ((0.618 * i) % 1 - 0.5) for i in range(len(times))]
        axes.plot(milliseconds, heights, "o", ms=5, alpha=0.35, mew=0, color=COLOUR[name])
        middle = median(milliseconds)
        axes.plot([middle] * 2, [-row - 0.27, -row + 0.27], color=INK, lw=2)
        axes.text(middle, -row + 0.32, f"{middle:.1f}", ha="center", color=INK, fontsize=11)
    # Limit the axis, so that one interrupted step does not squeeze all other points together.
    slowest = max(median(times) for times in report.times.values())
    axes.set_xlim(0, 1e3 * min(2 * slowest, 1.05 * max(map(max, report.times.values()))))
    axes.set_yticks([0, -1, -2], [v.name for v in VARIANTS], fontsize=11)
    axes.set_ylim(-2.5, 0.65)
