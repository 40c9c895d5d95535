"""Writes README.md's performance section and docs/performance.md from results files.

python -m benchmarks.report [results/cpu.json ...] [--check]

Without a file it takes all of results/. --check writes nothing and returns 1 where what is written
differs from what the results say. No figure is written by hand. benchmarks/overhead.md and
benchmarks/instructions.md, which the programs of these names write, and benchmarks/notes.md, which
a person does, go verbatim to the end of docs/performance.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from .machine import ROOT
from .results import Unfit, check_device, is_part, load, whole

README, PAGE = Path("README.md"), Path("docs/performance.md")
FIGURES = Path("docs/figures")
NOTES = tuple(Path("benchmarks", f"{name}.md") for name in ("overhead", "instructions", "notes"))
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
PRESETS = {"cpu": ("published", "reused"), "cuda": ("published", "gpu")}


def files(root: Path) -> list[Path]:
    return sorted((root / "results").glob("*.json"))


def read(paths: list[Path]) -> list[dict[str, Any]]:
    """The CPU's first, reused memory last; raises Unfit for what the pages must not show."""
    found = [load(path) for path in paths]
    for results, path in zip(found, paths, strict=True):
        check_device(results, path)
        device = results["machine"]["device"]
        if results["preset"] not in PRESETS[device]:
            raise Unfit(f"{path} is of the preset {results['preset']}: {PRESETS[device]} can stand")
    devices = sorted(results["machine"]["device"] for results in whole(found))
    if devices not in (["cpu"], ["cpu", "cuda"]) or len(found) > len(devices) + 1:
        raise Unfit(f"the pages show a CPU and a GPU, not {devices}: name the files to take")
    return sorted(found, key=lambda results: (is_part(results), results["machine"]["device"]))


def rendered(found: list[dict[str, Any]], root: Path) -> dict[Path, str]:
    """What the two files have to be."""
    from . import pages  # which needs matplotlib and rich

    readme = (root / README).read_text()
    parts = re.split(f"({BEGIN}\n)|({END})", readme)
    if [part for part in parts if part in (BEGIN + "\n", END)] != [BEGIN + "\n", END]:
        raise Unfit(f"{README} has not one {BEGIN} and {END}")
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    section = pages.section(found, FIGURES.as_posix())
    notes = [path.read_text() for name in NOTES if (path := root / name).exists()]
    page = pages.page(found, FIGURES.name, notes)
    return {README: f"{before}{BEGIN}\n{section}{END}{after}", PAGE: page}


def stale(found: list[dict[str, Any]], root: Path) -> list[str]:
    """The files that are not what the results make of them."""
    from .figures import expected, is_current

    texts = rendered(found, root)
    old = [
        str(path)
        for path, text in texts.items()
        if not (root / path).exists() or (root / path).read_text() != text
    ]
    for results in whole(found):
        wanted = [root / FIGURES / name for name in expected(results)]
        old += [str(path.relative_to(root)) for path in wanted if not is_current(path, results)]
    return old


def write(found: list[dict[str, Any]], root: Path) -> list[Path]:
    from .figures import draw_all

    written = []
    for path, text in rendered(found, root).items():
        (root / path).write_text(text)
        written.append(root / path)
    for results in whole(found):
        written += draw_all(results, root / FIGURES)
    return written


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="all of results/ if none is given")
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the checkout")
    options = parser.parse_args(argv)
    try:
        found = read(options.results or files(options.root))
        if options.check:
            old = stale(found, options.root)
            print("\n".join(f"stale: {path}" for path in old) or "all is as the results say")
            return 1 if old else 0
        for path in write(found, options.root):
            print(path)
    except Unfit as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
