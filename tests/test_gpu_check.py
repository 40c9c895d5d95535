"""make gpu-check without a GPU: time limits, order, what is saved, and what stops a test file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import results

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
sys.path.insert(0, str(TOOLS))
import gpu_check  # noqa: E402
import gpu_jobs  # noqa: E402
from gpu_jobs import Job  # noqa: E402

Notes = list[tuple[str, str, str]]


def python(name: str, code: str, may_be_cut_off: bool = False) -> Job:
    return Job(name, [sys.executable, "-c", code], may_be_cut_off=may_be_cut_off)


def outcomes(jobs: list[Job], seconds: float, at_once: int = 1) -> Notes:
    notes: Notes = []

    def done(name: str, outcome: str, took: float, output: str) -> None:
        notes.append((name, outcome, output))

    gpu_jobs.run_all(jobs, time.monotonic() + seconds, at_once, done)
    return notes


def is_running(pid: int) -> bool:
    """Neither gone nor waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_run_in_order_and_tell_what_they_print() -> None:
    jobs = [python("good", "print('fine')"), python("bad", "raise SystemExit('wrong')")]
    jobs.append(python("no tests", "raise SystemExit(5)"))
    found = outcomes(jobs, 60)
    assert [note[:2] for note in found] == [("good", "ok"), ("bad", "failed"), ("no tests", "ok")]
    assert found[0][2] == "fine\n" and "wrong" in found[1][2]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_what_hangs_is_killed_with_all_that_it_started() -> None:
    hangs = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
print(subprocess.Popen([sys.executable, "-c", code]).pid, flush=True)
time.sleep(600)
"""
    jobs = [python("hangs", hangs), python("slow", "import time; time.sleep(600)", True)]
    jobs.append(python("late", ""))
    begun = time.monotonic()
    found = outcomes(jobs, 4, at_once=2)
    assert time.monotonic() - begun < 30
    assert {note[:2] for note in found} == {
        ("hangs", "timed out"),
        ("slow", "cut off"),
        ("late", "not run"),
    }
    (child,) = [int(output) for name, _, output in found if name == "hangs"]
    # The kernel may need a moment to end a killed process on a busy machine.
    patience = time.monotonic() + 10
    while is_running(child) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not is_running(child)


def test_the_first_failure_is_kept() -> None:
    long = "x" * 50_000
    kept = gpu_jobs.excerpt(f"begin{long}FAILURE the first one{long}the end")
    assert "FAILURE the first one" in kept and kept.endswith("the end") and len(kept) < 7000
    assert gpu_jobs.excerpt(f"{long}the end").endswith("the end")


def run_pytest(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """With the plugin, on tests in a file."""
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "gpu_pytest", "-v", "-c", os.devnull]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TOOLS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )


BROKEN = """
import torch

def broken():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = lambda: None

def test_good(): pass
def test_wrong(): assert 1 + 1 == 3
def test_after_a_wrong_one(): pass
def test_illegal():
    torch.cuda.synchronize = broken
    broken()
def test_after_an_illegal_one(): pass
"""


def test_a_file_stops_when_cuda_is_broken(tmp_path: Path) -> None:
    """And goes on after an assertion that fails; each failure is shown once, when it happens."""
    done = run_pytest(tmp_path, BROKEN)
    shown = done.stdout
    assert "2 failed, 2 passed" in shown and "test_after_an_illegal_one" not in shown
    assert "CUDA is broken after test_it.py::test_illegal: CUDA error: an illegal" in shown
    assert shown.count("assert (1 + 1) == 3") + shown.count("assert 1 + 1 == 3\n") >= 1
    assert shown.index("FAILURE test_it.py::test_wrong") < shown.index("test_after_a_wrong_one")
    assert "= FAILURES =" not in shown


def test_numbers_come_first_and_compilers_last() -> None:
    numbers, alone, rest = gpu_check.phases()
    assert numbers[:5] == ["forward", "backward", "every_float", "every_half", "specials"]
    assert alone == ["cuda", "cuda_graphs"] and rest[-2:] == ["compile", "cuda_compile"]
    names = [*numbers, *alone, *rest]
    assert len(set(names)) == len(names) and {"module", "checkpoint", "layouts"} <= set(names)
    slow = {"torch.compile", "_dynamo", "inductor"}
    for name in (*numbers, *alone):
        text = (ROOT / "tests" / f"test_{name}.py").read_text()
        assert not any(word in text for word in slow), f"test_{name}.py starts a compiler"


def test_results_are_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    good = results.collect({}, "command", "gpu", [])
    results.save(good, path)
    with pytest.raises(TypeError):
        results.save({**good, "machine": object()}, path)
    assert results.load(path) == good and list(tmp_path.iterdir()) == [path]


def test_the_deadline_ends_a_rehearsal(tmp_path: Path) -> None:
    """The timing is cut off, which is no failure, and the results are there."""
    path = tmp_path / "found.json"
    command = [sys.executable, str(TOOLS / "gpu_check.py"), "--device", "cpu"]
    command += ["--steps", "sanitizers", "timing", "--minutes", "0.2", "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = {step["step"]: step["outcome"] for step in json.loads(path.read_text())["steps"]}
    assert steps == {"sanitizers": "skipped", "compilers": "cut off", "timing": "cut off"}
    assert {p.name for p in tmp_path.iterdir()} == {
        "found.json",
        "found.sanitizers.log",
        "found.timing.log",
    }
