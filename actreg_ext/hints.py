"""What `convert` cannot see: activation functions that a forward calls. One run finds them.

See conversion.py.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .known import DROPOUTS, FUNCTIONS, described, is_activation_class
from .nn import ActReg
from .places import Site


class Hint(NamedTuple):
    """A module whose forward calls an activation function, the function, and how often."""

    name: str
    function: str
    calls: int


class _Listener(TorchFunctionMode):
    """Counts the calls of activation functions by the module that makes them."""

    def __init__(self, replaced: set[tuple[int, Any]]) -> None:
        super().__init__()
        self.replaced = replaced
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
            if not _is_known(module) and (id(module), func) not in self.replaced:
                self.calls[module, func.__name__] += 1
            return _silently(func, args, kwargs)
        return func(*args, **(kwargs or {}))


def _is_known(module: nn.Module) -> bool:
    """Whether the report has the calls of this module anyway."""
    return (
        isinstance(module, ActReg | nn.Dropout | torch.fx.GraphModule)
        or described(module) is not None
        or is_activation_class(module)
    )


def _silently(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any] | None) -> Any:
    """Call a function without listening: F.relu calls torch.relu, which would count too."""
    with torch._C.DisableTorchFunction():
        return func(*args, **(kwargs or {}))


def find(model: nn.Module, example: Any, replaced: list[Site]) -> list[Hint]:
    """Run the model once on `example`, in eval mode, and list the functions that it calls.

    The model's state stays as it was: training flags, buffers, gradients, random numbers.
    """
    listener = _Listener({(id(site.parent), site.held) for site in replaced if _is_function(site)})
    names = {module: name for name, module in model.named_modules()}
    flags = {module: module.training for module in model.modules()}

    def enter(module: nn.Module, *_: Any) -> None:
        listener.stack.append(module)

    def leave(module: nn.Module, *_: Any) -> None:
        if listener.stack[-1:] == [module]:  # not if a hook before `enter` has raised
            listener.stack.pop()

    handles = [
        handle
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for handle in (
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        )
    ]
    devices = sorted({t.device.index or 0 for t in model.parameters() if t.is_cuda})
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices), listener, _eagerly():
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


def _is_function(site: Site) -> bool:
    return not isinstance(site.held, nn.Module) and callable(site.held)


def _eagerly() -> Any:
    """Run compiled models without their compiled code, in which nobody can listen."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
