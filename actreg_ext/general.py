"""The way of a call in the general form: rows, channels, and tensors for l1, l2 and p.

dispatch.py has the way of a flat call. No maths here: reference.py says what is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import _C, ops
from .arguments import rng_state
from .dispatch import DEVICES, is_exporting, warn_without_kernel
from .reference import ActRegOutput, ActSums, accumulation_dtype, composite_sums, penalty_of
from .reference_mask import draw, memory_order
from .rows import Rows

GENERAL_DEVICES = DEVICES - {"cuda"}


def run_general(
    x: Tensor,
    activation: str,
    parameters: tuple[float, ...],
    rows: Rows,
    l1: float | Tensor,
    l2: float | Tensor,
    p: float | Tensor,
    penalty_on: str,
    reduction: str,
    seed: int | Tensor | None,
    keep_input: bool,
) -> ActRegOutput:
    """Compute `act_reg` in its general form, from arguments that are already checked."""
    if (  # the operator itself can compute the penalty
        rows.row_weight is None
        and not isinstance(l1, Tensor)
        and not isinstance(l2, Tensor)
        and not is_dynamo_compiling()
        and not _needs_composite(x, p)
    ):
        flat = rows._replace(channel_dim=None)
        options = (activation, parameters, p, penalty_on, seed, keep_input, flat)
        return ActRegOutput(*_call(x, *options, [l1, l2], reduction))
    sums = sums_of(x, activation, parameters, p, penalty_on, seed, keep_input, rows)
    return ActRegOutput(sums.output, penalty_of(x, sums, l1, l2, reduction, rows))


def sums_of(
    x: Tensor,
    activation: str,
    parameters: tuple[float, ...],
    p: float | Tensor,
    penalty_on: str,
    seed: int | Tensor | None,
    keep_input: bool,
    rows: Rows,
) -> ActSums:
    """Compute `act_sums` from arguments that are already checked."""
    if _needs_composite(x, p):
        warn_without_kernel(x)
        return composite_sums(x, activation, parameters, p, penalty_on, seed, rows)
    dtype = accumulation_dtype(x)
    if rows.row_weight is None:
        weight = x.new_full((), x.numel(), dtype=dtype)
    else:
        narrow = rows.row_weight.to(dtype)
        rows = rows._replace(row_weight=narrow)
        weight = _total(narrow, x).to(dtype)
    channels = rows if rows.channel_dim is not None else rows._replace(channel_dim=-1)
    options = (activation, parameters, p, penalty_on, seed, keep_input, channels)
    output, sums = _call(x, *options, None, "sum")
    if rows.channel_dim is None:
        sums = sums.squeeze(1)
    l1, l2, count = sums.unbind()
    return ActSums(output, l1.to(dtype), l2.to(dtype), count.detach().to(torch.int64), weight)


def _total(weight: Tensor, x: Tensor) -> Tensor:
    """Return the sum of the weights over all elements of x, with the same bits for any threads."""
    one_channel = Rows(channel_dim=-1, row_weight=weight)
    options = ("identity", (), 0.0, "activation", None, False, one_channel)
    _, sums = _call(torch.ones_like(weight), *options, None, "sum")
    return sums[0, 0] * (x.numel() / max(weight.numel(), 1))


def _call(
    x: Tensor,
    activation: str,
    parameters: tuple[float, ...],
    p: float | Tensor,
    penalty_on: str,
    seed: int | Tensor | None,
    keep_input: bool,
    rows: Rows,
    coefficients: list[float] | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Call the operator in its general form: return the output and the penalty or the sums."""
    state = None
    if isinstance(p, Tensor):
        state = rng_state(draw(x.device) if seed is None else seed, x, p)
    elif p > 0:
        traced = is_dynamo_compiling()
        state = (draw(x.device) if traced else None) if seed is None else rng_state(seed, x)
    number = None if isinstance(p, Tensor) else p
    head = (x, state, activation, parameters, number, penalty_on == "output", coefficients)
    tail = (keep_input, rows.channel_dim, rows.shared_dims, rows.global_shape, rows.offsets)
    if not is_dynamo_compiling():
        return _C.forward_general(*head, reduction, *tail, rows.alpha, rows.row_weight)
    result: tuple[Tensor, Tensor] = ops.forward(
        *head, reduction, memory_order(x), *tail, rows.alpha, rows.row_weight
    )
    return result


def _needs_composite(x: Tensor, p: float | Tensor) -> bool:
    """Whether plain PyTorch must compute the general form: in an export, or without a kernel."""
    is_exported = not isinstance(p, Tensor) and p == 0 and is_exporting()
    return x.device.type not in GENERAL_DEVICES or is_exported
