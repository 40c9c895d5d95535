"""What torch needs to be told from Python about the operators that csrc/torch registers.

`forward` is the op for traced graphs. The vmap rules compute example by example, because every
example has its own sums and, with dropout, its own positions; without a rule torch does the same
with a warning, and would ignore the `randomness` that the caller of vmap asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.actreg
forward = _ops.forward.default
forward_random = _ops.forward_random.default
forward_bits = _ops.forward_bits.default
forward_random_bits = _ops.forward_random_bits.default
forward_ = _ops.forward_.default
backward = _ops.backward.default
backward_bits = _ops.backward_bits.default
curvature = _ops.curvature.default


def _each(value: Any, dim: int | None, size: int) -> Sequence[Any]:
    """Return the argument of each example of the batch."""
    return [value] * size if dim is None else value.movedim(dim, 0).unbind(0)


def _stack(results: Sequence[Sequence[Tensor]]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    outputs = tuple(map(torch.stack, zip(*results, strict=True)))
    return outputs, (0,) * len(outputs)


def _batched(value: Tensor, dim: int | None, size: int) -> Tensor:
    """Return a tensor argument with the batch as its first dimension."""
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _empty(x: Tensor, rest: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, penalty and bits of no examples; x has the batch as its first dimension."""
    sums = () if rest[-1] is not None else (2,)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    bits = x.new_empty((0, -(-x.shape[1:].numel() // 8)), dtype=torch.uint8)
    return torch.empty_like(x), x.new_empty((0, *sums), dtype=dtype), bits


def _forward_vmap(
    op: Any,
    info: Any,
    in_dims: Sequence[int | None],
    x: Tensor,
    rng_state: Tensor | None,
    *rest: Any,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Batch a pure op: a shared rng_state gives every example the same mask."""
    if info.batch_size == 0:
        output, penalty, bits = _empty(_batched(x, in_dims[0], 0), rest)
        return ((output, penalty), (0, 0)) if op is forward else ((output, penalty, bits), (0,) * 3)
    examples = zip(
        _each(x, in_dims[0], info.batch_size),
        _each(rng_state, in_dims[1], info.batch_size),
        strict=True,
    )
    return _stack([op(x_i, state, *rest) for x_i, state in examples])


def _forward_random_vmap(
    op: Any,
    info: Any,
    in_dims: Sequence[int | None],
    x: Tensor,
    activation: str,
    parameters: Sequence[float],
    p: float,
    *rest: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Batch a drawing op, with the meaning torch.vmap gives to `randomness`."""
    if info.randomness == "error" and p > 0:
        raise RuntimeError(
            "vmap: act_reg with p > 0 draws random numbers: choose randomness='different' for a "
            "mask per example, randomness='same' for one mask, or pass a seed"
        )
    pure = forward if op is forward_random else forward_bits
    arguments = (activation, parameters, p, *rest)
    if info.batch_size == 0:
        batch = _batched(x, in_dims[0], 0)
        output, penalty, no_bits = _empty(batch, rest)
        state = batch.new_empty((0, 2), dtype=torch.int64)
        if pure is forward:
            return (output, penalty, state), (0, 0, 0)
        return (output, penalty, state, no_bits), (0, 0, 0, 0)
    xs = _each(x, in_dims[0], info.batch_size)
    if info.randomness == "different":
        return _stack([op(x_i, *arguments) for x_i in xs])
    output, penalty, state, *bits = op(xs[0], *arguments)
    others = [pure(x_i, state if p > 0 else None, *arguments) for x_i in xs[1:]]
    (output, penalty, *bits), dims = _stack([(output, penalty, *bits), *others])
    return (output, penalty, state, *bits), (*dims[:2], None, *dims[2:])


def _slope_vmap(
    op: Any, info: Any, in_dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Batch `backward` or `curvature`, which share their arguments."""
    dy, dpenalty, x, rng_state, activation, parameters, p, *rest = arguments
    rest = [activation, parameters, p, *rest]
    if info.batch_size == 0:
        return torch.empty_like(_batched(x, in_dims[2], 0)), 0
    if p == 0 and in_dims[1] is None:  # elementwise in x and dy: one call for the whole batch
        if dy is not None:
            dy = _batched(dy, in_dims[0], info.batch_size)
        return op(dy, dpenalty, _batched(x, in_dims[2], info.batch_size), None, *rest), 0
    tensors = (dy, dpenalty, x, rng_state)
    examples = zip(
        *[_each(t, in_dims[i], info.batch_size) for i, t in enumerate(tensors)], strict=True
    )
    return torch.stack([op(*example, *rest) for example in examples]), 0


def _backward_bits_vmap(
    info: Any, in_dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Batch `backward_bits`; sizes and strides are those of an example."""
    tensors, (sizes, _, dtype, *_) = arguments[:4], arguments[4:]
    if info.batch_size == 0:
        device = next(t.device for t in tensors if t is not None)
        return torch.empty((0, *sizes), dtype=dtype, device=device), 0
    examples = zip(
        *[_each(t, in_dims[i], info.batch_size) for i, t in enumerate(tensors)], strict=True
    )
    return torch.stack([backward_bits(*example, *arguments[4:]) for example in examples]), 0


for _op in (forward, forward_bits):
    torch.library.register_vmap(_op, partial(_forward_vmap, _op))
for _op in (forward_random, forward_random_bits):
    torch.library.register_vmap(_op, partial(_forward_random_vmap, _op))
for _op in (backward, curvature):
    torch.library.register_vmap(_op, partial(_slope_vmap, _op))
torch.library.register_vmap(backward_bits, _backward_bits_vmap)
