"""The progress bar, the table and the verdict on the claims, printed with rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import mean, median, stdev

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .experiment import FUSED, PLAIN, UNREGULARIZED, VARIANTS
from .training import Run

HEADERS = (
    "test\naccuracy",
    "train-test\ngap",
    "loss\ngap",
    "inactive\nunits",
    "training\nstep",
    "epochs\nto stop",
)

console = Console()


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str, int | None], None]]:
    """Show a progress bar on stderr.

    Yields:
        step(label, count): shows the label and the epoch or round `count`; count None advances the
        bar by one of `total`.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=total)

        def step(label: str, count: int | None) -> None:
            if count is None:
                progress.advance(task)
            else:
                progress.update(task, description=f"{label}, {count}")

        yield step


class Report:
    """The results of all runs, their statistics, and whether the claims hold.

    Args:
        runs: the runs of all variants, each with the same order of seeds.
        times: name of the variant -> seconds of the timed step in each round.
    """

    def __init__(self, runs: Sequence[Run], times: dict[str, list[float]]) -> None:
        self.runs = {v.name: [run for run in runs if run.variant == v.name] for v in VARIANTS}
        self.times = times
        self.claims = (self._agreement(), self._smaller_gap())
        self.holds = all(holds for holds, _ in self.claims)

    def mean(self, variant: str, what: Callable[[Run], float]) -> float:
        """The mean over the seeds."""
        return mean(what(run) for run in self.runs[variant])

    def spread(self, variant: str, what: Callable[[Run], float]) -> float:
        """The standard deviation over the seeds."""
        return stdev(what(run) for run in self.runs[variant])

    def speedup(self, slow: str, fast: str) -> float:
        """The time of `slow` divided by the time of `fast`: the median over the rounds."""
        return median(a / b for a, b in zip(self.times[slow], self.times[fast], strict=True))

    def added(self, variant: str) -> float:
        """The seconds that a variant adds to the unregularized step: the median over the rounds."""
        pairs = zip(self.times[variant], self.times[UNREGULARIZED.name], strict=True)
        return median(a - b for a, b in pairs)

    def print(self) -> None:
        """Print the table, a sentence on the times, and whether the claims hold."""
        console.print(self._table())
        console.print(
            f"Regularizing adds {1e3 * self.added(PLAIN.name):.1f} ms to a step in plain PyTorch "
            f"and {1e3 * self.added(FUSED.name):.1f} ms with ActReg. The whole step, matrix "
            f"products included, is {self.speedup(PLAIN.name, FUSED.name):.2f} times as fast with "
            f"ActReg (medians of {len(self.times[FUSED.name])} interleaved pairs, "
            f"threads: {torch.get_num_threads()}).",
            highlight=False,
        )
        if any(median(times) > 3 * min(times) for times in self.times.values()):
            console.print("Other work kept this machine busy: trust the ratio, not the times.")
        for holds, text in self.claims:
            mark = "[bold green]Yes[/]" if holds else "[bold red]No[/]"
            console.print(f"{mark}: {text}", highlight=False)

    def _table(self) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            caption="Mean ± standard deviation over the seeds. Gaps: points of accuracy, and "
            "cross-entropy. Inactive: hidden activations that are 0 on test images. Step: median.",
            caption_justify="left",
        )
        table.add_column(no_wrap=True)
        for header in HEADERS:
            table.add_column(header, justify="right", no_wrap=True)
        for name in (v.name for v in VARIANTS):
            table.add_row(
                name,
                self._cell(name, lambda run: run.test_accuracy, ".1f", " %"),
                self._cell(name, lambda run: run.accuracy_gap, ".1f", ""),
                f"{self.mean(name, lambda run: run.loss_gap):.3f}",
                f"{self.mean(name, lambda run: run.inactive):.0f} %",
                f"{1e3 * median(self.times[name]):.1f} ms",
                self._cell(name, lambda run: run.epochs, ".0f", ""),
            )
        return table

    def _cell(self, name: str, what: Callable[[Run], float], digits: str, unit: str) -> str:
        return f"{self.mean(name, what):{digits}} ± {self.spread(name, what):{digits}}{unit}"

    def _agreement(self) -> tuple[bool, str]:
        plain, fused = (self.mean(v.name, lambda r: r.test_accuracy) for v in (PLAIN, FUSED))
        spreads = [self.spread(v.name, lambda r: r.test_accuracy) for v in (PLAIN, FUSED)]
        # The claim holds if the intervals of the table overlap. The two variants have different
        # masks, so two trainings of one seed differ as much as trainings of two seeds.
        holds = abs(plain - fused) <= sum(spreads)
        relation = "is the same within the spread" if holds else "differs by more than the spread"
        return holds, (
            f"test accuracy {relation}: {plain:.2f} ± {spreads[0]:.2f} % in plain PyTorch, "
            f"{fused:.2f} ± {spreads[1]:.2f} % with ActReg."
        )

    def _smaller_gap(self) -> tuple[bool, str]:
        none, plain, fused = (self.mean(v.name, lambda r: r.accuracy_gap) for v in VARIANTS)
        holds = max(plain, fused) < none
        relation = "overfit less than" if holds else "do not both overfit less than"
        return holds, (
            f"the regularized networks {relation} the other: the gap between train and test "
            f"accuracy is {plain:.1f} (plain) and {fused:.1f} (ActReg) points instead "
            f"of {none:.1f}."
        )
