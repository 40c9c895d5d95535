"""The memory layouts of the tensors in random programs (programs.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# values(n) returns a contiguous tensor of n numbers.
Values = Callable[[int], Tensor]


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory: it is taken from a dense block of memory as `kind` says.

    kind: "dense"        the whole block
          "sliced"       every `step`-th index of dimension `dim`, from `step - 1` on
          "expanded"     dimension `dim` has stride 0
          "overlapping"  all strides are 1
          "real"         the real part of a complex tensor: all strides are twice as large
          "imag of conj" the imaginary part of the conjugate: the same, and lazily negated
          "negated"      dense and lazily negated
          "odd"          the stride of each dimension of size 1 is 7, which has no effect
    """

    kind: str = "dense"
    order: tuple[int, ...] = ()  # the dimensions, outermost in memory first; (): row-major
    dim: int = 0
    step: int = 2
    skipped: int = 0  # elements before the block; an odd number makes x unaligned


KINDS = tuple(line.split('"')[1] for line in (Layout.__doc__ or "").splitlines() if '"' in line)


def lay_out(values: Values, shape: Sequence[int], layout: Layout) -> Tensor:
    """Return a tensor of this shape and layout."""
    shape, kind = list(shape), layout.kind
    if kind == "overlapping":
        length = sum(size - 1 for size in shape) + 1 if math.prod(shape) else 0
        return _numbers(values, length, layout).as_strided(shape, [1] * len(shape))
    block = list(shape)
    if kind == "sliced":
        block[layout.dim] = layout.step * shape[layout.dim]
    if kind == "expanded":
        block[layout.dim] = min(1, shape[layout.dim])
    order = layout.order or tuple(range(len(shape)))
    inverse = [order.index(dim) for dim in range(len(shape))]
    numbers = _numbers(values, math.prod(block), layout)
    x = numbers.view([block[dim] for dim in order]).permute(inverse)
    if kind == "sliced":
        ends = slice(layout.step - 1, None, layout.step)
        return x[(slice(None),) * layout.dim + (ends,)]
    if kind == "expanded":
        return x.expand(shape)
    if kind == "negated":
        return torch._neg_view(x)
    if kind == "odd":
        strides = [s if n != 1 else 7 for n, s in zip(shape, x.stride(), strict=True)]
        return x.as_strided(shape, strides)
    return x


def _numbers(values: Values, length: int, layout: Layout) -> Tensor:
    """Return the block as a tensor of one dimension."""
    if layout.kind in ("real", "imag of conj"):
        pairs = values(2 * (length + layout.skipped)).view(-1, 2)
        z = torch.view_as_complex(pairs)[layout.skipped :]
        return z.real if layout.kind == "real" else z.conj().imag
    return values(length + layout.skipped)[layout.skipped :]


def memory_order(x: Tensor) -> tuple[int, ...]:
    """Return the order in which positions are counted: the dimensions, outermost first.

    It is the memory order if the tensor is dense, that is, if its elements fill one block of memory
    and no two elements share a place. It is row-major for any other tensor.
    """
    placing = [dim for dim in range(x.dim()) if x.shape[dim] != 1]
    rest = [dim for dim in range(x.dim()) if x.shape[dim] == 1]
    ordered = sorted(placing, key=lambda dim: -x.stride(dim))
    filled = 1
    for dim in reversed(ordered):
        if x.stride(dim) != filled and x.numel() > 0:
            return tuple(range(x.dim()))
        filled *= x.shape[dim]
    return tuple(rest + ordered) if x.numel() > 0 else tuple(range(x.dim()))


def in_order(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return x as a dense tensor with this memory order."""
    inverse = [list(order).index(dim) for dim in range(x.dim())]
    return x.permute(tuple(order)).contiguous().permute(inverse)


def placing_strides(x: Tensor) -> list[int]:
    """Return the strides of the dimensions larger than 1: other strides have no effect."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1]
