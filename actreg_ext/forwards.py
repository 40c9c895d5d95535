"""One forward of a module, in eager mode and in compiled code, and whether its step is over.

See Note [Whose penalty] in pending.py. No maths here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from . import _C
from .worlds import World

# Every ActReg, by its id, in the order in which they were made. Compiled code cannot report its
# forwards, so records.py and garbage.py look for them here.
MODULES: WeakValueDictionary[int, Any] = WeakValueDictionary()


class Forward:
    """One forward of a module, in eager mode."""

    __slots__ = ("is_recorded", "loose", "penalty", "serial", "sums", "world")

    def __init__(
        self, penalty: Tensor, world: World | None, serial: float, is_recorded: bool = False
    ) -> None:
        self.penalty: Tensor | None = penalty  # None: loose
        self.world = world
        self.serial = serial  # the number of this forward among all forwards in eager mode
        self.loose: _C.LoosePenalty | None = None
        self.sums: Tensor | None = None  # sum |t| and sum t^2, if a record asked for them
        self.is_recorded = is_recorded  # by a record, which keeps the graph

    def loosen(self) -> None:
        """Stop keeping the graph alive, where something else may."""
        penalty = self.penalty  # another thread may do the same
        if penalty is not None and self.world is None and not self.is_recorded:
            loose = _C.loosen(penalty)
            if loose is not None:
                self.loose = loose
                self.penalty = None

    def get(self) -> Tensor | None:
        """Return the penalty; None if it is loose and its graph is gone."""
        penalty = self.penalty
        return self.loose.get() if penalty is None and self.loose is not None else penalty


class CompiledForward:
    """One forward of a module in compiled code: a link of a list, the newest first.

    Compiled code makes instances, so they are as simple as this. It cannot ask in which world or
    thread it runs.
    """

    def __init__(self, penalty: Tensor, older: CompiledForward | None) -> None:
        self.penalty = penalty
        self.older = older

    sums: Tensor | None = None
    is_seen = False  # by `records.sweep`

    def as_forward(self) -> Forward:
        """Return the same forward as eager mode has it."""
        made = Forward(self.penalty, None, math.inf)  # it is not known when it ran
        made.sums = self.sums
        return made


def links(newest: CompiledForward | None) -> Iterator[CompiledForward]:
    """Yield the forwards of a list, the newest first."""
    while newest is not None:
        yield newest
        newest = newest.older


def is_freed(penalty: Tensor) -> bool:
    """Whether a backward has freed the graph of the penalty's forward."""
    freed = _C.is_freed(penalty)
    if freed is not None:
        return freed
    if isinstance(penalty.grad_fn, torch.autograd.function.BackwardCFunction):
        try:
            penalty.grad_fn._raw_saved_tensors  # noqa: B018
        except RuntimeError:  # of a compiled program's node whose backward has run
            return True
    return False


def is_over(forward: Forward) -> bool:
    """Whether the step of a forward that is not the newest is over: see Note [Whose penalty]."""
    if forward.world is not None:
        return not forward.world.is_running()
    penalty = forward.penalty
    if penalty is not None and not forward.is_recorded and _C.is_in_use(penalty) is False:
        return True  # what usually holds, and the cheapest to ask
    forward.loosen()
    penalty = forward.get()
    return penalty is None or is_freed(penalty)
