"""Plant faults, one at a time, and see the tests catch them: make mutate [ARGS="-k dropout"].

faults.toml lists the faults. mutate.py plants one of each kind; with --all it plants every fault.
mutate.py works in copies of the tree, and compiles again only what a fault changes, for the
instruction set without flags (ATEN_CPU_CAPABILITY=default). The exit status is 1 if a fault
survives, does not compile, or is no longer found in the source.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import emulate
from copies import EMULATION, NATIVE, ROOT, Copy, run

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: pytest installs tomli
    import tomli as tomllib

KERNELS = ["csrc/cpu/default.cpp"]  # takes the longest to compile


class Fault(NamedTuple):
    """An entry of faults.toml, which explains the fields."""

    fault: str
    file: str
    before: str
    after: str
    tests: str
    compiles: list[str] = []
    emulated: bool = False
    rare: bool = False

    @property
    def build(self) -> Path:
        return EMULATION if self.emulated else NATIVE


def plant(copy: Copy, fault: Fault) -> str:
    """Return the test that caught the fault, or nothing; leave the copy as it was."""
    file = copy.path / fault.file
    text = file.read_text()
    try:
        file.write_text(text.replace(fault.before, fault.after))
        if fault.compiles:
            copy.build(fault.compiles)
        return copy.failed_test(fault.tests)
    finally:
        file.write_text(text)
        copy.restore()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", metavar="TEXT", default="", help="only the faults named so")
    parser.add_argument("-j", metavar="N", type=int, default=2, help="number of faults at a time")
    parser.add_argument("--all", action="store_true", help="every fault")
    arguments = parser.parse_args()
    entries = tomllib.loads(Path(__file__).with_name("faults.toml").read_text())["faults"]
    faults = [Fault(**entry) for entry in entries]
    for fault in faults:
        count = (ROOT / fault.file).read_text().count(fault.before)
        if count != 1:
            sys.exit(f"{fault.fault}: {fault.before!r} is {count} times in {fault.file}")
    if not (arguments.all or arguments.k):
        faults = [fault for fault in faults if not fault.rare]
    faults = [fault for fault in faults if arguments.k.lower() in fault.fault.lower()]
    if "no work to do" not in run(["ninja", "-n"], NATIVE).stdout:
        sys.exit("the extension is older than its sources: build it first (make build)")
    emulate.build()
    # The slow ones first, so that both workers end at about the same time.
    faults.sort(key=lambda fault: (fault.compiles != KERNELS, not fault.compiles))

    start, missed = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.j) as workers:
        copies: dict[Path, queue.Queue[Copy]] = {NATIVE: queue.Queue(), EMULATION: queue.Queue()}
        for (build, free), i in product(copies.items(), range(arguments.j)):
            free.put(Copy(Path(folder, f"{build.parent.name}-{i}"), build))

        def attempt(build: Path, what: Callable[[Copy, Any], str], argument: Any) -> str:
            copy = copies[build].get()
            try:
                return what(copy, argument)
            finally:
                copies[build].put(copy)

        # Without any fault all are to pass: in one run, but for those that options select.
        unplanted = []
        for build in copies:
            ours = {fault.tests for fault in faults if fault.build == build}
            options = {tests for tests in ours if " " in tests}
            together = " ".join(sorted(ours - options))
            runs = sorted({together, *options} - {""})
            unplanted += [workers.submit(attempt, build, Copy.failed_test, r) for r in runs]
        planted = [workers.submit(attempt, fault.build, plant, fault) for fault in faults]
        for fault, result in zip(faults, planted, strict=True):
            caught = result.result()
            missed += not caught
            print(f"{fault.fault:62} {caught or 'SURVIVED'}", flush=True)
        if failed := [test for test in (result.result() for result in unplanted) if test]:
            sys.exit(f"without any fault these fail as well, so nothing is known: {failed}")
    seconds = time.perf_counter() - start
    print(f"{len(faults) - missed} of {len(faults)} faults caught in {seconds:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
