"""How a call sees its input beyond one flat list of elements, and the checks of these arguments.

Channels, row weights and the geometry of the mask: docs/operator.md defines them. No maths here.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import errors
from .arguments import check

DROPOUT = ("standard", "alpha")


class Shard(NamedTuple):
    """Says that the input is a block of a larger tensor, so that the mask is a block of its mask.

    Attributes:
        global_shape: the shape of the whole tensor.
        offsets: where the input begins in the whole tensor, one index for each dimension.
    """

    global_shape: Sequence[int]
    offsets: Sequence[int]


class Rows(NamedTuple):
    """The options of a call that are not those of one flat list of elements, checked."""

    channel_dim: int | None = None  # at least 0; None: the whole input is one channel
    row_weight: Tensor | None = None
    shared_dims: tuple[int, ...] = ()  # each at least 0
    alpha: bool = False
    global_shape: tuple[int, ...] = ()  # () without a shard
    offsets: tuple[int, ...] = ()


FLAT = Rows()


def check_all(
    input: Tensor,
    l1: float | Tensor,
    l2: float | Tensor,
    p: float | Tensor,
    training: bool,
    penalty_on: str,
    reduction: str,
    seed: int | Tensor | None,
    keep: str,
    options: tuple[Any, ...],
) -> tuple[float | Tensor, float | Tensor, float | Tensor, Rows]:
    """Check all arguments of `act_reg` except the activation.

    `options` are channel_dim, row_weight, shared_dims, dropout and shard. Returns l1, l2 and p
    (numbers as floats), and the options, which are FLAT itself if neither they nor a tensor ask for
    the general form.
    """
    given = (l1, l2, p)
    numbers = tuple(0.0 if isinstance(value, Tensor) else value for value in given)
    floats = check(
        input, numbers[0], numbers[1], numbers[2], training, penalty_on, reduction, seed, keep
    )
    l1, l2, p = (
        value if isinstance(value, Tensor) else number
        for value, number in zip(given, floats, strict=True)
    )
    channel_dim, row_weight, shared_dims, dropout, shard = options
    has_tensors = any(isinstance(value, Tensor) for value in given)
    if (
        not has_tensors
        and channel_dim is row_weight is shard is None
        and type(shared_dims) is tuple
        and (shared_dims, dropout) == ((), "standard")
    ):
        return l1, l2, p, FLAT
    return l1, l2, p, _check_options(input, l1, l2, p, penalty_on, *options)


def needed(rows: Rows, l1: float | Tensor, l2: float | Tensor, p: float | Tensor) -> Rows:
    """Return the options that matter for a call: FLAT if none does.

    Without dropout, shared dimensions, shards and alpha dropout do not matter; without tensors and
    weights the channels do not.
    """
    if not isinstance(p, Tensor) and p == 0:
        rows = Rows(channel_dim=rows.channel_dim, row_weight=rows.row_weight)
    has_tensors = any(isinstance(value, Tensor) for value in (l1, l2, p, rows.row_weight))
    if not has_tensors:
        rows = rows._replace(channel_dim=None)
        return FLAT if rows == FLAT else rows
    return rows


def _check_options(
    input: Tensor,
    l1: float | Tensor,
    l2: float | Tensor,
    p: float | Tensor,
    penalty_on: str,
    channel_dim: int | None,
    row_weight: Tensor | None,
    shared_dims: Sequence[int],
    dropout: str,
    shard: Shard | None,
) -> Rows:
    check_dropout(dropout, penalty_on)
    channel = None if channel_dim is None else _dim("channel_dim", channel_dim, input)
    if row_weight is not None:
        _check_row_weight(input, row_weight, channel)
    shared = tuple(_dim("shared_dims", dim, input) for dim in check_shared_dims(shared_dims))
    if len(set(shared)) < len(shared):
        raise ValueError(f"shared_dims must name each dimension once, but got {shared_dims}")
    whole = () if shard is None else _shard(input, shard)
    for name, value in (("l1", l1), ("l2", l2)):
        if isinstance(value, Tensor):
            _check_coefficient(name, value, input, channel)
    if isinstance(p, Tensor):
        _check_probability(p)
    return Rows(channel, row_weight, shared, dropout == "alpha", *whole)


def check_shared_dims(shared_dims: object) -> tuple[int, ...]:
    """Return the shared dimensions as a tuple; raise unless they are ints."""
    dims = (shared_dims,) if isinstance(shared_dims, int) else shared_dims
    if isinstance(dims, bool | str) or not isinstance(dims, Sequence):
        raise TypeError(f"shared_dims must be ints, but got {errors.shown(shared_dims)}")
    for dim in dims:
        if isinstance(dim, bool) or not isinstance(dim, Integral):
            raise TypeError(f"shared_dims must be ints, but got {errors.shown(shared_dims)}")
    return tuple(int(dim) for dim in dims)


def check_dropout(dropout: object, penalty_on: str) -> str:
    """Return the kind of dropout; raise unless it is one of `DROPOUT` and fits the penalty."""
    if not isinstance(dropout, str):
        raise errors.probability_as_dropout(dropout)
    if dropout not in DROPOUT:
        raise errors.not_one_of("dropout", dropout, DROPOUT)
    if dropout == "alpha" and penalty_on == "output":
        raise ValueError(
            'dropout="alpha" accepts only penalty_on="activation", but got penalty_on="output": '
            "dropped elements would not be 0"
        )
    return dropout


def _dim(argument: str, dim: object, input: Tensor) -> int:
    """Return a dimension of the input, counted from 0; raise unless the input has it."""
    if isinstance(dim, bool) or not isinstance(dim, Integral | torch.SymInt):
        raise TypeError(f"{argument} must be an int, but got {errors.shown(dim)}")
    dims = input.dim()
    index = int(dim)
    if not -dims <= index < dims:
        accepted = f"in [{-dims}, {dims - 1}]" if dims else "left out, because the input is 0-d"
        raise ValueError(f"{argument} must be {accepted}, but got {dim}")
    return index % dims


def _check_row_weight(input: Tensor, weight: Tensor, channel: int | None) -> None:
    if not isinstance(weight, Tensor) or weight.is_complex():
        raise TypeError(
            f"row_weight must be a tensor of bool, integers or real numbers, "
            f"but got {errors.shown(weight)}"
        )
    if weight.requires_grad:
        raise ValueError("row_weight gets no gradient: pass row_weight.detach()")
    if weight.device != input.device:
        raise ValueError(
            f"row_weight must be on the input's device {input.device}, but is on {weight.device}"
        )
    shape = (1,) * (input.dim() - weight.dim()) + tuple(weight.shape)
    accepted = list(input.shape)
    if channel is not None:
        accepted[channel] = 1
    if len(shape) != len(accepted) or any(
        given not in (1, size) for given, size in zip(shape, accepted, strict=True)
    ):
        text = " (size 1 in channel_dim)" if channel is not None else ""
        raise ValueError(
            f"row_weight must broadcast to shape {accepted}{text}, "
            f"but has shape {list(weight.shape)}"
        )


def _shard(input: Tensor, shard: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return global_shape and offsets; raise unless the input lies within the whole tensor."""
    try:
        whole, offsets = (tuple(map(int, part)) for part in shard)
    except (TypeError, ValueError):
        raise TypeError(
            f"shard must be Shard(global_shape, offsets), two sequences of ints, "
            f"but got {errors.shown(shard)}"
        ) from None
    dims, sizes = input.dim(), tuple(input.shape)
    if (
        not len(whole) == len(offsets) == dims
        or min(offsets, default=0) < 0
        or any(o + n > w for o, n, w in zip(offsets, sizes, whole, strict=True))
    ):
        raise ValueError(
            f"shard: an input of shape {list(sizes)} must lie within global_shape at the offsets, "
            f"but got {shard}"
        )
    return whole, offsets


def _check_coefficient(argument: str, value: Tensor, input: Tensor, channel: int | None) -> None:
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{argument}, if it is a tensor, must be float32 or float64, "
            f"but got {errors.shown(value)}"
        )
    if value.device != input.device:
        raise ValueError(
            f"{argument} must be on the input's device {input.device}, but is on {value.device}"
        )
    if value.dim() == 0 or (channel is not None and value.shape == (input.shape[channel],)):
        return
    accepted = "of shape []; with one number for each channel, pass channel_dim too"
    if channel is not None:
        accepted = f"of shape [] or [{input.shape[channel]}], one for each channel"
    raise ValueError(
        f"{argument}, if it is a tensor, must be {accepted}, but got {errors.shown(value)}"
    )


def _check_probability(p: Tensor) -> None:
    if p.dim() != 0 or not p.is_floating_point():
        raise ValueError(
            f"p, if it is a tensor, must be 0-d and of a floating-point dtype, "
            f"but got {errors.shown(p)}"
        )
    if p.requires_grad:
        raise ValueError("p gets no gradient: pass p.detach()")
