"""Build, test, sanitize and time the CUDA kernels on this machine's GPU: make gpu-check.

Needs no network, but PyTorch, pytest and ninja in the running Python, and CUDA's toolkit.
Everything ends within --minutes: each step has a share of the time left, and gpu_check.py kills
programs that hang. If the machine limits a command to ten minutes, run two commands, in this order:

    --steps build tests sanitizers
    --steps build timing

gpu_check.py saves the results in one JSON file after every part. The logs, one for each step, are
beside --output, or in build/. The exit status is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# These modules import nothing that is still to be built.
from gpu_jobs import Job, excerpt, run_all  # noqa: E402

from benchmarks import machine, results  # noqa: E402
from benchmarks.markdown import aligned, table  # noqa: E402

STEPS = ["build", "tests", "sanitizers", "timing"]
SANITIZERS = ["memcheck", "racecheck", "synccheck", "initcheck"]
SMOKE = "cuda_smoke"  # runs after the build, and under the sanitizers
SWEEP = "every_float"  # with its slow tests: most of a minute on an H100
# First the numbers; then, alone, what may take all memory; last what starts compilers.
FIRST = "forward backward every_float every_half specials penalty kept layouts dropout".split()
FIRST += ["alignment"]
ALONE = ["cuda", "cuda_graphs"]
LAST = "in_place autograd checkpoint compile cuda_compile".split()
COMPILERS = ("compile", "max-autotune", "cooperative")
# Rival, with dropout or without (None: both), and the largest ratio allowed of our time to its.
BUDGETS = [("copy", None, 1.10), ("eager", None, 1 / 4)]
BUDGETS += [(name, True, 1 / 1.5) for name in COMPILERS]
BUDGETS += [(name, False, 1.0) for name in COMPILERS]
DROPOUT = {None: "", True: " with dropout", False: " without dropout"}
RESERVE = 10.0  # seconds for the report
SHOWN = 2000  # characters of a failed part's output, on the screen


def default_path(here: dict[str, Any], steps: list[str]) -> Path:
    """Only the timings of a GPU belong into results/."""
    slug = re.sub(r"\W+", "-", here["name"].lower()).strip("-")
    if here["device"] == "cpu":
        return ROOT / "build" / "gpu-check-rehearsal.json"
    return ROOT / ("results" if "timing" in steps else "build") / f"gpu-{slug}.json"


def phases() -> list[list[str]]:
    """The names of the test files that need a device, in the order in which they run."""
    found = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        if re.search(r"\bdevice: str\b|\bdefault_device\b|mark\.cuda\b", path.read_text()):
            found.append(path.stem.removeprefix("test_"))
    special = {SMOKE, *FIRST, *ALONE, *LAST}
    others = [name for name in found if name not in special]
    return [[n for n in phase if n in found] for phase in (FIRST, ALONE, others + LAST)]


def ratio(call: results.Call, rival: str) -> float | None:
    """Our time over the rival's."""
    if rival == "copy":
        return call.rows["act_reg"].get("per_copy", [None])[0]
    inverse = call.rows.get(rival, {}).get("per_act_reg")
    return 1 / inverse[0] if inverse else None


def shown_budgets(found: dict[str, Any]) -> str:
    """For each budget the worst call of the largest size, and how many calls exceed the budget."""
    calls = [call for call in results.calls_of(found) if call.case["place"] == "call"]
    largest = max((call.case["elements"] for call in calls), default=0)
    calls = [call for call in calls if call.case["elements"] == largest]
    lines = []
    for direction, (rival, drops, limit) in product(("forward", "backward"), BUDGETS):
        part = [call for call in calls if call.direction == direction]
        part = [call for call in part if drops in (None, call.case["p"] > 0) and ratio(call, rival)]
        if part:
            ratios = [ratio(call, rival) for call in part]
            worst = max(ratios)
            at = "{activation} {dtype} p={p}".format_map(part[ratios.index(worst)].case)
            over = f"{sum(value > limit for value in ratios)} of {len(part)}"
            what = f"{direction} / {rival}{DROPOUT[drops]}"
            lines.append([what, f"{limit:.2f}", f"{worst:.2f}", at, over])
    return aligned(table(("our time / the rival's", "budget", "worst", "where", "over"), lines))


