"""Plant faults, one at a time, and see the tests catch them: make mutate [ARGS="-k dropout"].

Of each kind of fault one is planted, and with --all every fault.

A check that was never seen to fail is decoration. Everything happens in copies of the tree, which
are thrown away. Of the extension only what a fault changes is compiled again, for the instruction
set without flags (ATEN_CPU_CAPABILITY=default); everything else is taken from the last build.
Exits with 1 if a fault survives, does not compile, or is no longer found in the source.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import emulate
from copies import EMULATION, NATIVE, ROOT, Copy, run
from mutations import KERNELS, MORE, MUTATIONS, Mutation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", metavar="TEXT", default="", help="only the faults named so")
    parser.add_argument("-j", metavar="N", type=int, default=2, help="number of faults at a time")
    parser.add_argument("--all", action="store_true", help="every fault")
    arguments = parser.parse_args()
    chosen = MUTATIONS + MORE if arguments.all or arguments.k else MUTATIONS
    mutations = [m for m in chosen if arguments.k.lower() in m.fault.lower()]
    for mutation in MUTATIONS + MORE:
        count = (ROOT / mutation.file).read_text().count(mutation.old)
        if count != 1:
            sys.exit(f"{mutation.fault}: {mutation.old!r} is {count} times in {mutation.file}")
    if "no work to do" not in run(["ninja", "-n"], NATIVE).stdout:
        sys.exit("the extension is older than its sources: build it first (make build)")
    emulate.build()
    # The slow ones first, so that both workers end at about the same time.
    mutations.sort(key=lambda m: (m.compiles != KERNELS, not m.compiles))

    start, missed = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.j) as workers:
        copies: dict[Path, queue.Queue[Copy]] = {NATIVE: queue.Queue(), EMULATION: queue.Queue()}
        for build, waiting in copies.items():
            for i in range(arguments.j):
                waiting.put(Copy(Path(folder, f"{build.parent.name}-{i}"), build))

        def attempt(build: Path, method: Callable[[Copy, Any], str], argument: Any) -> str:
            copy = copies[build].get()
            try:
                return method(copy, argument)
            finally:
                copies[build].put(copy)

        def where(mutation: Mutation) -> Path:
            return EMULATION if mutation.emulated else NATIVE

        # Without any fault all are to pass: in one run, but for those that options select.
        unplanted = []
        for build in copies:
            ours = {m.tests for m in mutations if where(m) == build}
            options = {tests for tests in ours if " " in tests}
            together = " ".join(sorted(ours - options))
            runs = sorted({together, *options} - {""})
            unplanted += [workers.submit(attempt, build, Copy.failed_test, r) for r in runs]
        results = [(m, workers.submit(attempt, where(m), Copy.plant, m)) for m in mutations]
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
