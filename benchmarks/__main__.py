"""Time the operator against everything a user would pick instead: python -m benchmarks.

All rivals of a case take turns within each round, and are held against float64 before. Every figure
is a median over the rounds, with the 20th and 80th percentile; "times faster" is the median of the
ratios of the same rounds, so that a machine that changes its speed does not decide.

The presets: quick (--quick, below two minutes on two cores), published (what README.md and
docs/performance.md are made of, some 15 minutes a process), reused (large tensors again, where
malloc keeps memory), gpu (what make gpu-check measures), full (everything). Options narrow a
preset: --sizes 2^24 --activations relu. --list says what is in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from actreg_ext import activations

from . import cases, compare, compilation, machine, results
from .progress import progress
from .providers import PROVIDERS
from .session import Session, chosen, sit
from .timing import PACES, Pace

LATEST = machine.ROOT / "build" / "benchmarks.json"


def elements(text: str) -> int:
    base, _, power = text.partition("^")
    return int(pow(int(base), int(power or 1)))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--preset", choices=list(cases.PRESETS), default="published")
    add("--quick", dest="preset", action="store_const", const="quick", help="--preset quick")
    add("--full", dest="preset", action="store_const", const="full", help="--preset full")
    add("--list", action="store_true", help="say what would be measured, and stop")
    add("--device", choices=("cpu", "cuda"), default="cuda" if _has_gpu() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--places", nargs="+", choices=cases.PLACES)
    add("--directions", nargs="+", choices=cases.DIRECTIONS)
    add("--sizes", nargs="+", type=elements, help="elements, such as 4096 or 2^24")
    add("--dtypes", nargs="+", choices=cases.DTYPES)
    add("--activations", nargs="+", choices=[*activations(), "all"], metavar="NAME")
    add("--p", nargs="+", type=float)
    add("--penalties", nargs="+", choices=list(cases.PENALTIES))
    add("--providers", nargs="+", choices=list(PROVIDERS))
    add("--processes", type=int, default=1, help="so many, one by one, and their rounds together")
    add("--rounds", type=int, help="exactly so many, instead of as many as the preset has time for")
    add("--seconds", type=float, help="stop after so long; what matters most comes first")
    add("--fill-only", action="store_true", help="compile the rivals into the cache, and stop")
    add("--no-fill", action="store_true", help="do not compile in parallel beforehand")
    add("--json", type=Path, default=LATEST, help=f"default: {LATEST.relative_to(machine.ROOT)}")
    add("--csv", type=Path, help="the same as rows")
    add("--figures", type=Path, help="a folder for the figures, as PNG and SVG")
    add("--results", type=Path, help="show this file instead of measuring")
    add("--compare", type=Path, metavar="OLD.json", help="what got slower; 1 is returned if any")
    add("--threshold", type=float, default=0.1, help="a slowdown that counts, 0.1 if not given")
    return made


def _has_gpu() -> bool:
    from actreg_ext import _C

    return torch.cuda.is_available() and bool(_C.build_info()["cuda"])


def sliced(options: argparse.Namespace) -> list[cases.Slice]:
    """The preset, narrowed by the options."""
    names = cases.every_activation() if options.activations == ["all"] else options.activations
    axes = {
        axis: getattr(options, axis)
        for axis in ("places", "directions", "dtypes", "p", "penalties", "sizes", "providers")
    }
    return cases.narrowed(cases.PRESETS[options.preset](), {**axes, "activations": names})


def fill(plan: list[cases.Planned], device: str) -> int:
    """How many rivals did not compile."""
    count = len(compilation.jobs(plan))
    print(f"compiling {count} rivals", file=sys.stderr)
    with progress(count) as advance:
        failures = compilation.fill(plan, device, advance)
    print(f"{count} compiled, {failures} failed", file=sys.stderr)
    return failures


def measure(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """A whole session: as many processes as are asked for, and their rounds together."""
    slices = sliced(options)
    here = machine.describe(options.device) | {"processes": options.processes}
    if (load := here["before"]["load"] or 0.0) > 0.5:
        print(f"others keep this machine busy: a load of {load:.1f}", file=sys.stderr)
    plan, absent = chosen(cases.plan(slices), options.device)
    lines = [f"{part.title}: {part.describe()}" for part in slices]
    found = results.collect(here, command, options.preset, lines, absent)
    if not options.no_fill:
        fill(plan, options.device)
    pace = PACES[options.preset]
    if options.rounds:
        pace = Pace(float("inf"), options.rounds, options.rounds)
    session = Session(options.device, pace, options.seconds)
    if options.processes == 1:
        found = sit(session, plan, found, options.json)
    else:
        spawn, threads = multiprocessing.get_context("spawn"), (options.threads,)
        for _ in range(options.processes):
            with ProcessPoolExecutor(1, spawn, torch.set_num_threads, threads) as worker:
                found = worker.submit(sit, session, plan, found, options.json).result()
    found["machine"]["after"] = machine.clocks(options.device)
    results.save(found, options.json)
    return results.finished(found)


def show(found: dict[str, Any], options: argparse.Namespace) -> None:
    if options.csv:
        results.write_csv(found, options.csv)
    if options.figures:
        from .figures import draw_all

        draw_all(found, options.figures)
    try:
        from rich.console import Console

        from .table import print_results
    except ModuleNotFoundError:
        print('pip install "actreg_ext[bench]" for a table; the rows:')
        for row in results.rows(found):
            print(json.dumps(row))
        return
    print_results(found, Console(width=None if sys.stdout.isatty() else 200))


def held_against(found: dict[str, Any], options: argparse.Namespace) -> int:
    """What got slower: how many cases beyond doubt and threshold."""
    old = results.load(options.compare)
    if old["machine"]["name"] != found["machine"]["name"]:
        print(f"not the same machine: {old['machine']['name']}, {found['machine']['name']}")
    changed = compare.changes(old, found)
    if not changed:
        print("the two have no case in common")
        return 1
    try:
        from rich.console import Console

        from .table import print_changes
    except ModuleNotFoundError:
        print(*changed, sep="\n")
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        print_changes(changed, options.threshold, console)
    print(f"{compare.missing(old, found)} cases are in one of the two only")
    return sum(change.is_slower(options.threshold) for change in changed)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    made = parser()
    options = made.parse_args(argv)
    if options.device == "cuda" and not _has_gpu() and not options.list:
        made.error("PyTorch sees no GPU here, or the kernels are not built")
    if options.processes < 1:
        made.error(f"--processes is 1 or more, but got {options.processes}")
    if options.list:
        for part in sliced(options):
            print(f"{part.title}: {part.describe()}\n    {' '.join(part.providers)}")
        return 0
    torch.set_num_threads(options.threads)
    if options.fill_only:
        plan, _ = chosen(cases.plan(sliced(options)), options.device)
        return 1 if fill(plan, options.device) else 0
    if options.results:
        found = results.load(options.results)
    else:
        found = measure(options, shlex.join(["python", "-m", "benchmarks", *argv]))
    show(found, options)
    bad = results.wrong(found)
    slower = held_against(found, options) if options.compare else 0
    if not options.results:
        print(f"results: {options.json}")
    return 1 if bad or slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
