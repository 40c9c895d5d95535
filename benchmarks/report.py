"""Writes README.md's performance section and docs/performance.md: python -m benchmarks.report.

All numbers come from the files in results/. The prose is in readme.md.j2 and performance.md.j2.
tests/test_benchmarks.py checks that the pages are what the results say.
"""

from __future__ import annotations

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
        what = "{instructions}, {threads} threads, {cpus} cores".format_map(machine)
        what = f"driver {driver}" if self.is_gpu else what
        return f"{machine['name']}, {what}, torch {machine['torch']}"


def read(root: Path) -> list[dict[str, Any]]:
    """All results. Raises Unfit for what the pages must not show."""
    found = []
    for path in sorted((root / "results").glob("*.json")):
        found.append(results := load(path))
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
    counted = {name: root / "benchmarks" / f"{name}.md" for name in ("overhead", "instructions")}
    values = {
        "cpu": cpu,
        "gpu": next((part for part in parts if part.is_gpu), None),
        "reused": by_preset.get("reused"),
        "steps": by_preset.get("steps", cpu),
        "tables": tables,
        "providers": PROVIDERS,
        **{name: path.read_text() if path.exists() else "" for name, path in counted.items()},
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


def write(root: Path) -> None:
    """Write the pages and the figures of a checkout."""
    found = read(root)
    for path, text in texts(found, root).items():
        (root / path).write_text(text)
        print(path)
    for results in found:
        if name := figure.name_of(results):
            figure.draw(results, root / FIGURES / name)
            print(FIGURES / name)


if __name__ == "__main__":
    try:
        write(ROOT)
    except Unfit as error:
        sys.exit(str(error))
