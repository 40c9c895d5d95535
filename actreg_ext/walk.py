"""Every place of a model where `convert` may put something else, in the order of the model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from .fx_conversion import Call, calls
from .known import pair_of
from .places import Site, original

_SCRIPT = "is a torch.jit.ScriptModule, which cannot be changed"
_COMPILED = "is compiled on its own; convert the model before torch.compile"
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
        for key, child in parent._modules.items():
            if child is None or isinstance(original(child), Call):
                continue
            why = fixed
            if isinstance(child, torch.jit.ScriptModule):
                why = _SCRIPT
            elif key == "_orig_mod":  # of torch.compile's OptimizedModule
                why = _COMPILED
            yield Site(parent, key, _joined(prefixes, key), child, why)
            children.append((child, fixed))
        pair = pair_of(parent)
        if pair is not None and callable(parent.__dict__.get(pair[0])):
            key = pair[0]
            yield Site(parent, key, _joined(prefixes, key), parent.__dict__[key], fixed)
        if isinstance(parent, fx.GraphModule):
            yield from calls(parent, prefixes)
        todo = children + todo


def _joined(prefixes: list[str], key: str) -> list[str]:
    return [f"{prefix}.{key}" if prefix else key for prefix in prefixes]
