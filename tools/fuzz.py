"""Run random programs around act_reg: make fuzz [ARGS="--minutes 60 --seed 1"].

tests/programs.py says what a program is, and what its results have to be. For each find this
prints a script that repeats it, as small as hypothesis can make it, and goes on. A later failure
of the same kind counts as the same find if its program has all that the script's program has. If
the script does not fail in a new process, there is no find: a failed trace can leave PyTorch in a
bad state. Such failures are counted. Ctrl-C ends the run with the summary. Exits with 1 if there
were finds.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Programs in one round of a family. The rounds of all families take about as long as each other.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--seed", type=int, default=None, help="of the programs (default: any)")
    parser.add_argument("--families", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    arguments = parser.parse_args()
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        fuzzer = Fuzzer(start + 60 * arguments.minutes)
        try:
            fuzzer.run(arguments.families, random.Random(seed))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    counts = ", ".join(f"{family} {n}" for family, n in sorted(fuzzer.counts.items()))
    print(
        f"{sum(fuzzer.counts.values())} programs in {time.monotonic() - start:.0f} s "
        f"(seed {seed}): {counts}; finds: {fuzzer.found}; not repeated: "
        f"{len(fuzzer.finds) - fuzzer.found}"
    )
    return 1 if fuzzer.found else 0


class Fuzzer:
    """The programs run so far, and the finds."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.counts: Counter[str] = Counter()
        self.finds: list[tuple[str, frozenset[str]]] = []
        self.found = 0

    def run(self, families: list[str], numbers: random.Random) -> None:
        while time.monotonic() < self.end:
            for family in families:
                self.round(family, numbers.randrange(2**32))
                if time.monotonic() >= self.end:
                    return

    def round(self, family: str, seed: int) -> None:
        """Run some programs of a family; on a failure, shrink and report."""
        import hypothesis

        from tests import programs, strategies

        smallest: list[Any] = []  # program, error, kind
        began = [0.0]

        def attempt(program: programs.Program) -> None:
            now = time.monotonic()
            if now >= self.end and not smallest or smallest and now > began[0] + SHRINKING:
                return
            if not smallest:
                self.counts[family] += 1
            try:
                programs.check(program)
            except Exception as error:
                kind = kind_of(error)
                if smallest and kind != smallest[2] or self.is_known(kind, features_of(program)):
                    return
                if not smallest:
                    began[0] = now
                smallest[:] = [program, error, kind]
                raise

        test = hypothesis.given(strategies.FAMILIES[family])(attempt)
        test = hypothesis.settings(
            max_examples=ROUNDS[family],
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            report_multiple_bugs=False,
            verbosity=hypothesis.Verbosity.quiet,
        )(test)
        try:
            hypothesis.seed(seed)(test)()
        except Exception:
            if not smallest:
                raise
            self.report(family, *smallest)
        gc.collect()

    def is_known(self, kind: str, features: frozenset[str]) -> bool:
        return any(kind == known and needed <= features for known, needed in self.finds)

    def report(self, family: str, program: Any, error: BaseException, kind: str) -> None:
        from tests.programs import script

        self.finds.append((kind, features_of(program)))
        text = script(program, error)
        if subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True).returncode:
            self.found += 1
            print(f"\n# Find {self.found}, family {family}\n{text}", flush=True)
        else:
            commented = text.replace("\n", "\n#   ")
            print(f"\n# Not repeated by this script, family {family}:\n#   {commented}", flush=True)


def kind_of(error: BaseException) -> str:
    """What went wrong, without the numbers."""
    kind = getattr(error, "kind", None)
    if kind is not None:
        return str(kind)
    text = re.sub(r"\d+|0x[0-9a-f]+", "#", str(error).partition("\n")[0])
    return f"{type(error).__name__}: {text[:100]}"


def features_of(program: Any) -> frozenset[str]:
    """What is not the simplest choice in a program; numbers that matter little left out."""
    features = set()
    for part in (program.call, program.layout, *program.steps):
        name = type(part).__name__
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name in ("activation", "parameters", "key", "dim", "size", "step", "chunk"):
                continue
            if value != field.default:
                is_text = isinstance(value, (str, bool))
                features.add(f"{name}.{field.name}" + (f"={value}" if is_text else ""))
        if name not in ("Call", "Layout"):
            features.add(part.name())
    if program.kept() != "input":
        features.add(f"keeps {program.kept()}")
    if program.dtype in ("float16", "bfloat16"):
        features.add("half")
    if program.traced_shape:
        features.add("traced_shape")
    seed = program.call.seed
    features.add("large seed" if isinstance(seed, int) and seed >= 2**63 else type(seed).__name__)
    return frozenset(features - {"int"})


if __name__ == "__main__":
    sys.exit(main())
