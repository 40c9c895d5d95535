"""The Python examples of README.md and docs/ run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# docs/benchmarks.md shows excerpts of a file.
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "benchmarks.md"),
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: page.name
)
def test_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of a page run one after another, in one namespace."""
    names: dict[str, object] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)
    capsys.readouterr()


def test_there_are_examples() -> None:
    """The test above must not pass because it finds nothing."""
    assert len(BLOCK.findall((ROOT / "README.md").read_text())) >= 2
