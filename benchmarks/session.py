"""A session: every case of the plan is checked, timed, weighed and written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import correctness, machine, memory, results
from .cases import COMPILED, Planned
from .places import Subject, graphs_that_stay, inputs, subject
from .progress import progress
from .providers import PROVIDERS
from .timing import Pace, Stopwatch, interleaved

Group = dict[str, Any]
# Tensors of float64: what the truth and the backward of the rivals hold at a time.
TENSORS_AT_A_TIME = 31


class Session:
    """Measures the cases one by one; `groups` yields what is found in each."""

    def __init__(self, device: str, pace: Pace, seconds: float | None = None) -> None:
        self.device, self.pace = device, pace
        self.watch = Stopwatch(device)
        self.seconds = seconds
        self.left_out: list[dict[str, Any]] = []
        self.counted: dict[tuple[Any, ...], int | None] = {}

    def passes(self, plan: list[Planned]) -> list[list[Planned]]:
        """One; where the time is limited, what needs no compiler first, then compiler by compiler.

        The operator takes part in each, so that every ratio is one of neighbours.
        """
        if self.seconds is None:
            return [plan]
        compiled = [name for name in COMPILED if any(name in p.providers for p in plan)]
        first = [
            replace(item, providers=[n for n in item.providers if n not in COMPILED])
            for item in plan
        ]
        rest = [
            [replace(item, providers=["fused", name]) for item in plan if name in item.providers]
            for name in compiled
        ]
        return [first, *rest]

    def groups(self, plan: list[Planned], advance: Callable[[str], None]) -> Iterator[Group]:
        """What is found, case by case; what the memory or the time does not allow is noted."""
        passes = self.passes(plan)
        deadline = time.monotonic() + (self.seconds or float("inf"))
        for turn, planned in enumerate(passes):
            left = len(passes) - turn if turn else min(len(passes), 2)  # half is for the first
            until = time.monotonic() + (deadline - time.monotonic()) / left
            for item in planned:
                advance(item.case.describe())
                if time.monotonic() > until:
                    self.leave_out(item, "no time was left")
                elif machine.free_bytes(self.device) < TENSORS_AT_A_TIME * 8 * item.case.elements:
                    self.leave_out(item, "no memory was left")
                else:
                    with graphs_that_stay():
                        yield self.group(item)

    def leave_out(self, item: Planned, why: str) -> None:
        case = item.case._asdict()
        self.left_out.append({"case": case, "providers": item.providers, "why": why})

    def group(self, item: Planned) -> Group:
        """One case: the errors, the laps in each direction, the memory."""
        case = item.case
        xs, dy = inputs(case, self.device)
        providers = [PROVIDERS[name] for name in item.providers if PROVIDERS[name].fits(case)]
        group: Group = {
            "case": case._asdict(),
            "slices": item.slices,
            "errors": {},
            "failed": {},
            "memory": {},
        }
        subjects, judge = {}, correctness.Judge(case)
        for provider in providers:
            try:
                timed = subject(case, provider, xs, dy)
                error = judge.error(provider, timed)
            except Exception as failure:  # of one rival in one case: the others may be well
                group["failed"][provider.name] = f"{type(failure).__name__}: {failure}"[:300]
                continue
            group["errors"][provider.name] = error
            if error.is_right(case):
                subjects[provider.name] = timed
        del judge  # and the truth, which is large
        group["laps"] = {
            direction: interleaved(
                {name: timed.runs(direction) for name, timed in subjects.items()},
                self.pace,
                self.watch,
            )
            for direction in item.directions
        }
        for name, timed in subjects.items():
            if not timed.is_floor:
                key = (name, *case._replace(elements=0, dtype=""))
                group["memory"][name] = self.memory(key, timed, item.directions)
        return group

    def memory(self, key: tuple[Any, ...], timed: Subject, directions: list[str]) -> dict[str, Any]:
        x = timed.ready(timed.xs[0])
        whole = timed.runs("step" if "step" in directions else "both")[0]
        return {
            "saved": memory.saved_bytes(lambda: timed.function(x), timed.parameters),
            "peak": memory.peak_bytes(whole, self.device),
            "launches": self.launches(key, whole),
        }

    def launches(self, key: tuple[Any, ...], whole: Callable[[], object]) -> int | None:
        """Counted once for all sizes and types: the profiler is slow to start."""
        if key not in self.counted:
            self.counted[key] = memory.launches(whole, self.device)
        return self.counted[key]


def sit(session: Session, plan: list[Planned], found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Add what one process finds; the file is written group by group: an end loses nothing."""
    before = found["left_out"]
    if found["preset"] == "reused":
        machine.keep_memory()
    with progress(sum(map(len, session.passes(plan)))) as advance:
        for group in session.groups(plan, advance):
            results.add(found, group)
            found["left_out"] = before + session.left_out
            results.save(found, path)
    found["left_out"] = before + session.left_out
    return found


def chosen(plan: list[Planned], device: str) -> tuple[list[Planned], dict[str, str]]:
    """The plan for the providers that are here, and why the others are not."""
    wanted = [p for p in PROVIDERS.values() if any(p.name in item.providers for item in plan)]
    absent = {p.name: why for p in wanted if (why := p.why_absent(device))}
    here = [p.name for p in wanted if p.name not in absent]
    found = [replace(item, providers=[n for n in here if n in item.providers]) for item in plan]
    return [item for item in found if item.providers], absent
