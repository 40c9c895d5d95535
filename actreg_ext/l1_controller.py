"""The controller that steers l1 towards a share of active units. penalties.py exports it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import arguments
from .reference import ActSums
from .sum_penalty import REDUCTIONS, between, check_sums, divided, rows

# The logarithm of active share / target is clipped to [-1, 1]. So one step changes l1 by a bounded
# factor, also if no unit is active.
LIMIT = 1.0


class L1Controller(nn.Module):
    r"""Steers l1 so that a given share of the units is active (a target L0).

    The module is an L1 penalty whose factor `l1` it changes itself. A call returns the penalty::

        l1 * sum_c S1[c] / D

    and counts active elements if the module is in training mode. `step`, once after each step of
    the optimizer, changes l1 by a factor, so it is an integral and proportional controller of
    log(l1)::

        share = sum_c N[c] / (number of rows * C)            over all calls since the last step
        e = clip(log(share / target), -1, 1)
        l1 = clip(l1 * exp(gain * e + damping * (e - previous e)), min_l1, max_l1)

    Too many active units make l1 grow, too few make it shrink. If all rows have weight 0, l1 stays.
    All values are tensors: a step never waits for the device, and can be compiled or captured in a
    CUDA graph.

    Instead of calling the module, you may pass `controller.l1` as `l1=` of `act_reg` and give the
    sums to `step`. Then call `step` after the backward, which needs the old l1.

    In data-parallel training, give all processes the same counts: all-reduce `sums.count` and
    `sums.weight` first. `sums._replace(count=..., weight=...)` makes the new sums.

    Shapes: sums of any number of channels; the penalty and the buffers are 0-d.

    Args:
        target: the share of active units, in (0, 1). For k active units in each row: k / C.
        l1: the first value of l1; above 0.
        gain: how fast l1 changes: with twice as many active units as wanted, l1 grows by the factor
            exp(0.69 * gain) in each step. At least 0. If the share swings around the target, make
            it smaller.
        damping: factor of the change of e, which damps the swings; at least 0.
        min_l1: lower bound of l1; above 0.
        max_l1: upper bound of l1; at least min_l1.
        reduction: the divisor D of the penalty. "mean": W, the number of elements; "row": W / C,
            the number of rows; "sum": 1.

    Attributes:
        l1: the current factor, float32.
        share: the share of active units at the last step, float32; before the first step, the
            target.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    References:
        Rezende and Viola, "Taming VAEs", arXiv:1810.00597: the update of log(l1) by a constraint.
        Stooke, Achiam and Abbeel, "Responsive safety in reinforcement learning by PID Lagrangian
        methods", arXiv:2007.03964: the damping. Gallego-Posada et al., "Controlled sparsity via
        constrained optimization", arXiv:2208.04425: a share of active units as the constraint.

    Example:
        >>> from actreg_ext.reference import act_sums
        >>> controller = L1Controller(target=0.1, l1=0.01, gain=0.5, damping=0.0)
        >>> penalty = controller(act_sums(torch.ones(8, 4), "relu", channel_dim=1))  # all active
        >>> controller.step()
        >>> controller.share, controller.l1  # l1 = 0.01 * exp(0.5)
        (tensor(1.), tensor(0.0165))
    """

    l1: Tensor
    share: Tensor
    active: Tensor
    elements: Tensor

    def __init__(
        self,
        target: float,
        l1: float = 1e-3,
        gain: float = 0.01,
        damping: float = 1.0,
        min_l1: float = 1e-8,
        max_l1: float = 1e4,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.target = between("target", target, 0.0, 1.0)
        self.gain = arguments.coefficient("gain", gain)
        self.damping = arguments.coefficient("damping", damping)
        self.min_l1 = between("min_l1", min_l1, 0.0, math.inf)
        self.max_l1 = between("max_l1", max_l1, 0.0, math.inf)
        if not self.min_l1 <= arguments.real("l1", l1) <= self.max_l1:
            raise ValueError(
                f"l1 must be between min_l1 and max_l1, but got l1={l1}, "
                f"min_l1={min_l1}, max_l1={max_l1}"
            )
        self.reduction = arguments.choice("reduction", reduction, REDUCTIONS)
        for name, value in (("l1", l1), ("share", self.target), ("active", 0), ("elements", 0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    def forward(self, sums: ActSums) -> Tensor:
        """Return the penalty; in training mode, count the active elements."""
        check_sums("L1Controller", sums, False)
        if self.training:
            self.observe(sums)
        l1 = self.l1.clone()  # a step before the backward must not change what the backward reads
        return divided(l1 * sums.l1.sum(), sums, self.reduction).to(sums.l1.dtype)

    @torch.no_grad()
    def observe(self, sums: ActSums, count_rows: float | Tensor | None = None) -> None:
        """Count the active elements for the next step.

        Args:
            sums: what `act_sums` returned.
            count_rows: the number of rows with a weight other than 0. None takes W / C, which is
                right if all weights are 0 or 1.
        """
        check_sums("L1Controller", sums, False)
        number = rows(sums) if count_rows is None else count_rows
        self.active += sums.count.sum()
        self.elements += number * sums.count.numel()

    @torch.no_grad()
    def step(self, sums: ActSums | None = None) -> None:
        """Change l1 by the counts since the last step, and by those of `sums` if given."""
        if sums is not None:
            self.observe(sums)
        is_seen = self.elements > 0
        share = torch.where(is_seen, self.active / self.elements, self.share)
        change = self.gain * self._error(share)
        change = change + self.damping * (self._error(share) - self._error(self.share))
        l1 = (self.l1 * change.exp()).clamp(self.min_l1, self.max_l1)
        self.l1.copy_(torch.where(is_seen, l1, self.l1))
        self.share.copy_(share)
        self.active.zero_()
        self.elements.zero_()

    def _error(self, share: Tensor) -> Tensor:
        return (share / self.target).log().clamp(-LIMIT, LIMIT)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> L1Controller:
        """Move the buffers with the module, but keep float32: half types lose small changes."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def extra_repr(self) -> str:
        """Return the arguments for the module's repr."""
        return (
            f"target={self.target:g}, gain={self.gain:g}, damping={self.damping:g}, "
            f"min_l1={self.min_l1:g}, max_l1={self.max_l1:g}, reduction={self.reduction}"
        )
