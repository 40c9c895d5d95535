"""The places of a model where `convert` may put something else, and the rules that select them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from . import errors
from .known import pair_of

Rule = str | type | Callable[[str, nn.Module], bool]
Rules = Rule | Sequence[Rule] | None


@dataclass
class Site:
    """A place where a parent holds a module, or a function that is an activation."""

    parent: nn.Module
    key: str
    name: str
    held: Any

    def put(self, held: Any) -> None:
        """Put something else here. What was a function is an attribute, not a child."""
        self.parent._modules.pop(self.key, None) if not isinstance(held, nn.Module) else None
        if isinstance(held, nn.Module):
            self.parent.__dict__.pop(self.key, None)
            self.parent._modules[self.key] = held
        else:
            setattr(self.parent, self.key, held)


def sites(model: nn.Module) -> Iterator[Site]:
    """Yield all places, also the second place of a shared module, in the order of the model."""
    todo: list[tuple[str, nn.Module]] = [("", model)]
    seen_parents: set[int] = set()
    while todo:
        prefix, parent = todo.pop(0)
        if id(parent) in seen_parents:
            continue
        seen_parents.add(id(parent))
        children = []
        for key, child in parent._modules.items():
            if child is None:
                continue
            name = f"{prefix}.{key}" if prefix else key
            yield Site(parent, key, name, child)
            children.append((name, child))
        pair = pair_of(parent)
        if pair is not None and callable(parent.__dict__.get(pair[0])):
            name = f"{prefix}.{pair[0]}" if prefix else pair[0]
            yield Site(parent, pair[0], name, parent.__dict__[pair[0]])
        todo = children + todo


def original(held: Any) -> Any:
    """Return what a place held before `convert`; None if `convert` did not change it."""
    kept = held.__dict__.get("_original", ()) if isinstance(held, nn.Module) else ()
    return kept[0] if kept else None


class Filter:
    """`include` and `exclude`: which names, classes and predicates were given."""

    def __init__(self, argument: str, rules: Rules) -> None:
        self.argument = argument
        given = [rules] if isinstance(rules, str | type) or callable(rules) else list(rules or ())
        for rule in given:
            if not (isinstance(rule, str | type) or callable(rule)):
                raise TypeError(
                    f"{argument} takes glob patterns of module names, classes of modules or "
                    f"functions of (name, module), but got {errors.shown(rule)}"
                )
        self.rules: list[Any] = given
        self.matched = [False] * len(given)

    def matches(self, site: Site, kinds: dict[str, type]) -> bool:
        """Whether a rule matches the module or one that contains it."""
        parts = site.name.split(".")
        names = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
        found = False
        for index, rule in enumerate(self.rules):
            if isinstance(rule, str):
                hit = any(fnmatch.fnmatchcase(name, rule) for name in names)
            elif isinstance(rule, type):
                hit = isinstance(site.held, rule) or any(
                    issubclass(kinds[name], rule) for name in ("", *names) if name in kinds
                )
            else:
                hit = bool(rule(site.name, site.held))
            self.matched[index] |= hit
            found |= hit
        return found

    def check(self) -> None:
        """Raise ValueError for a rule that matched no activation and no dropout."""
        for rule, matched in zip(self.rules, self.matched, strict=True):
            if not matched:
                raise ValueError(
                    f"{self.argument}: {errors.brief(rule)} matches no activation and no dropout "
                    f"of the model; `print(convert(model, dry_run=True))` lists them"
                )


def share_hooks(source: nn.Module, target: nn.Module) -> None:
    """Give one module the hooks of another: the same dicts, so that handles can remove them."""
    for name, value in source.__dict__.items():
        if "hook" in name and name in target.__dict__:
            target.__dict__[name] = value


def has_hooks(module: Any) -> bool:
    """Whether anything is registered to run before or after a module."""
    return isinstance(module, nn.Module) and any(
        isinstance(value, dict) and value and "hook" in name
        for name, value in module.__dict__.items()
    )
