"""What the penalties of penalties.py share: their coefficient, their divisor and their checks.

A penalty here is a formula of the sums of `act_sums`. It must not read the activation itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import arguments, errors
from .reference import ActSums, quotient

REDUCTIONS = ("row", "mean", "sum")


class SumPenalty(nn.Module):
    """A penalty coefficient * measure(sums): the base class of the penalties here.

    A subclass computes `measure`, which returns a 0-d tensor. The coefficient is an attribute (a
    buffer or a parameter if it is a tensor) and may be changed at any time.
    """

    coefficient: float | Tensor
    per_channel = True  # whether the formula needs one sum for each channel

    def __init__(self, coefficient: float | Tensor) -> None:
        super().__init__()
        if isinstance(coefficient, Tensor):
            if coefficient.dim() or coefficient.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"coefficient, if it is a tensor, must be 0-d and float32 or float64, "
                    f"but got {errors.shown(coefficient)}"
                )
            register(self, "coefficient", coefficient)
        else:
            self.coefficient = arguments.coefficient("coefficient", coefficient)

    def forward(self, sums: ActSums) -> Tensor:
        """Return the penalty, a 0-d tensor of the dtype of the sums."""
        check_sums(type(self).__name__, sums, self.per_channel)
        if not isinstance(self.coefficient, Tensor) and self.coefficient == 0:
            return sums.l1.flatten()[:0].sum()  # 0 * inf would be NaN; 0 is part of the graph
        return (self.coefficient * self.measure(sums)).to(sums.l1.dtype)

    def measure(self, sums: ActSums) -> Tensor:
        """Return what the coefficient multiplies."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the arguments for the module's repr."""
        return f"coefficient={number(self.coefficient)}"


def number(value: float | Tensor) -> str:
    """Return a number as text. A tensor is not read, because that would wait for the device."""
    return "<tensor>" if isinstance(value, Tensor) else f"{value:g}"


def between(argument: str, value: object, low: float, high: float) -> float:
    """Return a number as a float; raise ValueError unless it is above `low` and below `high`."""
    given = arguments.real(argument, value)
    if not low < given < high:
        raise ValueError(f"{argument} must be above {low:g} and below {high:g}, but got {value}")
    return given


def register(module: nn.Module, name: str, value: Tensor) -> None:
    """Make a tensor a parameter of the module if it is an nn.Parameter, else a buffer."""
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    elif value.requires_grad:
        raise ValueError(
            f"{name} must be an nn.Parameter or a tensor that requires no gradient: the result of "
            f"a computation is valid for one backward only"
        )
    else:
        module.register_buffer(name, value)


def check_sums(taker: str, sums: object, per_channel: bool) -> None:
    """Raise unless `sums` comes from `act_sums`, with one sum for each channel if needed."""
    if not isinstance(sums, ActSums):
        raise TypeError(f"{taker} takes the sums of act_sums, but got {errors.shown(sums)}")
    if per_channel and sums.l1.dim() != 1:
        raise ValueError(
            f"{taker} needs one sum for each channel, but the sums were computed without "
            f"channel_dim: pass channel_dim"
        )


def rows(sums: ActSums) -> Tensor:
    """Return W / C: the number of rows, or the sum of their weights."""
    return sums.weight / max(sums.l1.numel(), 1)


def root(square: Tensor) -> Tensor:
    """Return the square root; the gradient at 0 is 0, not infinite."""
    is_zero = square == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, square).sqrt())


DIVIDED: dict[str, Callable[[Tensor, ActSums], Tensor]] = {
    "row": lambda total, sums: quotient(total, rows(sums)),
    "mean": lambda total, sums: quotient(total, sums.weight),
    "sum": lambda total, sums: total,
}


def divided(total: Tensor, sums: ActSums, reduction: str) -> Tensor:
    """Return total / D: D is W / C for "row", W for "mean", 1 for "sum"."""
    return DIVIDED[reduction](total, sums)
