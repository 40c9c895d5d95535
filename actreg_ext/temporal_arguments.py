"""The checks of the arguments of `temporal_penalty`, which temporal.py and reference.py share."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from . import errors
from .arguments import check_input, coefficient


def check_temporal(
    h: Tensor, l2: float | Tensor, dim: int, row_weight: Tensor | None
) -> tuple[float | Tensor, int]:
    """Check all arguments of `temporal_penalty`; return l2, and dim as a number of at least 0."""
    check_input(h, "h")
    if not isinstance(l2, Tensor):
        l2 = coefficient("l2", l2)
    elif l2.dim() or not l2.is_floating_point() or l2.device not in (h.device, torch.device("cpu")):
        raise ValueError(
            "l2, if it is a tensor, must be a 0-d tensor of a floating-point dtype on the CPU or "
            f"on {h.device}, the device of h, but got {errors.shown(l2)} on {l2.device}"
        )
    if isinstance(dim, bool) or not isinstance(dim, Integral):
        raise TypeError(f"dim must be an int, but got {errors.shown(dim)}")
    if h.dim() == 0:
        raise ValueError("h must have a time dimension, but got a 0-d tensor")
    if not -h.dim() <= dim < h.dim():
        raise ValueError(
            f"dim, the time dimension, must be between {-h.dim()} and {h.dim() - 1} for h of shape "
            f"{list(h.shape)}, but got {dim}"
        )
    if row_weight is not None:
        _check_row_weight(row_weight, h)
    return l2, int(dim) % h.dim()


def _check_row_weight(row_weight: object, h: Tensor) -> None:
    if (
        not isinstance(row_weight, Tensor)
        or row_weight.is_complex()
        or row_weight.layout is not torch.strided
    ):
        raise TypeError(
            "row_weight must be None or a dense tensor of bool or a real dtype, "
            f"but got {errors.shown(row_weight)}"
        )
    if row_weight.requires_grad:
        raise ValueError(
            "row_weight gets no gradient, but got a tensor that requires one: "
            "pass row_weight.detach()"
        )
    if row_weight.device != h.device:
        raise ValueError(
            f"row_weight must be on {h.device}, the device of h, but got a tensor on "
            f"{row_weight.device}"
        )
    sizes = zip(reversed(row_weight.shape), reversed(h.shape), strict=False)
    if row_weight.dim() > h.dim() or not all(w == 1 or w == n for w, n in sizes):
        raise ValueError(
            f"row_weight must broadcast to the shape of h, {list(h.shape)}, but got shape "
            f"{list(row_weight.shape)}"
        )
