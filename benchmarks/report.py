"""Writes README.md's performance section and docs/performance.md from results files.

python -m benchmarks.report [results/cpu.json ...] [--check]

Without arguments it takes all of results/. --check writes nothing and exits with 1 if a page is
not what the results say. The prose is in benchmarks/readme.md.j2 and benchmarks/performance.md.j2.
No number is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from . import figure, tables
from .machine import ROOT
from .markdown import rendered
from .providers import PROVIDERS
from .results import ADDITIONS, Call, Unfit, calls_of, check_device, load, wrong

HERE = Path(__file__).parent
README, PAGE, FIGURES = Path("README.md"), Path("docs/performance.md"), Path("docs/figures")
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
PRESETS = {"cpu": ("published", "reused", "steps"), "cuda": ("published", "gpu")}
BUSY = 0.5  # of the cores


class Part:
    """What the templates show of one results file."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results, self.machine, self.calls = results, results["machine"], calls_of(results)
        self.is_gpu = self.machine["device"] == "cuda"
        self.steps = [call for call in self.calls if call.direction == "step"]
        self.networks = [call for call in self.calls if call.case["place"] != "call"]
        self.figure, self.wrong = figure.name_of(results), wrong(results)
        # The load before the session, of which the session was no part.
        load = self.machine["before"].get("load") or 0.0
        self.is_busy = not self.is_gpu and load >= BUSY * self.machine["cpus"]

    def slice(self, title: str) -> list[Call]:
        return [call for call in self.calls if title in call.slices]

    def setting(self, title: str) -> str:
        """What was measured in a slice."""
        lines = [line for line in self.results["slices"] if line.startswith(f"{title}: ")]
        return "; ".join(line.removeprefix(f"{title}: ") for line in lines)

    def where(self) -> str:
        machine = self.machine
        driver = machine["before"].get("nvidia_smi", {}).get("driver_version", "unknown")
        threads = (
            f"{machine['instructions']}, {machine['threads']} threads, {machine['cpus']} cores"
        )
        what = f"driver {driver}" if self.is_gpu else threads
        return f"{machine['name']}, {what}, torch {machine['torch']}"


def files(root: Path) -> list[Path]:
    return sorted((root / "results").glob("*.json"))


def read(paths: list[Path]) -> list[dict[str, Any]]:
    """Raises Unfit for what the pages must not show."""
    found = [load(path) for path in paths]
    for results, path in zip(found, paths, strict=True):
        check_device(results, path)
        device = results["machine"]["device"]
        if results["preset"] not in PRESETS[device]:
            raise Unfit(f"{path} has the preset {results['preset']}, not one of {PRESETS[device]}")
    kinds = sorted((results["machine"]["device"], results["preset"]) for results in found)
    devices = [device for device, preset in kinds if preset not in ADDITIONS]
    if devices not in (["cpu"], ["cpu", "cuda"]) or len(kinds) > len(set(kinds)):
        raise Unfit(f"the pages show one CPU and at most one GPU, each preset once, not {kinds}")
    return found


def texts(found: list[dict[str, Any]], root: Path) -> dict[Path, str]:
    """What the two pages have to be."""
    parts = [Part(results) for results in found]
    by_preset = {part.results["preset"]: part for part in parts if not part.is_gpu}
    cpu = by_preset["published"]
    notes = {}
    for name in ("overhead", "instructions"):
        path = root / "benchmarks" / f"{name}.md"
        notes[name] = path.read_text() if path.exists() else ""
    values = {
        "cpu": cpu,
        "gpu": next((part for part in parts if part.is_gpu), None),
        "reused": by_preset.get("reused"),
        "steps": by_preset.get("steps", cpu),
        "tables": tables,
        "providers": PROVIDERS,
        **notes,
    }
    readme = (root / README).read_text()
    if re.findall(f"{BEGIN}|{END}", readme) != [BEGIN, END]:
        raise Unfit(f"{README} has not exactly one {BEGIN} and one {END} behind it")
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    section = rendered(HERE / "readme.md.j2", **values)
    page = rendered(HERE / "performance.md.j2", **values)
    return {README: f"{before}{BEGIN}\n{section}{END}{after}", PAGE: page}


def stale(found: list[dict[str, Any]], root: Path) -> list[str]:
    """The files that are not what the results say."""
    old = [
        str(path)
        for path, text in texts(found, root).items()
        if not (root / path).exists() or (root / path).read_text() != text
    ]
    for results in found:
        if name := figure.name_of(results):
            old += [name] * (not figure.is_current(root / FIGURES / name, results))
    return old


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="*", type=Path, help="default: all of results/")
    parser.add_argument("--check", action="store_true", help="write nothing, print what is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the checkout")
    options = parser.parse_args(argv)
    try:
        found = read(options.results or files(options.root))
        if options.check:
            old = stale(found, options.root)
            print("\n".join(f"stale: {path}" for path in old) or "All pages match the results.")
            return 1 if old else 0
        for path, text in texts(found, options.root).items():
            (options.root / path).write_text(text)
            print(path)
        for results in found:
            if name := figure.name_of(results):
                figure.draw(results, options.root / FIGURES / name)
                print(options.root / FIGURES / name)
    except Unfit as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
