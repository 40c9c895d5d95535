"""docs/accuracy.md from what tools/ulp.py found; and the numbers in it, for the tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import markdown
from tests import table

PATH = Path(__file__).parents[1] / "docs" / "accuracy.md"
DTYPES = ("float64", "float16", "bfloat16")
HEAD = """\
# Accuracy

The largest errors of the CPU's kernels, in ulps (units in the last place) of the exact result,
found and written here by `make ulp`. For {best}, **every** finite number of float32 was tried; for
what stands below it and for PyTorch every 17th. Of float16 and bfloat16 all were tried, of float64
2^20 random ones, three in four of them 2^-10 to 2^9.5 in size and the others of any exponent, so
that there may be larger errors. Parameters are the defaults{required}.

- *Value* is y = act(x) without penalties and dropout, *slope* is dx for dy = 1, computed from x. In
  float32, without dropout, backward of {of_output} has y and not x:
  the last table, in ulps and in ulps of 1, the largest slope.
- One ulp is the distance of the dtype's neighbouring numbers around the exact result, also where
  these are denormal. Infinity is where the number after the largest would be. NaN that should be
  a number is off by inf.
- The slopes of gelu, gelu_tanh, silu and mish are sums, gate + x * gate', that change their sign.
  There no number of ulps of the sum bounds the errors that the rounding of its terms makes: they
  are counted in ulps of the gate, where that is larger than the slope.
- *Nearest*: how many results are the number nearest to the exact one, for x of size 2^-10 to 2^7,
  where activations bend.
- Errors are rounded up. The exact results, by [tests/exact.cpp](../tests/exact.cpp), are float64
  (for float64 quadruple precision) from other formulas than the kernels'.
- PyTorch is PyTorch {torch} as it is, on the same processor.
"""


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


def table_of(title: str, columns: list[str], rows: list[list[str]]) -> str:
    return f"\n## {title}\n\n{markdown.table(['', *columns], rows)}\n"


def float32_table(title: str, rows: list[Row], eager: list[Row] | None) -> str:
    columns = ["value", "value at x =", "nearest", "slope", "slope at x =", "slope nearest"]
    columns += ["PyTorch's value", "PyTorch's slope"] if eager else []
    lines = []
    for i, row in enumerate(rows):
        line = [f"`{row.name}`"]
        for found, bent in zip(row.whole, row.bent, strict=True):
            at = f"{found.at:.9g}" if found.worst else ""
            line += [number(found.worst), at, f"{100 * bent.nearest / bent.count:.1f} %"]
        lines.append(line + [number(found.worst) for found in (eager[i].whole if eager else ())])
    return table_of(f"float32, {title}", columns, lines)


def output_table(title: str, ours: list[Row], eager: list[Row]) -> str:
    columns = ["ulps", "at x =", "ulps of 1", "these at x =", "PyTorch's ulps", "PyTorch's of 1"]
    lines = []
    for row, other in zip(ours, eager, strict=True):
        line = [f"`{row.name}`"]
        for found in row.whole:
            line += [number(found.worst), f"{found.at:.9g}"]
        lines.append(line + [number(found.worst) for found in other.whole])
    return table_of(f"Slopes from the output, float32, {title}", columns, lines)


def others_table(title: str, rows: list[Row]) -> str:
    columns = [f"{dtype} {what}" for dtype in DTYPES for what in ("value", "slope")]
    lines = [
        [f"`{row.name}`", *(number(found.worst) for pair in row.others for found in pair)]
        for row in rows
    ]
    return table_of(f"Other dtypes, {title}", columns, lines)


def page(
    ours: dict[str, list[Row]], eager: list[Row], of_output: tuple[list[Row], list[Row]]
) -> str:
    """The whole page; the instruction set that comes first is the best."""
    best = next(iter(ours))
    required = [f", {table.describe(variant)}" for variant in table.PLAIN if len(variant) > 1]
    version = torch.__version__.split("+")[0]
    names = ", ".join(row.name for row in of_output[0])
    text = HEAD.format(best=best, required="".join(required), torch=version, of_output=names)
    for name, rows in ours.items():
        text += float32_table(name, rows, eager if name == best else None)
    for name, rows in {**ours, "PyTorch": eager}.items():
        text += others_table(name, rows)
    return text + output_table(best, *of_output)


def keyed(text: str) -> list[tuple[str, str]]:
    """The page's lines, each with the table and the activation if it is a row."""
    title, lines = "", []
    for line in text.splitlines():
        title = line if line.startswith("## ") else title
        lines.append((title + line.split("`")[1] if line.startswith("| `") else "", line))
    return lines


def updated(old: str, new: str) -> str:
    """The old page, with the rows that the new one has."""
    rows = {key: line for key, line in keyed(new) if key}
    return "".join(rows.get(key, line) + "\n" for key, line in keyed(old))


def limits(text: str) -> dict[str, dict[str, dict[str, str]]]:
    """Of each table, of each activation, of each column: what the page says."""
    found = {}
    for section in text.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if line]
        columns, _, *rows = cells
        found[title] = {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}
    return found
