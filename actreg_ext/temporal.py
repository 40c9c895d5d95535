"""The temporal penalty as a function: check the arguments, call the operator, scale its sum.

No maths here: reference.py says what is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_unary

from . import dispatch, ops
from .reference import (
    accumulation_dtype,
    composite_temporal_penalty,
    full_time,
    memory_order,
    scaled_mean,
)
from .temporal_arguments import check_temporal

__all__ = ["temporal_penalty"]


def temporal_penalty(
    h: Tensor, l2: float | Tensor, dim: int = 0, row_weight: Tensor | None = None
) -> Tensor:
    r"""Penalize the difference between neighbouring time steps, in one pass over h.

    Equivalent to these lines of PyTorch, for dim=0::

        w = torch.ones_like(h) if row_weight is None else row_weight.expand_as(h)
        pairs = w[:-1] * w[1:]
        penalty = l2 * (pairs * (h[1:] - h[:-1]).square()).sum() / pairs.sum()

    One kernel reads h and computes the sum; no tensor of differences is stored. The backward, also
    in one kernel, computes::

        dh[t] = 2 * l2 * dpenalty / pairs.sum() * (pairs[t - 1] * (h[t] - h[t - 1])
                                                   - pairs[t] * (h[t + 1] - h[t]))

    This is the temporal activation regularization (TAR) of recurrent networks. Pass the outputs of
    the last layer before dropout. `l2` is the coefficient called beta in the paper.

    With a mask of the valid time steps as `row_weight`, a difference counts only if both of its
    time steps are valid. A pair of weight 0 is left out, even if h is infinite or NaN there.

    Memory: the call keeps h and row_weight for the backward.

    Shapes: h may have any shape with at least one dimension, for example [T, N, C] with dim=0,
    [N, T, C] with dim=1 or [N, C, T] with dim=-1. A dense h is read in its memory order; any other
    h is copied to a contiguous one first. The penalty is 0-d and float32 (float64 for a float64 h).

    Args:
        h: the activations, a float32, float64, float16 or bfloat16 tensor.
        l2: factor of the mean; finite, at least 0. Or a 0-d floating-point tensor, which is
            differentiable and whose value is not checked. 0 (as a number) turns the penalty off.
        dim: the time dimension of h. It is not the batch dimension.
        row_weight: None or a tensor that broadcasts to the shape of h: a bool mask or any real
            dtype. It gets no gradient. It is not copied to the size of h.

    Returns:
        Tensor: the penalty, to be added to the loss. It is 0 if h is empty, if there are fewer than
            two time steps, or if the weights of all pairs add up to 0. It is differentiable any
            number of times.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: l2 is out of range, h has no dimension `dim`, or row_weight does not broadcast
            to h, requires a gradient or is on another device.

    References:
        Merity, McCann, Socher, "Revisiting Activation Regularization for Language RNNs",
        arXiv:1708.01009.

    Example:
        >>> import torch
        >>> h = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
        >>> penalty = temporal_penalty(h, l2=2.0)
        >>> penalty.backward()
        >>> penalty.item(), h.grad
        (5.0, tensor([-2., -2.,  4.]))
    """
    if has_torch_function_unary(h) and not is_compiling():
        return handle_torch_function(temporal_penalty, (h,), h, l2, dim=dim, row_weight=row_weight)
    l2, dim = check_temporal(h, l2, dim, row_weight)
    is_off = not isinstance(l2, Tensor) and l2 == 0
    if is_off or h.device.type not in dispatch.DEVICES or dispatch.is_exporting():
        return composite_temporal_penalty(h, l2, dim, row_weight)
    total = ops.temporal(h, row_weight, dim, memory_order(h))
    weights = None if row_weight is None else _sum_of_weights(h, dim, row_weight)
    return scaled_mean(total, weights, h, l2, dim, row_weight)


def _sum_of_weights(h: Tensor, dim: int, row_weight: Tensor) -> Tensor:
    """Return the sum of w[t] * w[t + 1], by the operator: torch's sums depend on the threads.

    Each difference between neighbours in 0, 1, 0, 1, ... has the square 1.
    """
    shape = full_time(row_weight, h, dim)
    steps = torch.arange(h.shape[dim], device=h.device).bitwise_and(1).to(accumulation_dtype(h))
    steps = steps.reshape([-1 if i == dim else 1 for i in range(h.dim())]).expand(shape)
    total: Tensor = ops.temporal(steps, row_weight, dim, ())
    return total
