"""Markdown tables and templates, for the benchmark and for tools/: needs no PyTorch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

BLOCKS: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}  # a tag leaves no empty line


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Nothing if there is no line. A column without any cell is left out."""
    lines = [list(line) for line in lines]
    used = [i for i in range(len(head)) if any(line[i] for line in lines)]
    rows = [[line[i] for i in used] for line in (head, ["---"] * len(head), *lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) if lines else ""


def aligned(text: str) -> str:
    """The table for a terminal."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "---" not in line]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, row, widths)) for row in rows)


def rendered(template: Path, **values: Any) -> str:
    """A page from its jinja2 template. What is empty there leaves no empty lines."""
    made = jinja2.Template(template.read_text(), undefined=jinja2.StrictUndefined, **BLOCKS)
    return re.sub(r"\n{3,}", "\n\n", made.render(values)).strip("\n") + "\n"
