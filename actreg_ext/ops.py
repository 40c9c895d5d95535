"""The registered operators of csrc/torch under short names, and their rules for torch.vmap.

`forward` is the operator that traced graphs contain.

A vmap rule says how to compute an operator for a batch of examples. The rules here call the
operator once for each example, because each example has its own sums and, with dropout, its own
positions. Only a backward without dropout, which is elementwise, is one call for the whole batch.
Without a rule torch calls the operator for each example too, but warns. The attributes `reduction`
and `order` describe one example, not the batch. The operators that draw a seed have no rule,
because under a transform the seed comes from torch.randint.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

from .reference import accumulation_dtype, denominator

_ops = torch.ops.actreg
forward = _ops.forward.default
forward_random = _ops.forward_random.default
forward_bits = _ops.forward_bits.default
forward_random_bits = _ops.forward_random_bits.default
forward_ = _ops.forward_.default
backward = _ops.backward.default
backward_bits = _ops.backward_bits.default
curvature = _ops.curvature.default
rng_state = _ops.rng_state.default
temporal = _ops.temporal.default
temporal_backward = _ops.temporal_backward.default


def _viewable(value: Tensor) -> Tensor:
    """Return a tensor of which views can be taken: `value`, or in forward-mode AD a copy.

    In forward mode torch takes the same view of a value and of its tangent. That fails if the two
    have different strides, or if one of them is lazily negated. A contiguous copy has neither.
    """
    levels = torch._C._functorch.get_interpreter_stack() or []
    is_forward = any(level.key() == TransformType.Jvp for level in levels)
    if is_forward or forward_ad._current_level >= 0:
        return value.clone(memory_format=torch.contiguous_format)
    return value


def _each(value: Tensor | None, dim: int | None, size: int) -> Sequence[Tensor | None]:
    """Return one argument per example: a slice along `dim`, or `value` itself if `dim` is None."""
    if value is None or dim is None:
        return [value] * size
    return _viewable(value).unbind(dim)


def _stack(results: Sequence[Sequence[Tensor]]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    outputs = tuple(map(torch.stack, zip(*results, strict=True)))
    return outputs, (0,) * len(outputs)


def _batched(value: Tensor, dim: int | None, size: int) -> Tensor:
    """Return the tensor with the batch as its first dimension."""
    value = _viewable(value)
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _empty(x: Tensor, coefficients: object) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, penalty and bits for a batch of 0 examples, which is x's first dimension."""
    sums = () if coefficients is not None else (2,)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    bits = x.new_empty((0, -(-x.shape[1:].numel() // 8)), dtype=torch.uint8)
    return torch.empty_like(x), x.new_empty((0, *sums), dtype=dtype), bits


def _forward_vmap(
    op: Any,
    info: Any,
    in_dims: Sequence[int | None],
    x: Tensor,
    rng_state: Tensor | None,
    *attributes: Any,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Batch `forward` or `forward_bits`: with one rng_state all examples have the same mask."""
    if info.batch_size == 0:
        output, penalty, bits = _empty(_batched(x, in_dims[0], 0), attributes[4])
        results = (output, penalty) if op is forward else (output, penalty, bits)
        return results, (0,) * len(results)
    examples = zip(
        _each(x, in_dims[0], info.batch_size),
        _each(rng_state, in_dims[1], info.batch_size),
        strict=True,
    )
    return _stack([op(x_i, state, *attributes) for x_i, state in examples])


def _slope_vmap(
    op: Any, info: Any, in_dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Batch `backward` or `curvature`, which have the same arguments."""
    dy, dpenalty, x, rng_state, activation, parameters, p, on_output, coefficients, *rest = (
        arguments
    )
    size = info.batch_size
    if size == 0:
        return torch.empty_like(_batched(x, in_dims[2], 0)), 0
    if p == 0 and in_dims[1] is None:  # elementwise, no mask: one call for all
        reduction, order, *flags = rest
        if dy is not None:
            dy = _batched(dy, in_dims[0], size)
        x = _batched(x, in_dims[2], size)
        if dpenalty is not None:  # divide by the D of one example here, and by 1 in the call
            dpenalty = dpenalty.double() / denominator(x[0], reduction)
        order = [0, *(dim + 1 for dim in order)] if order else []
        attributes = (activation, parameters, p, on_output, coefficients, "sum", order)
        return op(dy, dpenalty, x, None, *attributes, *flags), 0
    tensors = (dy, dpenalty, x, rng_state)
    examples = zip(*[_each(t, in_dims[i], size) for i, t in enumerate(tensors)], strict=True)
    return torch.stack([op(*example, *arguments[4:]) for example in examples]), 0


def _backward_bits_vmap(
    info: Any, in_dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Batch `backward_bits`; its argument `sizes` is the shape of one example."""
    tensors, (sizes, dtype, *_) = arguments[:5], arguments[5:]
    if info.batch_size == 0:
        device = next(t.device for t in tensors if t is not None)
        return torch.empty((0, *sizes), dtype=dtype, device=device), 0
    examples = zip(
        *[_each(t, in_dims[i], info.batch_size) for i, t in enumerate(tensors)], strict=True
    )
    return torch.stack([backward_bits(*example, *arguments[5:]) for example in examples]), 0


def _rng_state_vmap(
    info: Any, in_dims: Sequence[int | None], x: Tensor, state: Tensor | None, seed: int
) -> tuple[Tensor, int | None]:
    """Batch `rng_state`, which uses only the device of x."""
    dim = in_dims[1]
    if state is None or dim is None:
        return rng_state(x, state, seed), None
    states = [rng_state(x, example, 0) for example in state.unbind(dim)]
    return (torch.stack(states) if states else state.movedim(dim, 0).to(x.device)), 0


def _temporal_vmap(
    op: Any, info: Any, in_dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Batch `temporal` or `temporal_backward`: dim and order are those of one example."""
    *tensors, dim, order = arguments
    if info.batch_size == 0:
        h = _batched(tensors[-2], in_dims[len(tensors) - 2], 0)
        shape = (0,) if op is temporal else h.shape
        return h.new_empty(shape, dtype=accumulation_dtype(h) if op is temporal else h.dtype), 0
    each = [_each(t, in_dims[i], info.batch_size) for i, t in enumerate(tensors)]
    return torch.stack([op(*example, dim, order) for example in zip(*each, strict=True)]), 0


for _op in (temporal, temporal_backward):
    torch.library.register_vmap(_op, partial(_temporal_vmap, _op))
for _op in (forward, forward_bits):
    torch.library.register_vmap(_op, partial(_forward_vmap, _op))
for _op in (backward, curvature):
    torch.library.register_vmap(_op, partial(_slope_vmap, _op))
torch.library.register_vmap(backward_bits, _backward_bits_vmap)
torch.library.register_vmap(rng_state, _rng_state_vmap)
