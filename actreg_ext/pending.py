"""Who owns a penalty between its forward and the loss: the module, or a record.

Note [Whose penalty]
A penalty belongs to the forward that made it, and a forward belongs to one training step. The step
of a forward is over
- when `collect_penalty` has taken the penalty or `discard_penalty` has dropped it,
- when a backward has freed the graph of the forward, or
- when nothing uses the output any more and the model has run again: the batch was skipped.
The penalty of a step that is over does not join a later loss.

Compiled code puts its forwards into a linked list, because it can put a link in front without
looking at the others: torch.compile compiles again for each length of a Python list, and a running
sum would put the graph of one step into the next. No maths here.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable

from torch import Tensor, nn

from .forwards import CompiledForward, Forward, is_freed, is_over, links
from .garbage import collect_garbage_of_compilation, note_compilation, removal
from .late import late
from .worlds import ESCAPED, World, modes, stack

_MANY = 1000  # pending forwards of one module before a warning: their graphs fill the memory
_LIMIT = 8  # forwards of one module until its list is examined
_serials = itertools.count(1)


class Pending:
    """The forwards of one module whose penalties nobody has taken yet."""

    def __init__(self) -> None:
        self.eager: list[Forward] = []  # the oldest first
        self.limit = _LIMIT  # examine the list when it is as long as this
        self.warned = False
        self.compiled: CompiledForward | None = None  # the newest
        self.watched: CompiledForward | None = None  # the newest of those only a record may read

    def add_compiled(self, penalty: Tensor, sums: Tensor | None, counts: bool) -> None:
        """Put a forward in front of a list, in code that torch.compile traces."""
        if counts:
            self.compiled = made = CompiledForward(penalty, self.compiled)
        else:
            self.watched = made = CompiledForward(penalty, self.watched)
        made.sums = sums
        note_compilation()

    def add(self, penalty: Tensor, is_recorded: bool = False) -> Forward:
        """Add a forward in eager mode. This runs in each training forward, so it must be fast."""
        world = None if stack() is None and modes() == 0 else World.current()
        made = Forward(penalty, world, next(_serials), is_recorded)
        self.eager.append(made)
        if len(self.eager) >= self.limit:
            self._examine()
        return made

    def _examine(self) -> None:
        """Drop what is over, so that a program which never collects keeps no graphs."""
        # Each layer's penalty keeps the graph up to this layer, so a look at one list alone would
        # find all its graphs in use. Loose penalties let the graphs go.
        over = {id(forward) for forward in self.eager[:-1] if is_over(forward)}
        self._drop(over)
        self.limit = max(_LIMIT, 2 * len(self.eager))
        if len(self.eager) >= _MANY and not self.warned:
            self.warned = True
            warnings.warn(
                f"ActReg: one module has run {len(self.eager)} training forwards without "
                f"collect_penalty(model), so their penalties and graphs fill the memory; call it "
                f"in each step, or set l1 = l2 = 0",
                stacklevel=6,  # the line that calls the module
            )

    def _drop(self, ids: set[int]) -> None:
        """Drop some forwards in eager mode, by their ids."""
        with removal:
            eager = self.eager
            count = len(eager)  # another thread may add more meanwhile
            dropped = eager[:count]  # they are freed after the lock
            eager[:count] = [forward for forward in dropped if id(forward) not in ids]

    def clear(self) -> None:
        """Drop everything."""
        self.eager, self.compiled = [], None

    def cut(self, world: World | None) -> tuple[list[Forward], list[CompiledForward], bool]:
        """Remove and return the caller's forwards, and whether the newest of all has escaped.

        A forward has escaped if it ran in a world that has ended. Inside a world the forwards from
        outside stay: the caller's transform must not take them.
        """
        with removal:
            eager = self.eager[:]
            if world is not None:
                level = world.level()
                running = [f for f in eager if f.world and f.world.is_running()]
                stay = {id(f) for f in running if f.world and f.world.level() != level}
                self._drop({id(f) for f in eager if f.world} - stay)
                return [f for f in running if id(f) not in stay], [], False
            self._drop(set(map(id, eager)))
            compiled, self.compiled = list(links(self.compiled)), None
        escaped = bool(eager and eager[-1].world)
        return [f for f in eager if f.world is None], compiled, escaped

    def remove(self, forwards: Iterable[Forward | CompiledForward]) -> None:
        """Remove some forwards, wherever they are in the lists."""
        removed = set(map(id, forwards))
        self._drop(removed)
        with removal:
            kept = [f for f in links(self.compiled) if id(f) not in removed]
            self.compiled = None
            for forward in reversed(kept):
                forward.older = self.compiled
                self.compiled = forward


class PenaltyModule(nn.Module):
    """A module whose penalties `collect_penalty` finds: the base class of ActReg."""

    inject: bool
    _pending: Pending


def take(stores: list[Pending]) -> tuple[list[Forward], bool]:
    """Remove and return the forwards of some modules whose step is not over.

    Returns:
        The forwards, and whether compiled code has made any of them.

    Raises:
        RuntimeError: the newest forward of a module has escaped from its world.
    """
    world = World.current()
    lists, escaped, any_compiled = [], False, False
    with removal:
        for store in stores:
            if world is None and store.compiled is None:  # the usual case, as short as possible
                if not store.eager:
                    continue
                if len(store.eager) == 1 and store.eager[0].world is None:
                    lists.append([store.eager.pop(0)])
                    continue
            eager, compiled, has_escaped = store.cut(world)
            # The newest is the last one. If there are both kinds, it is not known which is newer.
            lists.append([f.as_forward() for f in reversed(compiled)] + eager)
            any_compiled |= bool(compiled)
            del compiled  # would keep graphs
            escaped |= has_escaped
    if escaped:
        raise RuntimeError(ESCAPED)
    if world is None and any(len(forwards) > 1 for forwards in lists):
        lists = _without_what_is_over(lists, any_compiled)
    return [forward for forwards in lists for forward in forwards], any_compiled


def _without_what_is_over(lists: list[list[Forward]], any_compiled: bool) -> list[list[Forward]]:
    """Drop the forwards whose step is over; each list has the newest last."""
    # A graph may be kept by the penalty of a later layer, so all are made loose before one is read.
    for forwards in lists:
        for forward in forwards[:-1]:
            forward.loosen()
    if any_compiled:
        collect_garbage_of_compilation()
    # A module that ran in a skipped step only (an expert, a branch) has no later forward. But other
    # modules have run both before its forward and after it.
    spans = [
        (older.serial, newer.serial)
        for forwards in lists
        for older, newer in zip(forwards, forwards[1:], strict=False)
    ]
    for forwards in lists:
        if any(begin < newest.serial < end for newest in forwards[-1:] for begin, end in spans):
            forwards[-1].loosen()
    return [
        [f for f in forwards[:-1] if not is_over(f)]
        + [f for f in forwards[-1:] if f.get() is not None]
        for forwards in lists
    ]


def collected(forwards: list[Forward]) -> list[Tensor]:
    """Return the penalties of forwards that were taken.

    If a backward has freed the graph of a forward, its step is over. So its penalty is dropped if a
    newer forward still waits for its backward. If no forward waits, see late.py.
    """
    penalties, freed = [], []
    for forward in forwards:
        penalty = forward.get()
        assert penalty is not None  # take() has dropped those whose graph is gone
        penalties.append(penalty)
        freed.append(forward.world is None and is_freed(penalty))
    if True not in freed:
        return penalties
    each = list(zip(forwards, penalties, freed, strict=True))
    waiting = [f.serial for f, p, is_freed in each if p.requires_grad and not is_freed]
    newest = max(waiting, default=0)
    return [
        late(p) if is_freed else p
        for f, p, is_freed in each
        if not is_freed or not waiting or newest < f.serial < math.inf
    ]


def penalty_of(forward: Forward) -> Tensor:
    """Return the penalty of a forward that a record keeps; see late.py."""
    penalty = forward.get()
    assert penalty is not None  # a record keeps the graph
    return late(penalty) if forward.world is None and is_freed(penalty) else penalty
