"""Penalties of compiled code that nobody collects: the garbage collector drops them.

Compiled code cannot look at its list of forwards, and no code of ours runs between the steps of a
compiled model. So a program that never collects would keep the graph of each step. No maths here.
"""

from __future__ import annotations

import gc
import threading

from . import _C
from .forwards import MODULES, CompiledForward, is_freed, links

_has_compiled = False


class Removal:
    """A lock for removing forwards: one thread may remove at a time. Adding needs no lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.depth = 0

    def __enter__(self) -> None:
        """Wait for the lock."""
        self.lock.acquire()
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.depth -= 1
        self.lock.release()


removal = Removal()


def note_compilation() -> None:
    """Note that torch.compile traces this. A compiled program does not run it."""
    global _has_compiled
    _has_compiled = True
    if _tidy not in gc.callbacks:
        gc.callbacks.append(_tidy)


# What torch.compiler.assume_constant_result sets, without the second that its import takes.
note_compilation._dynamo_marked_constant = True  # type: ignore[attr-defined]


def collect_garbage_of_compilation() -> None:
    """Free the graphs that torch.compile holds in circles of objects after it has compiled."""
    global _has_compiled
    if _has_compiled:
        _has_compiled = False
        gc.collect()


def _tidy(phase: str, info: dict[str, int]) -> None:
    """Drop the compiled forwards whose step is over, after a collection of garbage."""
    if phase != "stop" or info["generation"] == 0 or not removal.lock.acquire(blocking=False):
        return
    try:
        if removal.depth == 0:  # else this thread is in the middle of one
            # valuerefs() is one step: another thread may make a module meanwhile.
            modules = [module for ref in MODULES.valuerefs() if (module := ref()) is not None]
            newest = [module._pending.compiled for module in modules]
            drop_what_is_over([forward for forward in newest if forward and forward.older])
    finally:
        removal.lock.release()


def drop_what_is_over(newest: list[CompiledForward]) -> None:
    """Drop the compiled forwards whose step is over; keep the newest of each module."""
    lists = [list(links(forward)) for forward in newest]
    # One program has made the penalties of many layers, and each penalty keeps the graph of all.
    loose = {}
    for _, *older in lists:
        for forward in older:
            loose[id(forward)] = _C.loosen(forward.penalty) or forward.penalty
            del forward.penalty
    for last, *older in lists:
        for forward in older:
            kept = loose.pop(id(forward))
            penalty = kept.get() if isinstance(kept, _C.LoosePenalty) else kept
            if penalty is not None and not is_freed(penalty):
                forward.penalty = penalty
                last.older = last = forward
        last.older = None