class Check:
    """The steps, and what came of them."""

    def __init__(self, options: argparse.Namespace, steps: list[str]) -> None:
        self.options, self.steps = options, steps
        self.deadline = time.monotonic() + 60 * options.minutes - RESERVE
        here = machine.describe(options.device)
        self.path: Path = options.output or default_path(here, steps)
        self.logs: Path = options.output or ROOT / "build" / self.path.name
        self.logs.parent.mkdir(parents=True, exist_ok=True)
        self.results = results.collect(here, " ".join(["python", *sys.argv]), "gpu", [])
        self.results["steps"] = []
        self.step = ""
        self.timed = self.beside("timed.json")

    def beside(self, ending: str) -> Path:
        return self.logs.with_name(f"{self.logs.stem}.{ending}")

    def left(self) -> float:
        return max(self.deadline - time.monotonic(), 1.0)

    def note(self, name: str, outcome: str, seconds: float, output: str) -> None:
        """Save what came of a part, print its end, and keep its whole log."""
        found = {"step": name, "outcome": outcome, "seconds": round(seconds, 1)}
        self.results["steps"].append({**found, "output": excerpt(output)})
        results.save(self.results, self.path)
        with self.beside(f"{self.step}.log").open("a") as log:
            log.write(f"==> {name}: {outcome}, {seconds:.1f} s\n{output}\n")
        lines = output.strip().splitlines() or [""]
        if outcome in ("failed", "timed out"):
            print(excerpt(output, SHOWN))
        print(f"{name:18} {outcome:10} {seconds:6.1f} s  {lines[-1][:120]}", flush=True)

    def run(self, jobs: list[Job], seconds: float, at_once: int = 1) -> None:
        """Run jobs that together may take that many seconds, and note their outcomes."""
        if at_once > 1:  # each with its share of the cores
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
            jobs = [replace(job, environment=job.environment | threads) for job in jobs]
        run_all(jobs, time.monotonic() + min(seconds, self.left()), at_once, self.note)

    def build(self) -> None:
        environment = {"MAX_JOBS": str(os.cpu_count())}
        if self.options.device == "cuda":
            major, minor = torch.cuda.get_device_capability()
            environment |= {"ACTREG_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        self.run([Job("build", command, environment)], 0.6 * self.left())
        if self.results["steps"][-1]["outcome"] != "ok":
            raise SystemExit("nothing to test: the build did not end well")
        # An error is then reported by the call that causes it, not by some later call.
        smoke = replace(self.test(SMOKE), environment={"CUDA_LAUNCH_BLOCKING": "1"})
        self.run([smoke], 0.25 * self.left())

    def test(self, name: str) -> Job:
        command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--durations=10"]
        command += ["-p", "gpu_pytest", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
        selected = "cuda" if self.options.device == "cuda" else "not cuda"
        selected, shows = (selected, ["-s"]) if name == SWEEP else (f"{selected} and not slow", [])
        command += ["-m", selected, *shows, f"tests/test_{name}.py"]
        return Job(name, command, may_be_cut_off=name == SWEEP)

    def tests(self) -> None:
        share = self.left() * (0.65 if "sanitizers" in self.steps else 1.0)
        share *= 0.5 if "timing" in self.steps else 1.0
        until = time.monotonic() + share
        at_once = max(1, min(4, (os.cpu_count() or 1) // 2))
        for names, share in zip(phases(), (0.6, 0.6, 1.0), strict=True):
            names = [name for name in names if name in (self.options.tests or names)]
            seconds = share * (until - time.monotonic())
            self.run(list(map(self.test, names)), seconds, 1 if names == ALONE else at_once)

    def sanitizers(self) -> None:
        sanitizer = machine.cuda_program("compute-sanitizer")
        if sanitizer is None or self.options.device == "cpu":
            self.note("sanitizers", "skipped", 0.0, "no compute-sanitizer was found, or no GPU")
            return
        jobs = []
        for tool in SANITIZERS:
            command = [sanitizer, "--tool", tool, "--error-exitcode", "1", "--print-limit", "20"]
            # Failed calls raise exceptions already, and PyTorch causes some on purpose.
            command += ["--report-api-errors", "no"] if tool == "memcheck" else []
            # Each tensor is then an allocation of its own, with nothing behind it.
            environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            smoke = [*self.test(SMOKE).command, "-o", "faulthandler_timeout=0"]
            jobs.append(Job(tool, [*command, *smoke], environment))
        share = 0.5 if "timing" in self.steps else 1.0
        self.run(jobs, share * self.left(), len(jobs))

    def timing_command(self, *more: str) -> list[str]:
        command = [sys.executable, "-m", "benchmarks", "--preset", "gpu"]
        return [*command, "--device", self.options.device, *more, *self.options.timing.split()]

    def timing(self) -> None:
        fill = Job("compilers", self.timing_command("--fill-only"), may_be_cut_off=True)
        self.run([fill], 0.25 * self.left())
        limit = self.left()
        seconds = max(limit - 25, 1.0)  # the rest is for its start and its end
        more = ("--no-fill", "--seconds", str(seconds), "--json", str(self.timed))
        self.timed.unlink(missing_ok=True)
        try:
            self.run([Job("timing", self.timing_command(*more), may_be_cut_off=True)], limit)
        finally:
            if self.timed.exists():
                self.results = {**results.load(self.timed), "steps": self.results["steps"]}
                results.save(self.results, self.path)
        self.timed.unlink(missing_ok=True)

    def all_steps(self) -> None:
        for step in (step for step in STEPS if step in self.steps):
            self.step = step
            self.beside(f"{step}.log").unlink(missing_ok=True)
            getattr(self, step)()

    def report(self) -> int:
        results.save(self.results, self.path)
        wrong, bad = results.wrong(self.results), ("failed", "timed out", "not run")
        failed = [s["step"] for s in self.results["steps"] if s["outcome"] in bad]
        if "timing" in self.steps:
            print(f"\n{shown_budgets(self.results)}\n")
            print(f"{len(self.results['left_out'])} cases were not measured in time")
            print(f"{len(wrong)} failed or differ from float64:", *wrong[:20], sep="\n")
        print(f"results: {self.path}")
        print(f"failed: {', '.join(failed)}" if failed else "no step failed")
        return 1 if failed else 0


def end_by(number: int, _: FrameType | None) -> None:
    """End as by an error: what was started is ended, and what was found is saved."""
    raise SystemExit(f"ended by {signal.Signals(number).name}")


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="for everything together")
    add("--output", type=Path, help="results/gpu-<device>.json")
    add("--steps", nargs="+", choices=STEPS, help="all of them, on a GPU")
    add("--tests", nargs="+", metavar="NAME", help="only tests/test_NAME.py")
    add("--device", default="cuda", choices=("cuda", "cpu"), help="cpu rehearses")
    add("--timing", default="", metavar="'OPTIONS'", help="of python -m benchmarks")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu rehearses")
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, end_by)
    signal.alarm(int(60 * options.minutes) + 1)  # if this program itself hangs
    check = Check(options, options.steps or (STEPS if options.device == "cuda" else ["timing"]))
    try:
        check.all_steps()
    except SystemExit as why:
        print(why)
        check.report()
        return 1
    return check.report()


if __name__ == "__main__":
    raise SystemExit(main())
