"""Ragged batches: a jagged nested tensor goes through its values, as in torch's own activations.

A jagged tensor of shape (B, j, ...) holds the rows of all B examples one after the other, as one
dense tensor of values. So the elements are those of the values, and the mask counts positions in
the values. No maths here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .rows import check_shared_dims

__all__: list[str] = []


def is_ragged(input: object) -> bool:
    """Whether the input is a nested tensor with layout torch.jagged."""
    return isinstance(input, Tensor) and input.is_nested and input.layout is torch.jagged


def through_values(f: Callable[..., Any], input: Any, activation: Any, options: Any) -> Any:
    """Return what `f`, which is act_reg or act_sums, returns for a jagged tensor.

    Args:
        f: called with the values of the input.
        input: a jagged tensor.
        activation: the second argument of `f`.
        options: the keyword arguments of `f`. Dimensions count those of the jagged tensor.

    Raises:
        ValueError: the tensor has holes, or an option has no meaning for a ragged dimension.
    """
    if input.lengths() is not None:
        raise ValueError("a jagged input must have no holes: call .contiguous() first")
    options = dict(options)
    if options.get("shard") is not None:
        raise ValueError("shard accepts only dense tensors, but the input is a jagged tensor")
    ragged, examples = input._ragged_idx, input.size(0)
    if options.get("channel_dim") is not None:
        options["channel_dim"] = _dim(options["channel_dim"], input, "channel_dim")
    shared = check_shared_dims(options.get("shared_dims", ()))
    options["shared_dims"] = tuple(_dim(dim, input, "shared_dims") for dim in shared)
    weight = options.get("row_weight")
    if is_ragged(weight):
        if weight._ragged_idx != ragged or not _same_offsets(weight, input):
            raise ValueError("row_weight, if it is jagged, must have the offsets of the input")
        options["row_weight"] = weight.values()
    is_by_example = options.get("reduction") == "batch"
    if is_by_example:
        options["reduction"] = "sum"
    result = f(input.values(), activation, **options)
    if is_by_example:
        result = result._replace(penalty=result.penalty / max(examples, 1))
    output = torch.nested.nested_tensor_from_jagged(
        result.output, offsets=input.offsets(), jagged_dim=ragged
    )
    return result._replace(output=output)


def _dim(dim: Any, input: Any, argument: str) -> int:
    """Return the dimension of the values that is this dimension of the jagged tensor."""
    dims, ragged = input.dim(), input._ragged_idx
    if isinstance(dim, int) and not isinstance(dim, bool):
        at = dim % dims if -dims <= dim < dims else dim
        if not 0 <= at < dims or at in (0, ragged):
            raise ValueError(
                f"{argument} of a jagged input must be a dimension of each example other than the "
                f"ragged one, but got {dim}; the ragged dimension is {ragged}"
            )
        return at - 1
    return dim  # type: ignore[no-any-return]  # act_reg raises the TypeError


def _same_offsets(a: Any, b: Any) -> bool:
    return a.offsets() is b.offsets() or a.size(a._ragged_idx) == b.size(b._ragged_idx)
