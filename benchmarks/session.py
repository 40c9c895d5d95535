"""A session: every case of the plan is checked, timed, weighed and saved."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import correctness, machine, memory, results
from .cases import COMPILED, Planned
from .places import Subject, graphs_that_stay, inputs, subject
from .providers import PROVIDERS
from .timing import Pace, Stopwatch, interleaved

Group = dict[str, Any]
# As many float64 tensors as the truth and the providers' backward need at one time.
TENSORS_AT_A_TIME = 31


class Session:
    """Measures the cases one by one; `groups` yields what is found in each."""

    def __init__(self, device: str, pace: Pace, seconds: float | None = None) -> None:
        self.device, self.pace, self.seconds = device, pace, seconds
        self.watch = Stopwatch(device)
        self.left_out: list[dict[str, Any]] = []
        self.counted: dict[tuple[Any, ...], int | None] = {}

    def passes(self, plan: list[Planned]) -> list[list[Planned]]:
        """One pass. If the time is limited: first what needs no compiler, then by compiler.

        act_reg takes part in each pass, so that every ratio is one of neighbours.
        """
        if self.seconds is None:
            return [plan]
        passes = [limited(plan, [name for name in PROVIDERS if name not in COMPILED])]
        for name in COMPILED:
            rest = [item for item in plan if name in item.providers]
            passes.append(limited(rest, ["act_reg", name]))
        return list(filter(None, passes))

    def groups(self, plan: list[Planned]) -> Iterator[Group]:
        """What is found, case by case; cases without memory or time left are noted."""
        passes = self.passes(plan)
        deadline = time.monotonic() + (self.seconds or float("inf"))
        done, total, begun = 0, sum(map(len, passes)), time.monotonic()
        for turn, planned in enumerate(passes):
            # The first pass may take half of the time, a later one its share of what is left.
            left = len(passes) - turn if turn else min(len(passes), 2)
            until = time.monotonic() + (deadline - time.monotonic()) / left
            for item in planned:
                if time.monotonic() > until:
                    self.leave_out(item, "no time left")
                elif machine.free_bytes(self.device) < TENSORS_AT_A_TIME * 8 * item.case.elements:
                    self.leave_out(item, "no memory left")
                else:
                    with graphs_that_stay():
                        yield self.group(item)
                done += 1
                took = f"{time.monotonic() - begun:.0f} s"
                print(f"{done}/{total}, {took}: {item.case.describe()}", file=sys.stderr)

    def leave_out(self, item: Planned, why: str) -> None:
        case = item.case._asdict()
        self.left_out.append({"case": case, "providers": item.providers, "why": why})

    def group(self, item: Planned) -> Group:
        """One case: errors, the laps in each direction, memory."""
        case = item.case
        xs, dy = inputs(case, self.device)
        group: Group = {"case": case._asdict(), "slices": item.slices}
        group |= {part: {} for part in ("errors", "failed", "memory")}
        subjects, judge = {}, correctness.Judge(case, xs[0])
        for provider in (PROVIDERS[name] for name in item.providers):
            if provider.layer is None and case.place != "call":
                continue  # a copy cannot stand in for a network
            try:
                timed = subject(case, provider, xs, dy)
                error = judge.error(provider, timed)
            except Exception as failure:  # one provider may fail in one case
                group["failed"][provider.name] = f"{type(failure).__name__}: {failure}"[:300]
                continue
            group["errors"][provider.name] = error
            if error.is_right(case):
                subjects[provider.name] = timed
        del judge  # it holds large tensors
        group["laps"] = {}
        for direction in item.directions:
            rivals = {name: timed.runs(direction) for name, timed in subjects.items()}
            group["laps"][direction] = interleaved(rivals, self.pace, self.watch)
        for name, timed in subjects.items():
            if not timed.is_copy:
                key = (name, *case._replace(elements=0, dtype=""))
                group["memory"][name] = self.memory(key, timed, item.directions)
        return group

    def memory(self, key: tuple[Any, ...], timed: Subject, directions: list[str]) -> dict[str, Any]:
        whole = timed.runs("step" if "step" in directions else "both")[0]
        saved = memory.saved_bytes(lambda: timed.function(timed.xs[0]), timed.parameters)
        peak = memory.peak_bytes(whole, self.device)
        if key not in self.counted:  # once for all sizes and types, as the profiler starts slowly
            self.counted[key] = memory.launches(whole, self.device)
        return {"saved": saved, "peak": peak, "launches": self.counted[key]}


def sit(session: Session, plan: list[Planned], found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Add what one process finds. The file is saved after every case: an abort loses nothing."""
    before = found["left_out"]
    if found["preset"] == "reused":
        machine.keep_memory()
    for group in session.groups(plan):
        results.add(found, group)
        found["left_out"] = before + session.left_out
        results.save(found, path)
    found["left_out"] = before + session.left_out
    return found


def limited(plan: list[Planned], names: list[str]) -> list[Planned]:
    """The plan for these providers, in their order."""
    found = [replace(item, providers=[n for n in names if n in item.providers]) for item in plan]
    return [item for item in found if item.providers]


def chosen(plan: list[Planned], device: str) -> list[Planned]:
    """The plan for the providers of this device."""
    return limited(plan, [name for name in PROVIDERS if device in PROVIDERS[name].on])
