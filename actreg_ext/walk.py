"""Every place of a model where `convert` may put something else, in the order of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from .fx_conversion import Call, calls
from .known import pair_of
from .places import FunctionSite, Site, original

_SCRIPT = "is a torch.jit.ScriptModule, which cannot be changed"
_COMPILED = "is compiled on its own; convert the model before torch.compile"
_HIDDEN = "is not called, because the layer has an attribute of the same name"
_PARAMETRIZATION = "computes a parameter, not an activation"


def sites(model: nn.Module) -> Iterator[Site]:
    """Yield all places, also the second place of a shared module, in the order of the model."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    todo = [(model, "")]
    seen: set[int] = set()
    while todo:
        parent, fixed = todo.pop(0)
        if id(parent) in seen or isinstance(parent, torch.jit.ScriptModule):
            continue
        seen.add(id(parent))
        if isinstance(parent, ParametrizationList):
            fixed = _PARAMETRIZATION
        prefixes = names[id(parent)]
        children: list[tuple[nn.Module, str]] = []
        key, function = _function(parent)
        for name, child in parent._modules.items():
            if child is None or child is function or isinstance(original(child), Call):
                continue
            why = fixed
            if isinstance(child, torch.jit.ScriptModule):
                why = _SCRIPT
            elif name == "_orig_mod":  # of torch.compile's OptimizedModule
                why = _COMPILED
            elif name in parent.__dict__:
                why = _HIDDEN
            yield Site(parent, name, _joined(prefixes, name), child, why)
            children.append((child, fixed))
        if function is not None:
            yield FunctionSite(parent, key, _joined(prefixes, key), function, fixed)
        if isinstance(parent, fx.GraphModule):
            yield from calls(parent, prefixes)
        todo = children + todo


def _function(parent: nn.Module) -> tuple[str, Any]:
    """Return the name and the value of an attribute that is an activation function, or was one."""
    pair = pair_of(parent)
    if pair is None:
        return "", None
    present = parent.__dict__.get(pair[0], parent._modules.get(pair[0]))
    held = present if original(present) is None else original(present)
    return pair[0], present if callable(held) and not isinstance(held, nn.Module) else None


def _joined(prefixes: list[str], key: str) -> list[str]:
    return [f"{prefix}.{key}" if prefix else key for prefix in prefixes]
