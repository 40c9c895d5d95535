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

from collections.abc import Iterable, Sequence
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


def _each(value: Any, dim: int | None, size: int) -> Sequence[Any]:
    """Return one argument per example: a slice along `dim`, or `value` itself without one."""
    if dim is None or not isinstance(value, Tensor):
        return [value] * size
    return _viewable(value).unbind(dim)


def _stack(results: Sequence[Sequence[Tensor]]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    outputs = tuple(map(torch.stack, zip(*results, strict=True)))
    return outputs, (0,) * len(outputs)


def _batched(value: Tensor, dim: int | None, size: int) -> Tensor:
    """Return the tensor with the batch as its first dimension."""
    value = _viewable(value)
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _empty(x: Tensor, attributes: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, penalty and bits for a batch of 0 examples, which is x's first dimension."""
    coefficients, channel_dim = attributes[4], _channel_dim(attributes)
    sums: tuple[int, ...] = () if coefficients is not None else (2,)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if coefficients is None and channel_dim is not None:
        sums, dtype = (3, 1 if channel_dim < 0 else x.shape[channel_dim + 1]), torch.float64
    bits = x.new_empty((0, -(-x.shape[1:].numel() // 8)), dtype=torch.uint8)
    return torch.empty_like(x), x.new_empty((0, *sums), dtype=dtype), bits


def _forward_vmap(
    op: Any,
    info: Any,
    in_dims: Sequence[int | None],
    *arguments: Any,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Batch `forward` or `forward_bits`: with one rng_state all examples have the same mask."""
    attributes = arguments[2:]
    if info.batch_size == 0:
        output, penalty, bits = _empty(_batched(arguments[0], in_dims[0], 0), attributes)
        results = (output, penalty) if op is forward else (output, penalty, bits)
        return results, (0,) * len(results)
    return _stack([op(*example) for example in _examples(arguments, in_dims, info.batch_size)])


def _examples(
    arguments: Sequence[Any], in_dims: Sequence[int | None], size: int
) -> Iterable[Sequence[Any]]:
    """Return the arguments of each example."""
    each = [_each(value, dim, size) for value, dim in zip(arguments, in_dims, strict=True)]
    return zip(*each, strict=True)


def _slope_vmap(
    op: Any, info: Any, in_dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Batch `backward` or `curvature`, which have the same arguments."""
    dy, dpenalty, x, _, *attributes = arguments
    size = info.batch_size
    if size == 0:
        return torch.empty_like(_batched(x, in_dims[2], 0)), 0
    p, reduction, order = attributes[2], attributes[5], attributes[6]
    if p == 0 and in_dims[1] is None and _channel_dim(attributes) is None:
        # Elementwise, no mask: one call for all.
        if dy is not None:
            dy = _batched(dy, in_dims[0], size)
        x = _batched(x, in_dims[2], size)
        if dpenalty is not None:  # divide by the D of one example here, and by 1 in the call
            dpenalty = dpenalty.double() / denominator(x[0], reduction)
        attributes[5:7] = "sum", [0, *(dim + 1 for dim in order)] if order else []
        return op(dy, dpenalty, x, None, *attributes), 0
    return torch.stack([op(*example) for example in _examples(arguments, in_dims, size)]), 0


def _channel_dim(attributes: Sequence[Any]) -> int | None:
    """Return the attribute channel_dim; torch leaves out arguments that have their default."""
    return attributes[8] if len(attributes) > 8 else None


def _backward_bits_vmap(
    info: Any, in_dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Batch `backward_bits`; its argument `sizes` is the shape of one example."""
    tensors, (sizes, dtype, *_) = arguments[:5], arguments[5:]
    if info.batch_size == 0:
        device = next(t.device for t in tensors if t is not None)
        return torch.empty((0, *sizes), dtype=dtype, device=device), 0
    examples = _examples(arguments, in_dims, info.batch_size)
    return torch.stack([backward_bits(*example) for example in examples]), 0


def _rng_state_vmap(
    info: Any,
    in_dims: Sequence[int | None],
    x: Tensor,
    state: Tensor | None,
    seed: int,
    p: Tensor | None = None,
) -> tuple[Tensor, int | None]:
    """Batch `rng_state`, which uses only the device of x."""
    dims = (in_dims[1], in_dims[3] if len(in_dims) > 3 else None)
    if dims == (None, None):
        return rng_state(x, state, seed, p), None
    if info.batch_size == 0:
        return x.new_empty((0, 2 if p is None else 3), dtype=torch.int64), 0
    examples = _examples((state, p), dims, info.batch_size)
    return torch.stack([rng_state(x, example, seed, p_i) for example, p_i in examples]), 0


def _temporal_vmap(
    op: Any, info: Any, in_dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor, int]:
    """Batch `temporal` or `temporal_backward`: dim and order are those of one example."""
    tensors = arguments[:-2]
    if info.batch_size == 0:
        h = _batched(tensors[-2], in_dims[len(tensors) - 2], 0)
        shape = (0,) if op is temporal else h.shape
        return h.new_empty(shape, dtype=accumulation_dtype(h) if op is temporal else h.dtype), 0
    return torch.stack([op(*e) for e in _examples(arguments, in_dims, info.batch_size)]), 0


for _op in (temporal, temporal_backward):
    torch.library.register_vmap(_op, partial(_temporal_vmap, _op))
for _op in (forward, forward_bits):
    torch.library.register_vmap(_op, partial(_forward_vmap, _op))
for _op in (backward, curvature):
    torch.library.register_vmap(_op, partial(_slope_vmap, _op))
torch.library.register_vmap(backward_bits, _backward_bits_vmap)
torch.library.register_vmap(rng_state, _rng_state_vmap)
