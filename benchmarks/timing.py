"""How long calls take: the one stopwatch, rivals that take turns, and the statistics of it.

A machine that changes its speed must not decide, so all rivals of a case run in each round, every
other round in the opposite order, and a comparison is the median over the rounds of the ratio of
two times of the same round.
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
Runs = Sequence[Callable[[], object]]  # the same call on each of the inputs that rotate

WARM_UPS = 3
SAMPLE = 200e-6  # seconds that a sample takes at least: the clock's resolution times thousands
SLOW = 0.05  # seconds of a call
GPU_CALLS = (3, 100)  # of a sample; more would fill the queue of launches


class Lap(NamedTuple):
    """Seconds of a call: on the device, and of the host until it has all been launched."""

    device: float
    host: float
    calls: int = 1  # that it is the mean of


Laps = dict[int, Lap]  # round -> lap


class Spread(NamedTuple):
    """The median, and where the lowest and the highest fifth end."""

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
    "reused": Pace(2.5, 8, 60),
    "full": Pace(1.0, 7, 31),
    "gpu": Pace(0.1, 5, 9),
}


class Stopwatch:
    """Times a call on one device."""

    def __init__(self, device: str) -> None:
        self.device, self.lead = device, 1 << 21  # cycles

    def __call__(self, runs: Runs, calls: int) -> Lap:
        turns = itertools.islice(itertools.cycle(runs), calls)
        if self.device == "cpu":
            start = time.perf_counter()
            for run in turns:
                run()
            seconds = (time.perf_counter() - start) / calls
            return Lap(seconds, seconds, calls)
        return self._on_gpu(list(turns))

    def _on_gpu(self, turns: Runs) -> Lap:
        while True:
            begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            # The GPU is kept busy until all is launched, so that it never waits for a launch.
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
                calls = len(turns)
                return Lap(begin.elapsed_time(end) / 1e3 / calls, host / calls, calls)
            self.lead *= 2

    def calls(self, runs: Runs, sample: float = SAMPLE) -> int:
        """Warm up; then as many calls as make a sample long enough to be timed."""
        if self.device != "cpu":
            fewest, most = GPU_CALLS
            self(runs, WARM_UPS)
            return min(max(fewest, math.ceil(sample / max(self(runs, 3).device, 1e-9))), most)
        for _ in range(WARM_UPS):
            if self(runs, 1).device > SLOW:  # has warmed up whatever there is
                return 1
        calls = 1
        while (lap := self(runs, calls)).device * calls < sample / 2:
            calls *= 2
        return max(1, math.ceil(sample / lap.device))


def interleaved(rivals: dict[str, Runs], pace: Pace, watch: Stopwatch) -> dict[str, Laps]:
    """The laps of each rival in each round.

    Each has the same share of the time, and leaves the rounds to the others when it is spent.
    """
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
    """The rounds of two sittings, one after the other."""
    begin = 1 + max((turn for of in laps.values() for turn in of), default=-1)
    later = {name: {begin + turn: lap for turn, lap in of.items()} for name, of in more.items()}
    return {name: laps.get(name, {}) | later.get(name, {}) for name in laps | later}


def spread(values: Sequence[float]) -> Spread:
    """Median, 20th and 80th percentile, with linear interpolation between neighbours."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return Spread(statistics.median(values), low, high)


def paired(theirs: Laps, ours: Laps) -> Spread | None:
    """Of the ratios theirs / ours of the rounds that both ran in; nothing if there are none."""
    both = theirs.keys() & ours.keys()
    if not both:
        return None
    return spread([theirs[turn].device / ours[turn].device for turn in sorted(both)])
