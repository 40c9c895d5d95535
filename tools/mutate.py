"""Plant faults, one at a time, and see the tests catch them: make mutate [ARGS="-k dropout"].

A check that was never seen to fail is decoration. Everything happens in copies of the tree, which
are thrown away. Of the extension only what a fault changes is compiled again, for the instruction
set without flags (ATEN_CPU_CAPABILITY=default); everything else is taken from the last build.
Exits with 1 if a fault survives, does not compile, or is no longer found in the source.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from mutations import KERNELS, MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / f"torch-{torch.__version__}-{sys.implementation.cache_tag}"  # setup.py's
ENVIRONMENT = {
    **os.environ,
    "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", ""),  # ninja
    "ATEN_CPU_CAPABILITY": "default",
    "OMP_NUM_THREADS": "1",  # two run side by side
    "PYTHONDONTWRITEBYTECODE": "1",
    "COLUMNS": "200",
}


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**ENVIRONMENT, "PYTHONPATH": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


class Copy:
    """A copy of the tree with the extension as it was last built."""

    def __init__(self, path: Path) -> None:
        self.path = path
        listed = run(["git", "ls-files", "-z", "-co", "--exclude-standard"], ROOT).stdout
        built = [p.relative_to(ROOT) for p in ROOT.glob("actreg_ext/_C.*.so")]
        (self.extension,) = built
        for file in [*filter(None, listed.split("\0")), *built, "actreg_ext/_build.py"]:
            if (ROOT / file).is_file():
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, path / file)

    def build(self, sources: tuple[str, ...]) -> None:
        """Compile these sources and link them with the objects of the others."""
        objects = []
        for entry in json.loads(run(["ninja", "-t", "compdb", "compile"], BUILD).stdout):
            output = Path(BUILD, entry["output"])
            source = str(Path(entry["file"]).relative_to(ROOT))
            if source in sources:
                command = entry["command"].replace("-O3", "-O1")
                ours = rf"{re.escape(str(ROOT))}/(csrc|build)\b"
                command = re.sub(ours, rf"{self.path}/\1", command)
                output = self.path / output.relative_to(ROOT)
                output.parent.mkdir(parents=True, exist_ok=True)
                self.expect(["sh", "-c", command])
            objects.append(str(output))
        folder = Path(torch.__file__).parent / "lib"
        libraries = [str(p) for name in ("c10", "torch") for p in folder.glob(f"lib{name}*.so")]
        rpath = f"-Wl,-rpath,{folder}"
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        linked = ["-shared", *objects, "-o", str(self.extension), *libraries, rpath]
        (self.path / self.extension).unlink()
        self.expect([*compiler, *linked])

    def expect(self, command: list[str]) -> None:
        done = run(command, self.path)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)[:300]} ...\n{done.stdout[-3000:]}")

    def failed_test(self, tests: str) -> str:
        """Run tests up to the first that fails; return its name, or nothing."""
        pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
        done = run([*pytest, *shlex.split(tests)], self.path)
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
        if done.returncode == 0 or (done.returncode == 1 and failed):
            return failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else ""
        raise RuntimeError(f"pytest {tests} ended with {done.returncode}\n{done.stdout[-3000:]}")

    def plant(self, mutation: Mutation) -> str:
        """Return the test that caught the fault, or nothing; leave the copy as it was."""
        file, extension = self.path / mutation.file, self.path / self.extension
        text = file.read_text()
        try:
            file.write_text(text.replace(mutation.old, mutation.new))
            if mutation.compiles:
                self.build(mutation.compiles)
            return self.failed_test(mutation.tests)
        finally:
            file.write_text(text)
            shutil.copy2(ROOT / self.extension, extension)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", metavar="TEXT", default="", help="only the faults named so")
    parser.add_argument("-j", metavar="N", type=int, default=2, help="so many at a time")
    arguments = parser.parse_args()
    mutations = [m for m in MUTATIONS if arguments.k.lower() in m.fault.lower()]
    for mutation in mutations:
        count = (ROOT / mutation.file).read_text().count(mutation.old)
        if count != 1:
            sys.exit(f"{mutation.fault}: {mutation.old!r} is {count} times in {mutation.file}")
    if "no work to do" not in run(["ninja", "-n"], BUILD).stdout:
        sys.exit("the extension is older than its sources: build it first (make build)")
    # The slow ones first, so that both workers end at about the same time.
    mutations.sort(key=lambda m: (m.compiles != KERNELS, not m.compiles))

    start, missed = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.j) as workers:
        copies: queue.Queue[Copy] = queue.Queue()
        for i in range(arguments.j):
            copies.put(Copy(Path(folder, str(i))))

        def attempt(method: Callable[[Copy, Any], str], argument: Any) -> str:
            copy = copies.get()
            try:
                return method(copy, argument)
            finally:
                copies.put(copy)

        # Without any fault all are to pass: in one run, but for those that options select.
        options = {m.tests for m in mutations if " " in m.tests}
        together = " ".join(sorted({m.tests for m in mutations} - options))
        runs = sorted({together, *options} - {""})
        unplanted = [workers.submit(attempt, Copy.failed_test, tests) for tests in runs]
        results = [(m, workers.submit(attempt, Copy.plant, m)) for m in mutations]
        for mutation, result in results:
            caught = result.result()
            missed += not caught
            print(f"{mutation.fault:62} {caught or 'SURVIVED'}", flush=True)
        if failed := [test for test in (result.result() for result in unplanted) if test]:
            sys.exit(f"without any fault these fail as well, so nothing is known: {failed}")
    seconds = time.perf_counter() - start
    print(f"{len(mutations) - missed} of {len(mutations)} faults caught in {seconds:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
