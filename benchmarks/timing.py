"""Times calls: one stopwatch, providers that take turns, and the statistics.

docs/performance.md explains the rounds. torch.utils.benchmark times one function after the other,
so a change of the machine's speed would hit only some of them.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

cuda: Any = torch.cuda  # has no types
Runs = Sequence[Callable[[], object]]  # the same call on each of the inputs that take turns

WARM_UPS = 3
SAMPLE = 200e-6  # seconds that a sample takes at least: thousands of times the clock's resolution
SLOW = 0.05  # seconds of a call that needs no repetition
GPU_CALLS = (3, 100)  # of a sample; more would fill the queue of launches


class Lap(NamedTuple):
    """Seconds of a call: on the device, and of the host until it has launched everything."""

    device: float
    host: float


Laps = dict[int, Lap]  # round -> lap


class Spread(NamedTuple):
    """The median, the 20th and the 80th percentile."""

    median: float
    low: float
    high: float


class Pace(NamedTuple):
    """How many rounds."""

    seconds: float  # that the rounds of one direction of one case may take together
    fewest: int  # however long they take
    most: int


PACES = {
    "quick": Pace(0.25, 3, 15),
    "published": Pace(1.0, 4, 25),
    "steps": Pace(30.0, 20, 100),
    "reused": Pace(2.5, 8, 60),
    "gpu": Pace(0.1, 5, 9),
}


class Stopwatch:
    """Times a call on one device."""

    def __init__(self, device: str) -> None:
        self.device, self.lead = device, 1 << 21  # cycles

    def __call__(self, runs: Runs, calls: int) -> Lap:
        turns = list(itertools.islice(itertools.cycle(runs), calls))
        if self.device != "cpu":
            return self._on_gpu(turns)
        start = time.perf_counter()
        for run in turns:
            run()
        seconds = (time.perf_counter() - start) / calls
        return Lap(seconds, seconds)

    def _on_gpu(self, turns: Runs) -> Lap:
        while True:
            begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            # The GPU sleeps until everything is launched, so that it never waits for a launch.
            cuda._sleep(self.lead)
            begin.record()
            start = time.perf_counter()
            for run in turns:
                run()
            host = time.perf_counter() - start
            was_in_time = not begin.query()
            end.record()
            end.synchronize()
            if was_in_time or self.lead >= 1 << 24:
                return Lap(begin.elapsed_time(end) / 1e3 / len(turns), host / len(turns))
            self.lead *= 2

    def calls(self, runs: Runs, sample: float = SAMPLE) -> int:
        """Warm up, and return how many calls make a sample long enough to be timed."""
        if self.device != "cpu":
            fewest, most = GPU_CALLS
            self(runs, WARM_UPS)
            return min(max(fewest, math.ceil(sample / max(self(runs, 3).device, 1e-9))), most)
        for _ in range(WARM_UPS):
            if self(runs, 1).device > SLOW:
                return 1
        calls = 1
        while (lap := self(runs, calls)).device * calls < sample / 2:
            calls *= 2
        return max(1, math.ceil(sample / lap.device))


def interleaved(rivals: dict[str, Runs], pace: Pace, watch: Stopwatch) -> dict[str, Laps]:
    """The laps of each rival. All have the same share of the time, and stop when it is spent."""
    calls = {name: watch.calls(runs) for name, runs in rivals.items()}
    laps: dict[str, Laps] = {name: {} for name in rivals}
    left = dict.fromkeys(rivals, pace.seconds / max(len(rivals), 1))
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(pace.most):
            running = [name for name in rivals if turn < pace.fewest or left[name] > 0]
            for name in running[:: -1 if turn % 2 else 1]:
                start = time.perf_counter()
                laps[name][turn] = watch(rivals[name], calls[name])
                left[name] -= time.perf_counter() - start
    finally:
        if was_enabled:
            gc.enable()
    return laps


def together(laps: dict[str, Laps], more: dict[str, Laps]) -> dict[str, Laps]:
    """The rounds of two processes, one after the other."""
    begin = 1 + max((turn for of in laps.values() for turn in of), default=-1)
    later = {name: {begin + turn: lap for turn, lap in of.items()} for name, of in more.items()}
    return {name: laps.get(name, {}) | later.get(name, {}) for name in laps | later}


def spread(values: Sequence[float]) -> Spread:
    """With linear interpolation between neighbours."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return Spread(statistics.median(values), low, high)


def paired(theirs: Laps, ours: Laps) -> Spread | None:
    """The ratios theirs / ours in the rounds in which both ran; None if there are none."""
    both = sorted(theirs.keys() & ours.keys())
    return spread([theirs[turn].device / ours[turn].device for turn in both]) if both else None
