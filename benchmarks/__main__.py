"""Times act_reg against what a user would write instead: python -m benchmarks.

Every provider is checked against float64 before it is timed, and all providers of a case take
turns. A time is the median of the rounds; a ratio is the median of the ratios of the same rounds.

Presets: quick (two minutes on two cores); published (results/cpu.json, 15 minutes a process);
steps (results/cpu-steps.json, training steps); reused (results/cpu-reused.json, large tensors where
malloc keeps memory); gpu (for make gpu-check). Options narrow a preset: --sizes 2^24 --activations
relu. docs/benchmarks.md shows how to add a case.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from actreg_ext import _C, activations

from . import cases, compare, compilation, machine, markdown, results, tables
from .providers import PROVIDERS
from .session import Session, chosen, sit
from .timing import PACES, Pace

LATEST = machine.ROOT / "build" / "benchmarks.json"
LEGEND = """\
act_reg is faster: how many times; copy = 1, plain = 1: the time as a multiple of theirs;
kept, peak: bytes for each element, kept for backward and at most at one time."""


def elements(text: str) -> int:
    base, _, power = text.partition("^")
    return int(pow(int(base), int(power or 1)))


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("python -m benchmarks", description=__doc__, formatter_class=raw)
    add = made.add_argument
    add("--preset", choices=list(cases.PRESETS), default="published")
    add("--quick", dest="preset", action="store_const", const="quick", help="--preset quick")
    add("--list", action="store_true", help="print what would be measured, and stop")
    add("--device", choices=("cpu", "cuda"), default="cuda" if _has_gpu() else "cpu")
    add("--places", nargs="+", choices=cases.PLACES)
    add("--directions", nargs="+", choices=cases.DIRECTIONS)
    add("--sizes", nargs="+", type=elements, help="elements, such as 4096 or 2^24")
    add("--dtypes", nargs="+", choices=cases.DTYPES)
    add("--activations", nargs="+", choices=[*activations(), "all"], metavar="NAME")
    add("--p", nargs="+", type=float)
    add("--penalties", nargs="+", choices=list(cases.PENALTIES))
    add("--providers", nargs="+", choices=list(PROVIDERS))
    add("--processes", type=int, default=1, help="measure in this many, one after the other")
    add("--rounds", type=int, help="number of rounds (default: as many as fit the preset's time)")
    add("--seconds", type=float, help="stop after this time; what matters most comes first")
    add("--fill-only", action="store_true", help="fill the compiler's cache, and stop")
    add("--no-fill", action="store_true", help="do not fill the compiler's cache beforehand")
    add("--json", type=Path, default=LATEST, help=f"default: {LATEST.relative_to(machine.ROOT)}")
    add("--results", type=Path, help="show this file instead of measuring")
    add("--compare", type=Path, metavar="OLD.json", help="show what changed; exit with 1 if slower")
    return made


def _has_gpu() -> bool:
    return torch.cuda.is_available() and bool(_C.build_info()["cuda"])


def sliced(options: argparse.Namespace) -> list[cases.Slice]:
    """The preset, narrowed by the options."""
    axes = {axis.name: getattr(options, axis.name, None) for axis in fields(cases.Slice)}
    if axes["activations"] == ["all"]:
        axes["activations"] = cases.EVERY
    return cases.narrowed(cases.PRESETS[options.preset], axes)


def measure(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Measure in all processes, and take their rounds together."""
    slices = sliced(options)
    here = machine.describe(options.device) | {"processes": options.processes}
    if here["before"]["load"] > 0.5:
        print(f"Other programs use this machine: load {here['before']['load']}", file=sys.stderr)
    plan = chosen(cases.plan(slices), options.device)
    lines = [part.describe() for part in slices]
    found = results.collect(here, command, options.preset, lines)
    if not options.no_fill:
        compilation.fill(plan, options.device)
    pace = PACES[options.preset]
    if options.rounds:
        pace = Pace(float("inf"), options.rounds, options.rounds)
    session = Session(options.device, pace, options.seconds)
    if options.processes == 1:
        found = sit(session, plan, found, options.json)
    else:
        spawn = multiprocessing.get_context("spawn")
        for _ in range(options.processes):
            with ProcessPoolExecutor(1, spawn) as worker:
                found = worker.submit(sit, session, plan, found, options.json).result()
    found["machine"]["after"] = machine.state(options.device)
    results.save(found, options.json)
    return results.finished(found)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    made = parser()
    options = made.parse_args(argv)
    if options.list:
        for part in sliced(options):
            print(f"{part.describe()}\n    {' '.join(part.providers)}")
        return 0
    if options.device == "cuda" and not _has_gpu():
        made.error("PyTorch sees no GPU here, or the kernels are not built")
    if options.processes < 1:
        made.error(f"--processes must be at least 1, not {options.processes}")
    if options.fill_only:
        plan = chosen(cases.plan(sliced(options)), options.device)
        return 1 if compilation.fill(plan, options.device) else 0
    if options.results:
        found = results.load(options.results)
    else:
        found = measure(options, shlex.join(["python", "-m", "benchmarks", *argv]))
    calls = results.calls_of(found)
    print(*found["slices"], markdown.aligned(tables.details(calls)), LEGEND, sep="\n")
    print(*(f"not timed: {line}" for line in results.wrong(found)), sep="\n")
    slower = False
    if options.compare:
        old = results.load(options.compare)
        if old["machine"]["name"] != found["machine"]["name"]:
            print("These are two machines:", old["machine"]["name"], found["machine"]["name"])
        changed = compare.changes(old, found)
        print(compare.report(changed))
        slower = not changed or any(change.verdict() == "slower" for change in changed)
    if not options.results:
        print(f"results: {options.json}")
    return 1 if results.wrong(found) or slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
