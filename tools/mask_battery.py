"""Test the random bits of the dropout mask: docs/mask.md explains the tests and has the results.

    .venv/bin/python tools/mask_battery.py SmallCrush --testu01 ~/testu01
    .venv/bin/python tools/mask_battery.py report    # the table of all runs
    .venv/bin/python tools/mask_battery.py quick     # needs numpy, not TestU01

The script compiles mask_battery.cpp, and runs one program after the other. The logs of the runs are
in build/mask_battery. A run that has a log is not repeated.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mask_battery"
PROGRAM = BUILD / "mask_battery"
STREAMS = "sequential seeds offsets generator seeds-1 seeds-3 seeds-12".split()
STREAMS += "offsets-1 offsets-3 offsets-12 shard random-seeds".split()
LINE = re.compile(r"^p-value\t(\S+)\t(.*)$", re.M)
ORDINARY = 0.001, 0.999  # p-values outside are listed
PROBABILITIES = 0.1, 0.5  # of dropout


def build(testu01: Path | None) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    command = "g++ -std=c++17 -O3 -march=native -Wall -Wextra -Icsrc".split()
    if testu01:
        command += ["-isystem", f"{testu01}/include", f"-L{testu01}/lib"]
    command += ["-o", str(PROGRAM), "tools/mask_battery.cpp"]
    command += ["-ltestu01", "-lprobdist", "-lmylib", "-lm"] if testu01 else []
    subprocess.run(command, cwd=ROOT, check=True)
    subprocess.run([PROGRAM], check=True)  # Philox's known answers


def run_battery(battery: str, stream: str, view: str, rounds: int, seed: int) -> None:
    arguments = [battery, stream, view, str(rounds), str(seed)]
    log = BUILD / (".".join(arguments) + ".log")
    if log.exists() and LINE.search(log.read_text()):
        return
    with log.open("w") as file:
        subprocess.run([PROGRAM, *arguments], stdout=file, check=True)


def shown(p: float) -> str:
    return f"{p:.2g}" if p < 0.5 else f"1 - {1 - p:.2g}"


def report() -> None:
    """Print the p-values outside ORDINARY: one line for each battery, stream, view and seed."""
    found: dict[tuple[str, ...], dict[int, list[tuple[float, str]]]] = {}
    for log in sorted(BUILD.glob("*.log")):
        battery, stream, view, rounds, seed = log.stem.split(".")
        values = [
            (float(p), f"{name}: {shown(float(p))}") for p, name in LINE.findall(log.read_text())
        ]
        runs = found.setdefault((battery, stream, view, seed), {})
        runs[int(rounds)] = [value for value in values if value[0] >= 0]  # -1: did not run
    all_rounds = sorted({rounds for runs in found.values() for rounds in runs})
    head = [f"{rounds} rounds" for rounds in all_rounds]
    print("| " + " | ".join(["battery", "stream", "view", "seed", "p-values", *head]) + " |")
    print("|" + " --- |" * (5 + len(head)))
    for key, runs in found.items():
        cells = [str(max(map(len, runs.values())))]
        for rounds in all_rounds:
            unusual = [s for p, s in runs.get(rounds, []) if not ORDINARY[0] <= p <= ORDINARY[1]]
            listed = "; ".join(unusual) if len(unusual) < 4 else f"**{len(unusual)}**"
            cells.append(listed or ("none" if rounds in runs else "not run"))
        print("| " + " | ".join([*key, *cells]) + " |")
    for rounds in all_rounds:
        values = [value for runs in found.values() for value, _ in runs.get(rounds, [])]
        outside = sum(not ORDINARY[0] <= value <= ORDINARY[1] for value in values)
        print(f"\n{rounds} rounds: {outside} of {len(values)} p-values outside {ORDINARY}")


@cache
def halves(stream: str, run: int, rounds: int, seed: int, count: int) -> np.ndarray:
    command = [PROGRAM, "halves", stream, *map(str, (run, rounds, seed, count))]
    written = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(written, np.uint16)


def standardized(r: np.ndarray, p: float) -> np.ndarray:
    """keep(i), shifted and scaled to mean 0 and variance 1."""
    threshold = round((1 - p) * 65536)
    q = threshold / 65536
    return ((r < threshold) - np.float32(q)) / np.float32(math.sqrt(q * (1 - q)))


def quick_checks(rounds: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """The name of a check, and its scores. Each score has a standard normal distribution."""
    count = 2**24
    for stream, run in ("sequential", 64), ("seeds", 32), ("offsets", 32), ("generator", 32):
        r = halves(stream, run, rounds, seed, count)
        ones = np.array([np.count_nonzero(r >> bit & 1) for bit in range(16)])
        yield f"{stream}: number of ones, 16 bit places", (2 * ones - count) / math.sqrt(count)
        for p in PROBABILITIES:
            x = standardized(r, p)
            lags = [np.dot(x[:-lag], x[lag:]) / math.sqrt(count - lag) for lag in range(1, 65)]
            yield f"{stream}, p = {p}: autocorrelation, lags 1 to 64", np.array(lags)
    for stream, run in ("sequential", 64), ("seeds", 1), ("offsets", 1), ("generator", 1):
        scores = []
        for shift in 12, 0:  # the top four bits of four consecutive r, then the bottom four bits
            r = halves(stream, run, rounds, seed, count) >> shift & 15
            cells = np.bincount(r.reshape(-1, 4) @ [4096, 256, 16, 1], minlength=65536)
            chi2 = np.sum((cells - count / 4 / 65536) ** 2) / (count / 4 / 65536)
            scores.append((chi2 - 65535) / math.sqrt(2 * 65535))
        name = f"{stream}, {run} of each" if run == 1 else stream
        yield f"{name}: chi-squared of four neighbours", np.array(scores)
    for stream in "seeds", "offsets", "generator", "random-seeds", "seed-bits", "offset-bits":
        masks, size = 65 if "-bits" in stream else 512, 2**16
        r = halves(stream, size, rounds, seed, masks * size).reshape(masks, size)
        for p in PROBABILITIES:
            x = standardized(r, p)
            pairs = (x @ x.T / math.sqrt(size))[np.triu_indices(masks, 1)]
            yield f"{stream}, p = {p}: correlation of {masks} masks, all pairs", pairs


def maximum_p(z: np.ndarray) -> float:
    """How probable a score is that is at least as large as the largest of these."""
    return -math.expm1(z.size * math.log1p(-math.erfc(np.abs(z).max() / math.sqrt(2))))


def sum_p(z: np.ndarray) -> float:
    """How probable a sum of squares is that is at least as large. Wilson and Hilferty, 1931."""
    ninth = 2 / (9 * z.size)
    cube_root = (np.square(z, dtype=np.float64).sum() / z.size) ** (1 / 3)
    return math.erfc((cube_root - 1 + ninth) / math.sqrt(2 * ninth)) / 2


def quick(all_rounds: list[int], seed: int) -> None:
    """Print the largest score of each check, and two p-values."""
    print("| check | scores |" + "".join(f" {rounds} rounds |" for rounds in all_rounds))
    print("| --- | --- |" + " --- |" * len(all_rounds))
    for checks in zip(*(quick_checks(rounds, seed) for rounds in all_rounds), strict=True):
        line = f"| {checks[0][0]} | {checks[0][1].size} |"
        for _, z in checks:
            line += f" {np.abs(z).max():.2f} ({maximum_p(z):.2g}, {sum_p(z):.2g}) |"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", help="SmallCrush, Crush, SimpPoker, Alphabit, report or quick")
    parser.add_argument("--testu01", type=Path, help="where TestU01 is installed")
    parser.add_argument("--streams", nargs="+", default=STREAMS)
    parser.add_argument("--views", nargs="+", default=["halves"])
    parser.add_argument("--rounds", nargs="+", type=int, default=[5, 7, 10])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    given = parser.parse_args()
    if given.what == "report":
        return report()
    build(given.testu01)
    if given.what == "quick":
        return quick(given.rounds, given.seeds[0])
    for run in product([given.what], given.streams, given.views, given.rounds, given.seeds):
        run_battery(*run)


if __name__ == "__main__":
    main()
