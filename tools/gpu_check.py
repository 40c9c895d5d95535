"""Build, test, sanitize and time the CUDA kernels on this machine's GPU: make gpu-check.

Needs no network: the running Python has PyTorch, pytest and ninja, and CUDA's toolkit is there.
Every step runs, whatever became of those before it, and the results are one file of JSON. Exits
with 1 if a step failed. `smoke` is the program that compute-sanitizer looks at.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SELF = Path(__file__).resolve()
ROOT = SELF.parents[1]
sys.path.insert(0, str(ROOT))
# What they import need not be built yet: `smoke` and `once` import the rest when they run.
from gpu_report import held_to_budgets, ratios, table  # noqa: E402

from benchmarks import machine, results  # noqa: E402

TIMING = [sys.executable, "-m", "benchmarks"]
STEPS = ["build", "tests", "sanitizers", "timing"]
SANITIZERS = ["memcheck", "racecheck", "synccheck"]
COUNTERS = [
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__issue_active.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
]


def start(command: list[str], log: Any, **changes: str) -> subprocess.Popen[bytes]:
    """Start a program in a group of its own, to be ended with all that it starts."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **changes}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **streams,
    )


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """As by Ctrl-C, whereupon pytest shows what has failed so far."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def default_path(here: dict[str, Any]) -> Path:
    """In results/ for what a GPU has made; a rehearsal is none."""
    slug = re.sub(r"\W+", "-", here["name"].lower()).strip("-")
    if here["device"] == "cpu":
        return ROOT / "build" / "gpu-check-rehearsal.json"
    return ROOT / "results" / f"gpu-{slug}.json"


class Check:
    """The steps, and what came of them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.deadline: float = time.monotonic() + 60 * options.minutes
        here = machine.describe(options.device)
        self.path: Path = options.output or default_path(here)
        self.results = results.collect(here, " ".join(["python", *sys.argv]), "gpu", [], {})
        self.results["steps"] = []
        self.timed, self.fill_log = folder / "timed.json", folder / "fill.log"
        self.filling: subprocess.Popen[bytes] | None = None

    def left(self) -> float:
        return max(self.deadline - time.monotonic(), 1.0)

    def write(self) -> None:
        results.save(self.results, self.path)

    def note(self, name: str, outcome: str, begun: float, output: str) -> None:
        seconds = time.monotonic() - begun
        step = {"step": name, "outcome": outcome, "seconds": round(seconds, 1)}
        self.results["steps"].append({**step, "output": output[-6000:]})
        lines = output.strip().splitlines() or [""]
        if outcome in ("failed", "timed out"):
            print("\n".join(lines[-40:]))
        print(f"{name:12} {outcome:10} {seconds:6.1f} s  {lines[-1][:120]}", flush=True)
        self.write()

    def run(self, name: str, command: list[str], seconds: float, **changes: str) -> None:
        """One step, for at most so long."""
        begun = time.monotonic()
        with tempfile.TemporaryFile("w+") as log:
            process = start(command, log, **changes)
            try:
                outcome = "ok" if process.wait(seconds) == 0 else "failed"
            except subprocess.TimeoutExpired:
                # For the timing no failure: what matters most was measured first.
                outcome = "cut off" if name == "timing" else "timed out"
                interrupt(process)
            finally:
                end(process)
            log.seek(0)
            self.note(name, outcome, begun, log.read())

    def build(self) -> None:
        major, minor = torch.cuda.get_device_capability()
        switches = {"ACTREG_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        self.run("build", command, 0.6 * self.left(), MAX_JOBS=str(os.cpu_count()), **switches)

    def tests(self) -> None:
        # What only a GPU can show comes first, and the table if there is the time.
        folder = ROOT / "tests"
        alone = folder / "test_cuda.py"
        command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "--tb=short"]
        self.run("tests", [*command, str(alone)], 0.25 * self.left())
        self.run("table", [*command, f"--ignore={alone}", str(folder)], 0.3 * self.left())

    def sanitizers(self) -> None:
        sanitizer = machine.cuda_program("compute-sanitizer")
        smoke = [sys.executable, str(SELF), "smoke"]
        for i, tool in enumerate(SANITIZERS):
            if sanitizer is None:
                self.note(tool, "skipped", time.monotonic(), "compute-sanitizer was not found")
                continue
            command = [sanitizer, "--tool", tool, "--error-exitcode", "1"]
            # Errors of calls are exceptions already, and PyTorch causes some on purpose.
            command += ["--report-api-errors", "no"] if tool == "memcheck" else []
            share = 0.4 * self.left() / (len(SANITIZERS) - i)
            # Each tensor is an allocation of its own then, and what lies behind it nobody's.
            self.run(tool, [*command, *smoke], share, PYTORCH_NO_CUDA_MEMORY_CACHING="1")

    def timing_command(self, *more: str) -> list[str]:
        options = self.options
        command = [*TIMING, "--preset", "gpu", "--device", options.device, *more]
        for name in ("sizes", "activations", "dtypes", "rounds"):
            if values := getattr(options, name):
                command += [
                    f"--{name}",
                    *map(str, values if isinstance(values, list) else [values]),
                ]
        return command

    def start_filling(self) -> None:
        """Compile the rivals beside the steps before the timing, which alone needs quiet."""
        with self.fill_log.open("w") as log:
            self.filling = start(self.timing_command("--fill-only"), log)

    def timing(self) -> None:
        begun = time.monotonic()
        if self.filling is None:
            self.start_filling()
        assert self.filling is not None
        try:
            self.filling.wait(0.25 * self.left())
            outcome = "ok" if self.filling.returncode == 0 else "incomplete"
        except subprocess.TimeoutExpired:
            outcome = "cut off"
        end(self.filling)
        self.note("compilers", outcome, begun, self.fill_log.read_text())
        limit = max(self.left() - (60 if self.options.ncu else 0), 1.0)
        seconds = max(limit - 25, 1.0)  # in the rest it begins, and ends by itself
        more = ("--no-fill", "--seconds", str(seconds), "--json", str(self.timed))
        self.run("timing", self.timing_command(*more), limit)
        if self.timed.exists():
            steps = self.results["steps"]
            self.results = {**results.load(self.timed), "steps": steps}
        if self.options.ncu:
            self.profile()

    def profile(self) -> None:
        """Some counters of the kernel that is slowest by the floor."""
        floors = [r for r in ratios(results.rows(self.results)) if r["rival"] == "floor"]
        ncu = machine.cuda_program("ncu")
        if ncu is None or not floors:
            self.note("ncu", "skipped", time.monotonic(), "no ncu was found, or nothing was timed")
            return
        worst = max(floors, key=lambda row: row["ratio"])
        command = [ncu, "--kernel-name", f"{worst['direction']}_kernel", "--launch-skip", "1"]
        command += ["--launch-count", "1", "--clock-control", "none"]
        command += ["--metrics", ",".join(COUNTERS), sys.executable, str(SELF), "once"]
        command += [json.dumps({axis: worst[axis] for axis in self.results["groups"][0]["case"]})]
        self.run("ncu", command, self.left())

    def report(self) -> int:
        self.results["budgets"] = held_to_budgets(results.rows(self.results))
        self.write()
        failed = [
            s["step"] for s in self.results["steps"] if s["outcome"] in ("failed", "timed out")
        ]
        wrong = results.wrong(self.results)
        print(f"\n{table(self.results['budgets'])}\n")
        print(f"{len(self.results['left_out'])} cases were not measured in time")
        print(
            f"{len(wrong)} were not timed, as they failed or differ from float64",
            *wrong[:20],
            sep="\n",
        )
        print(f"results: {self.path}")
        print(f"failed: {', '.join(failed)}" if failed else "no step failed")
        return 1 if failed else 0


