"""A penalty that was collected after the backward of its forward. No maths here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LATE = (
    "ActReg: this penalty was collected after the backward of its forward, which has freed the "
    "graph. Call collect_penalty before the backward and add the penalty to the loss, or keep the "
    "graph with backward(retain_graph=True)."
)


class _Late(torch.autograd.Function):
    """The identity. Its backward raises: see `_LATE`."""

    @staticmethod
    def forward(ctx: Any, penalty: Tensor) -> Tensor:
        return penalty.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(_LATE)


def late(penalty: Tensor) -> Tensor:
    """Return the value of a penalty; its backward says that it was collected too late."""
    result: Tensor = _Late.apply(penalty.detach().requires_grad_())  # type: ignore[no-untyped-call]
    return result
