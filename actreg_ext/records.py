"""`record_penalties`: the penalties of all calls inside a block, whatever models make them.

The list of a module's own pending forwards is in pending.py. No maths here.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .forwards import MODULES, CompiledForward, Forward, links
from .pending import PenaltyModule, penalty_of
from .worlds import ESCAPED

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_LOCK = threading.Lock()


class _Stack(threading.local):
    """The records of a thread that are open, the outermost first."""

    def __init__(self) -> None:
        self.records: list[PenaltyRecord] = []


class _Watch:
    """What compiled code may read: whether any thread has an open record, and one with sums."""

    def __init__(self) -> None:
        self.is_on = False
        self.wants_sums = False
        self.open: list[PenaltyRecord] = []

    def change(self, record: PenaltyRecord, *, opens: bool) -> None:
        with _LOCK:
            self.open.append(record) if opens else self.open.remove(record)
            self.is_on = bool(self.open)
            self.wants_sums = any(record.wants_sums for record in self.open)


stack = _Stack()
watch = _Watch()


def sweep() -> None:
    """Give the forwards of compiled code that no record has seen to the records of this thread."""
    for module in list(MODULES.values()):
        pending = module._pending
        watched, pending.watched = pending.watched, None
        for newest in (pending.compiled, watched):
            for made in reversed([f for f in links(newest) if not f.is_seen]):
                made.is_seen = True
                for record in stack.records:
                    record._calls.append((module, made.as_forward(), made))


class PenaltyRecord:
    """The calls of ActReg modules inside a `record_penalties` block, which has an example."""

    def __init__(self, sums: bool) -> None:
        self.wants_sums = sums
        # (module, forward, what the module's list has)
        self._calls: list[tuple[PenaltyModule, Forward, Forward | CompiledForward]] = []

    def __enter__(self) -> Self:
        """Begin to record."""
        sweep()
        stack.records.append(self)
        watch.change(self, opens=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop recording; forget the calls if the block ends with an exception."""
        sweep()
        stack.records.remove(self)
        watch.change(self, opens=False)
        by_module: dict[PenaltyModule, list[Forward | CompiledForward]] = {}
        for module, _, listed in self._calls:
            by_module.setdefault(module, []).append(listed)
        for module, forwards in by_module.items():
            module._pending.remove(forwards)
        if kind is not None:
            forgotten = {id(listed) for _, _, listed in self._calls}
            for record in (self, *stack.records):
                record._calls = [call for call in record._calls if id(call[2]) not in forgotten]

    def total(self) -> Tensor:
        """Return the sum of the recorded penalties, differentiable where the calls were.

        Returns:
            A 0-d tensor on the device of the first penalty; 0 on the CPU if nothing was recorded.
        """
        penalties = [self._penalty(forward) for _, forward in self._seen()]
        if not penalties:
            return torch.zeros(())
        return sum_of(penalties)

    def by_layer(self, model: nn.Module | None = None) -> dict[str, Tensor]:
        """Return the sum of the recorded penalties of each module.

        Args:
            model: its names name the modules, and other modules are left out. None: the modules
                are named "0", "1", ... in the order of their first calls.

        Returns:
            {name: 0-d tensor}, in the order of the first calls; of the modules of a compiled model,
            in the order in which the modules were made.
        """
        penalties: dict[str, list[Tensor]] = {}
        for name, forward in self._named(model):
            penalties.setdefault(name, []).append(self._penalty(forward))
        return {name: sum_of(values) for name, values in penalties.items()}

    def sums(self, model: nn.Module | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Return sum |t| and sum t^2 of each module, without l1, l2 and the divisor D.

        Also for modules with l1 = l2 = 0. t is as in `act_reg`: see `penalty_on`.

        Args:
            model: as in `by_layer`.

        Returns:
            {name: (sum |t|, sum t^2)}, added up over the calls.

        Raises:
            RuntimeError: the block was opened without sums=True.
        """
        if not self.wants_sums:
            raise RuntimeError("sums: open the block with record_penalties(sums=True)")
        both: dict[str, list[Tensor]] = {}
        for name, forward in self._named(model):
            if forward.sums is not None:
                both.setdefault(name, []).append(forward.sums)
        totals = {name: sum_of(values) for name, values in both.items()}
        return {name: (total[0], total[1]) for name, total in totals.items()}

    def _seen(self) -> list[tuple[PenaltyModule, Forward]]:
        if self in stack.records:
            sweep()
        return [(module, forward) for module, forward, _ in self._calls]

    def _named(self, model: nn.Module | None) -> list[tuple[str, Forward]]:
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module or None, but got {type(model).__name__}")
        names: dict[nn.Module, str] = {}
        if model is not None:
            names = {module: name for name, module in model.named_modules()}
        named = []
        for module, forward in self._seen():
            if model is None:
                names.setdefault(module, str(len(names)))
            if module in names:
                named.append((names[module], forward))
        return named

    @staticmethod
    def _penalty(forward: Forward) -> Tensor:
        if forward.world is not None and not forward.world.is_running():
            raise RuntimeError(ESCAPED)
        return penalty_of(forward)


def sum_of(tensors: list[Tensor]) -> Tensor:
    """Return the sum of some tensors, on the device of the first one."""
    total = tensors[0]
    if len(tensors) > 2 and len({(t.device, t.dtype) for t in tensors}) == 1:
        return torch.stack(tensors).sum(0)  # two operations instead of one for each tensor
    for tensor in tensors[1:]:
        total = total + tensor.to(total.device)
    return total


def recorded(module: PenaltyModule, forward: Forward) -> None:
    """Tell the records of this thread about a forward in eager mode."""
    for record in stack.records:
        record._calls.append((module, forward, forward))


def record_penalties(*, sums: bool = False) -> Any:
    """Record the penalties of all ActReg calls inside a `with` block, of any number of models.

    Use a record where `collect_penalty(model)` does not fit: for several models at once, for a
    training step that may be skipped, and for values to be logged in eval mode or under no_grad::

        with record_penalties() as record:
            loss = criterion(student(x), teacher(x))
        (loss + record.total()).backward()

    A call in training mode with gradients enabled is recorded with its gradient; a call in eval
    mode, under `torch.no_grad()` or of a module with inject=True with its value alone. The record
    owns its calls: `collect_penalty` can take them inside the block, but no longer after it. A
    block that ends with an exception forgets its calls.

    Blocks may be nested: each block records all calls inside it. A block records the calls of its
    own thread; calls of compiled models also if another thread made them meanwhile. A compiled
    model compiles once more when it first runs inside a block.

    Args:
        sums: also record sum |t| and sum t^2, for `record.sums()`.

    Returns:
        A context manager that gives a `PenaltyRecord`: `total()`, `by_layer()` and `sums()`.

    Raises:
        TypeError: `sums` is not a bool.

    Example:
        >>> from actreg_ext.nn import ActReg
        >>> layer = ActReg("relu", l1=0.5, reduction="sum").eval()
        >>> with record_penalties(sums=True) as record:
        ...     y = layer(torch.tensor([-1.0, 2.0]))
        >>> record.total(), record.sums(layer)
        (tensor(1.), {'': (tensor(2.), tensor(4.))})
    """
    if not isinstance(sums, bool):
        raise TypeError(f"sums must be True or False, but got {type(sums).__name__}")
    return PenaltyRecord(sums)
