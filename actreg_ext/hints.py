"""What `convert` cannot see: activation functions that a forward calls. One run finds them.

See conversion.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .known import DROPOUTS, FUNCTIONS, described, is_activation_class
from .nn import ActReg


class Hint(NamedTuple):
    """A module whose forward calls an activation function, the function, and how often."""

    name: str
    function: str
    calls: int


class _Listener(TorchFunctionMode):
    """Counts the calls of activation functions by the module that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[nn.Module] = []
        self.calls: Counter[tuple[nn.Module, str]] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if (func in FUNCTIONS or func in DROPOUTS) and self.stack:
            module = self.stack[-1]
            known = isinstance(module, ActReg | nn.Dropout) or described(module) is not None
            if not known and not is_activation_class(module):
                self.calls[module, func.__name__] += 1
                return _silently(func, args, kwargs)
        return func(*args, **(kwargs or {}))


def _silently(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any] | None) -> Any:
    """Call a function without listening: F.relu calls torch.relu, which would count too."""
    with torch._C.DisableTorchFunction():
        return func(*args, **(kwargs or {}))


def find(model: nn.Module, example: Any) -> list[Hint]:
    """Run the model once on `example`, in eval mode, and list the functions that it calls.

    The model's state stays as it was: training flags, buffers, gradients, random numbers.
    """
    listener = _Listener()
    names = {module: name for name, module in model.named_modules()}
    flags = {module: module.training for module in model.modules()}

    def enter(module: nn.Module, *_: Any) -> None:
        listener.stack.append(module)

    def leave(module: nn.Module, *_: Any) -> None:
        listener.stack.pop()

    handles = [
        handle
        for module in model.modules()
        for handle in (
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        )
    ]
    devices = sorted({t.device.index or 0 for t in model.parameters() if t.is_cuda})
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices), listener:
            if isinstance(example, Mapping):
                model(**example)
            elif isinstance(example, tuple):
                model(*example)
            else:
                model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in flags.items():
            module.training = training
    return [Hint(names[module], name, calls) for (module, name), calls in listener.calls.items()]
