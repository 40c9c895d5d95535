"""Injection: the backward adds the penalty's gradient itself, and the training loop stays as it is.

No maths here. csrc/torch/nodes.h has the node that injects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _C

_AGAIN = (
    "ActReg(inject=True): a backward with create_graph=True would differentiate the injected "
    "gradient too. Use inject=False and collect_penalty."
)


class Injection:
    """What one module injects: the gradient of its penalty, times scale / accumulation."""

    def __init__(self) -> None:
        self.scale: Tensor | None = None  # 0-d; None: 1
        self.is_own = True  # no one else holds the tensor
        self.accumulation = 1
        self.value: Tensor | None = None  # the penalty of the last training forward

    def factor(self, like: Tensor) -> Tensor:
        """Return the scale on the device of a penalty."""
        if self.scale is None or self.scale.device != like.device:
            old = self.scale
            self.scale = like.new_ones(()) if old is None else old.to(like.device)
        return self.scale


def inject_penalty(injection: Injection, output: Tensor, penalty: Tensor) -> Tensor:
    """Return the output, whose backward adds the gradient of the penalty."""
    injection.value = penalty.detach()
    if not (torch.is_grad_enabled() and penalty.requires_grad):
        return output
    scale = injection.factor(penalty)
    is_eager = not is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
    if is_eager and _C.inject(output, scale, float(injection.accumulation)):
        return output
    injected: Tensor = _Inject.apply(output, penalty, scale / injection.accumulation)  # type: ignore[no-untyped-call]
    return injected


class _Inject(torch.autograd.Function):
    """The identity of y, with a gradient for the penalty: where no node of ours can inject."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, penalty: Tensor, factor: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, penalty, factor = inputs
        ctx.save_for_backward(factor.to(penalty.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        (factor,) = ctx.saved_tensors
        is_eager = not is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
        if is_eager and torch.is_grad_enabled():
            raise RuntimeError(_AGAIN)
        return dy, factor, None
