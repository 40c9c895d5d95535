"""The places of a model where `convert` may put something else, and the rules that select them.

Which places a model has is in walk.py.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from . import errors

Rule = str | type | Callable[[str, nn.Module], bool]
Rules = Rule | Sequence[Rule] | None


@dataclass
class Site:
    """A place where a parent holds a module.

    Attributes:
        parent: the module that holds it.
        key: the name in the parent.
        names: the names in the model; several if the parent stands at several places.
        present: what the place holds now.
        fixed: why the place cannot be changed, or "".
    """

    parent: nn.Module
    key: str
    names: list[str]
    present: Any
    fixed: str = ""

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def is_converted(self) -> bool:
        """Whether `convert` has put something here."""
        return original(self.present) is not None

    @property
    def held(self) -> Any:
        """What the place held before `convert`."""
        return original(self.present) if self.is_converted else self.present

    @property
    def subject(self) -> Any:
        """What a function given as `include` or `exclude` gets to see."""
        return self.held

    @property
    def training(self) -> bool:
        """The training flag of the module, or of what calls the function."""
        owner = self.present if isinstance(self.present, nn.Module) else self.parent
        return owner.training

    def put(self, new: Any) -> None:
        """Put something else here."""
        self.parent._modules[self.key] = new

    def replace(self, new: nn.Module) -> None:
        """Put a new module here, which keeps what was here before, for `restore`."""
        new.__dict__["_original"] = (self.held,)
        new.training = self.training
        if isinstance(self.present, nn.Module):
            share_hooks(self.present, new)
        self.put(new)

    def restore(self) -> None:
        """Put back what was here before `convert`."""
        held = self.held
        if isinstance(held, nn.Module):
            held.training = self.present.training
            share_hooks(self.present, held)
        self.put(held)

    def scopes(self) -> Iterator[str]:
        """Yield the names of the place and of the modules that contain the place."""
        for name in self.names:
            parts = name.split(".")
            for n in range(1, len(parts) + 1):
                yield ".".join(parts[:n])

    def kinds(self, types: dict[str, type]) -> Iterator[type]:
        """Yield the classes of the module and of the modules that contain the place."""
        yield types[""]
        yield type(self.held)
        yield from (types[name] for name in self.scopes() if name in types)


@dataclass
class FunctionSite(Site):
    """A place where a parent holds a function as an attribute. `convert` makes that a child."""

    def replace(self, new: nn.Module) -> None:
        """Put a new module here, which keeps also a child that the function hides."""
        hidden = self.parent._modules.get(self.key)
        if self.is_converted:
            hidden = self.present.__dict__["_original"][1]
        super().replace(new)
        new.__dict__["_original"] = (*new.__dict__["_original"], hidden)

    def put(self, new: Any) -> None:
        """Put a module or a function here."""
        parent = self.parent
        if isinstance(new, nn.Module):
            parent._modules[self.key] = new
            # A copy of this layer gets F.relu as its activation, unless the attribute is here.
            if isinstance(parent, nn.TransformerDecoderLayer):
                parent.__dict__[self.key] = new
            else:
                parent.__dict__.pop(self.key, None)
            return
        hidden = self.present.__dict__["_original"][1]
        if hidden is None:
            del parent._modules[self.key]
        else:
            parent._modules[self.key] = hidden
        parent.__dict__[self.key] = new


def original(present: Any) -> Any:
    """Return what a place held before `convert`; None if `convert` did not change the place."""
    kept = present.__dict__.get("_original", ()) if isinstance(present, nn.Module) else ()
    return kept[0] if kept else None


class Filter:
    """`include` or `exclude`: which names, classes and functions were given."""

    def __init__(self, argument: str, rules: Rules) -> None:
        self.argument = argument
        if isinstance(rules, str | type) or callable(rules):
            given: list[Any] = [rules]
        elif rules is None or isinstance(rules, Iterable):
            given = list(rules or ())
        else:
            given = [rules]
        for rule in given:
            if not (isinstance(rule, str | type) or callable(rule)) or isinstance(rule, nn.Module):
                raise TypeError(
                    f"{argument} takes glob patterns of module names, classes of modules or "
                    f"functions of (name, module), but got {errors.shown(rule)}"
                )
        if argument == "include" and rules is not None and not given:
            raise ValueError("include is empty, so it selects nothing; pass None to select all")
        self.rules = given
        self.matched = [False] * len(given)

    def matches(self, site: Site, types: dict[str, type]) -> bool:
        """Whether a rule matches the module or one that contains the module.

        A compiled model has "_orig_mod." in its names; a pattern need not have that.
        """
        found = False
        for index, rule in enumerate(self.rules):
            if isinstance(rule, str):
                hit = any(
                    fnmatch.fnmatchcase(name, rule)
                    or fnmatch.fnmatchcase(name.replace("_orig_mod.", ""), rule)
                    for name in site.scopes()
                )
            elif isinstance(rule, type):
                hit = any(issubclass(kind, rule) for kind in site.kinds(types))
            else:
                hit = any(rule(name, site.subject) for name in site.names)
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


def runs_in_order(module: Any) -> bool:
    """Whether a module calls its children one after the other, as nn.Sequential does."""
    return (
        isinstance(module, nn.Module)
        and type(module).forward is nn.Sequential.forward
        and "forward" not in module.__dict__
    )
