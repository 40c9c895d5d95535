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
from .worlds import World

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
_BATCHED = (
    "ActReg(inject=True): a backward of several gradients at once (is_grads_batched=True, jacrev) "
    "would add the gradient of the penalty to each. Use inject=False and collect_penalty."
)
_COMPILED = (
    "ActReg(inject=True): torch.compile cannot trace it inside a transform of torch.func. Use "
    "inject=False and collect_penalty, or do not compile the function with fullgraph=True."
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
        if _functorch.get_dynamic_layer_stack_depth() > 0:  # torch.compile can trace this one
            raise RuntimeError(_COMPILED)
        if not torch.compiler._is_exporting_flag:
            injection.value = penalty.detach()
        if not (torch.is_grad_enabled() and penalty.requires_grad):
            return output
        gradients = 0
    else:
        world = World.current()
        levels = _levels()
        _refuse_forward_mode(penalty, levels)
        gradients = levels.count(_Kind.Grad)
        in_transform = world is not None and world.mark is not None
        if world is None:
            injection.value = penalty.detach()
        # Inside vmap a tensor does not show that a level outside of it requires a gradient.
        if not (torch.is_grad_enabled() and (penalty.requires_grad or in_transform)):
            return output
        if gradients > 1:
            raise RuntimeError(_NESTED)
        if made_together and not in_transform:
            if world is None:
                scale, divisor = injection.scale_to_keep(penalty), float(injection.accumulation)
            else:
                scale, divisor = injection.factor(penalty), 1.0
            if _C.inject(output, scale, divisor):
                return output
    factor = injection.factor(penalty)
    injected: Tensor = _Inject.apply(output, penalty, factor, gradients)  # type: ignore[no-untyped-call]
    return injected


def _levels() -> list[Any]:
    """Return the kinds of the transforms of torch.func in which the caller runs."""
    if _functorch.peek_interpreter_stack() is None:
        return []
    return [level.key() for level in _functorch.get_interpreter_stack() or ()]


def _refuse_forward_mode(penalty: Tensor, levels: list[Any]) -> None:
    is_dual = _Kind.Jvp in levels
    if forward_ad._current_level >= 0 and not is_dual:
        dual = forward_ad.unpack_dual(penalty)  # type: ignore[no-untyped-call]
        is_dual = dual.tangent is not None
    if is_dual:
        raise RuntimeError(_FORWARD_MODE)


class _Inject(torch.autograd.Function):
    """The identity of y, with a gradient for the penalty: where no node of ours can inject."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, penalty: Tensor, factor: Tensor, gradients: int) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, penalty, factor, gradients = inputs
        ctx.save_for_backward(factor.to(penalty.dtype))
        if not is_compiling():
            levels = _levels()
            # Each level of torch.func has a node, but only the innermost may inject.
            ctx.injects = levels.count(_Kind.Grad) == gradients
            ctx.batches = levels.count(_Kind.Vmap)
        ctx.has_injected = False

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (factor,) = ctx.saved_tensors
        if not is_compiling():
            if not ctx.injects:
                raise RuntimeError(_NESTED)
            if _levels().count(_Kind.Vmap) > ctx.batches:
                raise RuntimeError(_BATCHED)
            if _functorch.peek_interpreter_stack() is None:
                if torch.is_grad_enabled():
                    raise RuntimeError(_AGAIN)
                if ctx.has_injected:
                    raise RuntimeError(_TWICE)
                ctx.has_injected = True
        return dy, factor, None, None
