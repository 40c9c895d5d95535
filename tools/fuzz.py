"""Run random programs around act_reg: make fuzz [ARGS="--minutes 60 --seed 1"].

tests/programs.py defines a program and its right results. A find is a program that fails.
Hypothesis makes it as small as possible, and this prints a script that repeats it. A family of
programs stops at its first find; the others go on. A script that does not fail in a new process is
no find, as a failed trace can leave PyTorch in a bad state: then the family goes on. Ctrl-C ends
the run with the summary. Exits with 1 if there were finds.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Programs in one round of a family. A round takes about as long in every family.
ROUNDS = {
    "layout": 400,
    "layers": 120,
    "autograd": 200,
    "functorch": 120,
    "tracing": 30,
    "compile": 12,
    "inductor": 3,
}
SHRINKING = 60.0  # seconds at most for each find


def failure(family: str, seed: int, end: float, counts: Counter[str]) -> tuple[Any, Any] | None:
    """Run one round. Return the smallest program that fails, if one does, and its error."""
    import hypothesis

    from tests import programs, strategies

    smallest: list[Any] = []  # program, error, kind
    until = end

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=ROUNDS[family],
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(strategies.FAMILIES[family])
    def attempt(program: programs.Program) -> None:
        nonlocal until
        if time.monotonic() > until:
            return
        counts[family] += not smallest
        try:
            programs.check(program)
        except Exception as error:
            kind = getattr(error, "kind", type(error))
            if not smallest:
                until = time.monotonic() + SHRINKING
            elif kind != smallest[2]:  # another fault than the one to shrink
                return
            smallest[:] = [program, error, kind]
            raise

    try:
        attempt()
    except Exception:
        if not smallest:
            raise
    gc.collect()
    return (smallest[0], smallest[1]) if smallest else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--seed", type=int, help="of the programs (default: any)")
    parser.add_argument("--families", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    families, numbers, counts = options.families, random.Random(seed), Counter[str]()
    start, finds, not_repeated = time.monotonic(), 0, 0
    end = start + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            while families and time.monotonic() < end:
                family = families.pop(0)
                found = failure(family, numbers.randrange(2**32), end, counts)
                is_find = found is not None and report(family, *found)
                finds, not_repeated = finds + is_find, not_repeated + (bool(found) and not is_find)
                families += [] if is_find else [family]
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    each = ", ".join(f"{family} {n}" for family, n in sorted(counts.items()))
    print(
        f"{counts.total()} programs in {time.monotonic() - start:.0f} s (seed {seed}): {each}; "
        f"finds: {finds}; not repeated: {not_repeated}"
    )
    return 1 if finds else 0


def report(family: str, program: Any, error: BaseException) -> bool:
    """Print the script, and return whether it fails in a new process."""
    from tests.programs import script

    text = script(program, error)
    fails = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True).returncode
    title = "Find" if fails else "Not repeated by this script"
    print(f"\n# {title}, family {family}:\n{text}", flush=True)
    return bool(fails)


if __name__ == "__main__":
    sys.exit(main())
