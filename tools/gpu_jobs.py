"""Runs programs for a limited time, some of them side by side. For gpu_check.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
KEPT = 6000  # characters of a program's output
NO_TESTS = 5  # pytest's exit code if no test was selected
Done = Callable[[str, str, float, str], None]  # name, outcome, seconds, output


@dataclass(frozen=True)
class Job:
    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    may_be_cut_off: bool = False  # it does first what matters most


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt programs as Ctrl-C does, so that they report; kill those that do not end."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 5
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0))
    for process in processes:  # children of an ended program may still run
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):  # a hanging driver cannot be killed
            process.wait(5)


class Running:
    """A job that was started. Its output goes to a temporary file."""

    def __init__(self, job: Job) -> None:
        self.job, self.begun = job, time.monotonic()
        self.log = tempfile.TemporaryFile("w+", errors="replace")
        path = os.pathsep.join(filter(None, [str(ROOT), str(TOOLS), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **job.environment}
        options = {"cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL}
        options |= {"stdout": self.log, "stderr": subprocess.STDOUT}
        # In a process group of its own, with which `stop` ends the job.
        self.process = subprocess.Popen(job.command, start_new_session=True, **options)

    def finish(self, done: Done, stopped_as: str = "") -> None:
        outcome = "ok" if self.process.poll() in (0, NO_TESTS) else "failed"
        self.log.seek(0)
        seconds = time.monotonic() - self.begun
        done(self.job.name, stopped_as or outcome, seconds, self.log.read())
        self.log.close()


def run_all(jobs: Sequence[Job], deadline: float, at_once: int, done: Done) -> None:
    """Run the jobs in their order, and call done for each when it ends."""
    waiting, running = list(jobs), list[Running]()
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < at_once:
                running.append(Running(waiting.pop(0)))
            time.sleep(0.05)
            for ended in [one for one in running if one.process.poll() is not None]:
                running.remove(ended)
                stop([ended.process])  # and its children
                ended.finish(done)
    finally:
        stop([one.process for one in running])
        for one in running:
            one.finish(done, "cut off" if one.job.may_be_cut_off else "timed out")
        for job in waiting:
            done(job.name, "not run", 0.0, "no time was left")


def excerpt(output: str, kept: int = KEPT) -> str:
    """The first failure, which may cause the later ones, and the end."""
    if len(output) <= kept:
        return output
    first = output.find("FAILURE ")
    if not 0 <= first < len(output) - kept:
        return output[-kept:]
    return f"{output[first : first + kept // 2]}\n[...]\n{output[-kept // 2 :]}"
