"""Injection: the backward adds the penalty's gradient itself, and the training loop stays as it is.

No maths here. csrc/torch/nodes.h has the node that injects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from . import _C
from .pending import World

_functorch = torch._C._functorch
_Kind = _functorch.TransformType
_AGAIN = (
    "ActReg(inject=True): a backward with create_graph=True would differentiate the injected "
    "gradient too. Use inject=False and collect_penalty."
)
_TWICE = (
    "ActReg(inject=True): a second backward through the same forward would add the gradient of the "
    "penalty again. Use inject=False and collect_penalty."
)
_NESTED = (
    "ActReg(inject=True): nested gradients of torch.func, or a backward through a gradient of "
    "torch.func, would add the gradient of the penalty more than once. Use inject=False and "
    "collect_penalty."
)
_FORWARD_MODE = (
    "ActReg(inject=True): forward-mode AD runs no backward, so the derivative of the penalty would "
    "be lost. Use inject=False and collect_penalty."
)


class Injection:
    """What one module injects: the gradient of its penalty, times scale / accumulation."""

    def __init__(self) -> None:
        self.scale: Tensor | None = None  # 0-d; None: 1
        self.is_own = True  # no one else holds the tensor
        self.accumulation = 1
        self.value: Tensor | None = None  # the penalty of the last training forward

    def scale_to_keep(self, like: Tensor) -> Tensor:
        """Return the tensor that a node reads in its backward, on any device.

        A scale of the caller is kept as it is, because the caller changes the tensor.
        """
        if self.scale is None:
            self.scale = like.new_ones(())
        elif self.is_own and self.scale.device != like.device:
            self.scale = self.scale.to(like.device)
        return self.scale

    def factor(self, like: Tensor) -> Tensor:
        """Return scale / accumulation as it is now, on the device of a penalty.

        This stores nothing: a tensor of a compiled program or of a transform must not outlive it.
        """
        if self.scale is None:
            return like.new_full((), 1 / self.accumulation)
        return self.scale.to(like.device) / self.accumulation


def inject_penalty(
    injection: Injection, output: Tensor, penalty: Tensor, *, made_together: bool = True
) -> Tensor:
    """Return the output, whose backward adds the gradient of the penalty.

    Args:
        injection: of the module.
        output: of the module.
        penalty: of the same forward.
        made_together: the node of the output has made the penalty too.
    """
    if is_compiling():
        injection.value = penalty.detach()
        if not (torch.is_grad_enabled() and penalty.requires_grad):
            return output
        levels = 0
    else:
        world = World.current()
        if world is None:
            injection.value = penalty.detach()
        levels = _gradient_levels(penalty)
        if not (torch.is_grad_enabled() and penalty.requires_grad):
            return output
        if levels > 1:
            raise RuntimeError(_NESTED)
        if made_together and (world is None or world.mark is None):
            if world is None:
                scale, divisor = injection.scale_to_keep(penalty), float(injection.accumulation)
            else:
                scale, divisor = injection.factor(penalty), 1.0
            if _C.inject(output, scale, divisor):
                return output
    factor = injection.factor(penalty)
    injected: Tensor = _Inject.apply(output, penalty, factor, levels)  # type: ignore[no-untyped-call]
    return injected


def _gradient_levels(penalty: Tensor | None = None) -> int:
    """Return in how many gradients of torch.func the caller runs; refuse forward mode.

    Args:
        penalty: to be injected; None: do not ask for forward mode.
    """
    if penalty is not None and forward_ad._current_level >= 0:
        dual = forward_ad.unpack_dual(penalty)  # type: ignore[no-untyped-call]
        if dual.tangent is not None:
            raise RuntimeError(_FORWARD_MODE)
    if _functorch.peek_interpreter_stack() is None:
        return 0
    kinds = [level.key() for level in _functorch.get_interpreter_stack() or ()]
    if penalty is not None and _Kind.Jvp in kinds:
        raise RuntimeError(_FORWARD_MODE)
    return kinds.count(_Kind.Grad)


class _Inject(torch.autograd.Function):
    """The identity of y, with a gradient for the penalty: where no node of ours can inject."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, penalty: Tensor, factor: Tensor, levels: int) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, penalty, factor, levels = inputs
        ctx.save_for_backward(factor.to(penalty.dtype))
        # Each level of torch.func has a node, but only the innermost may inject.
        ctx.injects = is_compiling() or levels == _gradient_levels()
        ctx.has_injected = False

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (factor,) = ctx.saved_tensors
        if not is_compiling():
            if not ctx.injects:
                raise RuntimeError(_NESTED)
            if _functorch.peek_interpreter_stack() is None:
                if torch.is_grad_enabled():
                    raise RuntimeError(_AGAIN)
                if ctx.has_injected:
                    raise RuntimeError(_TWICE)
                ctx.has_injected = True
        return dy, factor, None, None