def once(axes: dict[str, Any], device: str) -> int:
    """Forward and backward of one case, for a profiler."""
    from benchmarks import places
    from benchmarks.cases import Case
    from benchmarks.providers import PROVIDERS

    case = Case(**axes)
    xs, dy = places.inputs(case, device)
    ours = places.subject(case, PROVIDERS["fused"], xs, dy)
    for run in ours.runs("both"):
        run()
    return 0


def smoke(device: str) -> int:
    """Both kernels for every element, address and end, against float64: 192 launches of ours."""
    from actreg_ext import reference
    from actreg_ext.functional import act_reg
    from benchmarks.correctness import relative_error, tolerance

    def results(function: Any, x: torch.Tensor, name: str, p: float) -> tuple[torch.Tensor, ...]:
        y, penalty = function(x.requires_grad_(), name, l1=0.5, l2=0.25, p=p, seed=1)
        dy = torch.linspace(1, 2, len(x), dtype=torch.float64).to(x)
        (dx,) = torch.autograd.grad((y, penalty), x, (dy, torch.ones_like(penalty)))
        return tuple(t.detach().cpu() for t in (y, penalty, dx))

    for name in ("relu", "gelu", "softplus"):
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            for p in (0.0, 0.3):
                for offset, n in ((0, 8192), (0, 4101), (1, 4096), (3, 5)):
                    x = torch.linspace(-4, 4, n, dtype=torch.float64).to(dtype)
                    view = torch.empty(n + offset, dtype=dtype, device=device)[offset:].copy_(x)
                    truth = results(reference.act_reg, x.double(), name, p)
                    error = relative_error(results(act_reg, view, name, p), truth)
                    assert error <= tolerance(dtype), (name, dtype, p, offset, n, error)
    print("smoke: well")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs="?", default="check", choices=("check", "smoke", "once"))
    parser.add_argument("case", nargs="?", help="of once")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    parser.add_argument("--output", type=Path, help="results/gpu-<device>.json")
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="all of them, on a GPU")
    parser.add_argument("--ncu", action="store_true", help="profile the slowest kernel as well")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu rehearses")
    for axis in ("sizes", "activations", "dtypes"):
        parser.add_argument(f"--{axis}", nargs="+", help="of the timing; see python -m benchmarks")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu rehearses the timing")
    if options.command == "smoke":
        return smoke(options.device)
    if options.command == "once":
        return once(json.loads(options.case), options.device)
    steps = options.steps or (STEPS if options.device == "cuda" else ["timing"])
    with tempfile.TemporaryDirectory() as folder:
        check = Check(options, Path(folder))
        try:
            for step in STEPS:
                if step in steps:
                    getattr(check, step)()
                if step == "build" and "timing" in steps:
                    check.start_filling()
            return check.report()
        finally:
            if check.filling is not None:
                end(check.filling)


if __name__ == "__main__":
    raise SystemExit(main())
