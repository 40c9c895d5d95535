"""Writes docs/accuracy.md from what tools/ulp.py found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import markdown
from tests import table

PATH = Path(__file__).parents[1] / "docs" / "accuracy.md"
DTYPES = ("float64", "float16", "bfloat16")


class Row(NamedTuple):
    name: str
    whole: Any  # what was found in values and in slopes
    bent: Any  # the same, where activations bend
    others: list[Any]  # for each of DTYPES


def number(worst: float) -> str:
    """Rounded up, to two decimals or three digits."""
    if not math.isfinite(worst):
        return "inf"
    if worst < 100:
        return f"{math.ceil(worst * 100) / 100:g}"
    unit = 10 ** (math.floor(math.log10(worst)) - 2)
    return f"{math.ceil(worst / unit) * unit:.3g}"


def cells(founds: Any) -> list[str]:
    return [number(found.worst) for found in founds]


def float32_table(rows: list[Row], eager: list[Row] | None) -> str:
    columns = ["activation", "value", "value at x =", "nearest"]
    columns += ["slope", "slope at x =", "slope nearest"]
    columns += ["PyTorch's value", "PyTorch's slope"] if eager else []
    lines = []
    for i, row in enumerate(rows):
        line = [f"`{row.name}`"]
        for found, bent in zip(row.whole, row.bent, strict=True):
            at = f"{found.at:.9g}" if found.worst else ""
            line += [number(found.worst), at, f"{100 * bent.nearest / bent.count:.1f} %"]
        lines.append(line + cells(eager[i].whole if eager else ()))
    return markdown.table(columns, lines)


def output_table(ours: list[Row], eager: list[Row]) -> str:
    columns = ["activation", "ulps", "at x =", "ulps of 1", "these at x ="]
    columns += ["PyTorch's ulps", "PyTorch's of 1"]
    lines = []
    for row, other in zip(ours, eager, strict=True):
        line = [cell for found in row.whole for cell in (number(found.worst), f"{found.at:.9g}")]
        lines.append([f"`{row.name}`", *line, *cells(other.whole)])
    return markdown.table(columns, lines)


def others_table(rows: list[Row]) -> str:
    columns = [f"{dtype} {what}" for dtype in DTYPES for what in ("value", "slope")]
    lines = [
        [f"`{row.name}`", *(cell for pair in row.others for cell in cells(pair))] for row in rows
    ]
    return markdown.table(["activation", *columns], lines)


def page(
    ours: dict[str, list[Row]], eager: list[Row], of_output: tuple[list[Row], list[Row]]
) -> str:
    """docs/accuracy.md; the best instruction set comes first in `ours`."""
    best = next(iter(ours))
    tables = {
        f"float32, {name}": float32_table(rows, eager if name == best else None)
        for name, rows in ours.items()
    }
    for name, rows in {**ours, "PyTorch": eager}.items():
        tables[f"Other dtypes, {name}"] = others_table(rows)
    tables[f"Slopes from the output, float32, {best}"] = output_table(*of_output)
    return markdown.rendered(
        Path(__file__).with_name("accuracy.md.j2"),
        best=best,
        example=next((row for row in ours[best] if row.name == "gelu"), ours[best][0]),
        number=number,
        required=[table.describe(variant) for variant in table.PLAIN if len(variant) > 1],
        of_output=[row.name for row in of_output[0]],
        torch=torch.__version__.split("+")[0],
        tables=tables,
    )
