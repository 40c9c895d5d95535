"""What `convert` reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .hints import Hint


class Change(NamedTuple):
    """One line of a report: a module's name, what it was, and what it is or why it stays."""

    name: str
    was: str
    now: str


@dataclass
class ConversionReport:
    """What `convert` did: `print(report)` is a table.

    Attributes:
        replaced: the modules that were replaced: (name, was, now) of each.
        skipped: the activations and dropouts that stay: (name, was, why).
        hints: calls of activation functions that `convert` cannot replace, found by running the
            example: (name of the calling module, function, number of calls).

    Example:
        >>> from actreg_ext import convert
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.PReLU())
        >>> report = convert(model, l2=1e-4, dry_run=True)
        >>> report.replaced[0].name, report.replaced[0].was
        ('1', "GELU(approximate='none')")
        >>> print(report)
        replaced  1  GELU(approximate='none')  ActReg(gelu, l2=0.0001, keep=input, keeps=input)
        skipped   2  PReLU(num_parameters=1)   has no formula here
    """

    replaced: list[Change] = field(default_factory=list)
    skipped: list[Change] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a table with one line for each change."""
        rows = [("replaced", c.name, c.was, c.now) for c in self.replaced]
        rows += [("skipped", c.name, c.was, c.now) for c in self.skipped]
        rows += [("hint", h.name, h.function, f"a function, calls: {h.calls}") for h in self.hints]
        if not rows:
            return "no activation and no dropout found"
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        )
