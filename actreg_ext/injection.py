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

_LOST_SCALE = (
    "ActReg(inject=True): this module is a copy of one whose scale is a GradScaler or a tensor of "
    "the caller, which the copy does not share. Call set_injection_scale on the copy."
)


class Injection:
    """What one module injects: the gradient of its penalty, times scale / accumulation."""

    def __init__(self) -> None:
        self.scale: Tensor | None = None  # 0-d; None: 1
        self.is_own = True  # False: the tensor belongs to the caller or to a GradScaler
        self.is_lost = False  # a copy of a module whose tensor belongs to somebody else
        self.accumulation = 1
        self.value: Tensor | None = None  # the penalty of the last training forward

    def factor(self, like: Tensor) -> Tensor:
        """Return the scale; one that belongs to the module is on the device of its penalty."""
        if self.is_lost:
            raise RuntimeError(_LOST_SCALE)
        if self.scale is None:
            self.scale = like.new_ones(())
        elif self.is_own and self.scale.device != like.device:
            self.scale = self.scale.to(like.device)
        return self.scale

    def state(self) -> tuple[float | None, int, bool]:
        """Return what a copy or a pickle of the module takes: scale, accumulation, is_lost."""
        own = float(self.scale) if self.is_own and self.scale is not None else None
        return own, self.accumulation, self.is_lost or not self.is_own

    @classmethod
    def from_state(cls, state: tuple[float | None, int, bool]) -> Injection:
        """Make a copy from its state."""
        made = cls()
        scale, made.accumulation, made.is_lost = state
        made.scale = None if scale is None else torch.full((), scale)
        return made


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
        ctx.save_for_backward(factor.to(penalty))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        (factor,) = ctx.saved_tensors
        is_eager = not is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
        if is_eager and torch.is_grad_enabled():
            raise RuntimeError(_AGAIN)
        return dy, factor, None
