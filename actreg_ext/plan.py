"""What `convert` will replace: decided for the whole model before anything is changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from . import errors
from .fx_conversion import Call, CallSite, Place, followers, recompile
from .known import Described, described, described_function, is_activation_class, pair_of
from .nn import ActReg
from .places import Filter, Site, has_hooks, runs_in_order
from .report import Change, ConversionReport
from .walk import sites

_SHARED_MASK = (
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def activation_of(held: Any) -> Described | None:
    """Return the description of an activation, which may be a module, a function or a call."""
    if isinstance(held, Call):
        return held.described()
    if not isinstance(held, nn.Module):
        return described_function(held)
    return None if type(held) is nn.Identity else described(held)  # Identity holds a free place


def dropout_of(held: Any) -> tuple[float, bool] | None:
    """Return p and the inplace flag of a dropout."""
    if isinstance(held, Call):
        return held.drops()
    return (held.p, held.inplace) if type(held) is nn.Dropout else None


def keeps_output(name: str, inplace: bool) -> bool:
    """Whether torch keeps the activation's output for the backward.

    Then code may overwrite the input afterwards, but not the output. Otherwise code may overwrite
    the output, and so may code behind a dropout.
    """
    return name in ("sigmoid", "tanh") or (inplace and name not in ("hardtanh", "relu6"))


class Plan:
    """The replacements for one call of `convert`."""

    def __init__(
        self,
        model: nn.Module,
        p: float | None,
        options: dict[str, Any],
        dropout: bool,
        filters: tuple[Filter, Filter],
    ) -> None:
        self.p = p
        self.options = options
        self.dropout = dropout
        self.include, self.exclude = filters
        self.report = ConversionReport()
        self.sites = list(sites(model))
        self.types = {name: type(m) for name, m in model.named_modules(remove_duplicate=False)}
        self.by_place: dict[Place, Site] = {(id(s.parent), s.key): s for s in self.sites}
        self.holders: dict[int, list[Site]] = {}
        for site in self.sites:
            self.holders.setdefault(id(site.held), []).append(site)
        self.behind: dict[Place, tuple[Place, bool]] = {}
        for module in model.modules():
            if isinstance(module, fx.GraphModule):
                found = [s for s in self.sites if isinstance(s, CallSite) and s.parent is module]
                self.behind |= followers(module, found)
        self.activations: dict[int, Described] = {}  # of the chosen sites
        self.merged: dict[int, Site] = {}  # the site of an activation -> of the dropout behind it
        self.new: list[tuple[Site, nn.Module]] = []

    def make(self) -> None:
        """Decide what is replaced, and fill the report."""
        reasons = {id(site): self._why_not(site) for site in self.sites}
        chosen = [site for site in self.sites if reasons[id(site)] == ""]
        for site in chosen:
            found = activation_of(site.held)
            if found is not None:
                self.activations[id(site)] = found
                behind = self._dropout_behind(site)
                if behind is not None and reasons[id(behind)] == "" and self._fit(site, behind):
                    self.merged[id(site)] = behind
        while self._part():
            pass
        removed = {id(behind): site for site in chosen if (behind := self.merged.get(id(site)))}
        made: dict[tuple[int, float], nn.Module] = {}
        for site in self.sites:
            why = reasons[id(site)]
            if why == "" and id(site) not in self.activations and id(site) not in removed:
                why = self._why_dropout_stays(site)
            if why == "":
                self._replace(site, removed.get(id(site)), made)
            elif why is not None:
                self.report.skipped.append(Change(site.name, _shown(site.held), why))

    def apply(self) -> None:
        """Change the model."""
        changed = {id(site) for site, _ in self.new}
        for site in self.sites:
            if site.is_converted and id(site) not in changed:
                site.restore()
        for site, new in self.new:
            site.replace(new)
        recompile(self.sites)

    def _why_not(self, site: Site) -> str | None:
        """Return why a place stays; "" if it may change; None if the report leaves it out."""
        held = site.held
        if isinstance(held, ActReg):
            return "is an ActReg that convert did not make"
        found, dropout = activation_of(held), dropout_of(held)
        stays = None
        if found is None and dropout is None:
            if isinstance(held, torch.jit.ScriptModule):
                return site.fixed
            if isinstance(held, _SHARED_MASK):
                stays = "elements share their masks, which ActReg does not do"
            elif not isinstance(held, nn.Module) or is_activation_class(held):
                stays = "has no formula here"
            else:
                return None
        included = not self.include.rules or self.include.matches(site, self.types)
        if self.exclude.matches(site, self.types) or not included:
            return "not selected by include and exclude"
        if stays is not None:
            return stays
        if isinstance(held, nn.Module):
            if held._modules or held._parameters or held._buffers:
                return "has parameters, buffers or children of its own"
            if "forward" in held.__dict__:
                return "has a forward of its own"
        if site.fixed:
            return site.fixed
        try:
            if found is not None:
                ActReg(found[0], **found[1])
        except (TypeError, ValueError) as error:
            return str(error)
        return ""

    def _why_dropout_stays(self, site: Site) -> str:
        found = dropout_of(site.held)
        if not self.dropout:
            return "dropout=False"
        return "p is 0" if found is not None and found[0] == 0 else ""

    def _part(self) -> bool:
        """Part a pair whose activation or dropout is shared, unless all its places agree.

        A shared module stays one module, so it cannot have two probabilities.
        """
        ends = {id(behind) for behind in self.merged.values()}
        for site in self.sites:
            behind = self.merged.get(id(site))
            if behind is None:
                continue
            pairs = [self.merged.get(id(s)) for s in self._alike(site, self.activations)]
            ps = {None if other is None else dropout_of(other.held) for other in pairs}
            if len(ps) > 1 or any(id(s) not in ends for s in self._alike(behind)):
                del self.merged[id(site)]
                return True
        return False

    def _alike(self, site: Site, chosen: Any = None) -> list[Site]:
        """Return the places of the same module; of these only the chosen ones."""
        if not isinstance(site.held, nn.Module):
            return [site]
        return [s for s in self.holders[id(site.held)] if chosen is None or id(s) in chosen]

    def _replace(
        self, site: Site, activation: Site | None, made: dict[tuple[int, float], nn.Module]
    ) -> None:
        held, note = site.held, ""
        found, drop = self.activations.get(id(site)), dropout_of(site.held) or (0.0, False)
        new: nn.Module
        if activation is not None:
            p, new, note = 0.0, nn.Identity(), f": part of {activation.name}"
        elif found is not None:
            behind = self.merged.get(id(site))
            p = self.p if self.p is not None else 0.0
            if behind is not None and self.p is None:
                p = (dropout_of(behind.held) or (0.0, False))[0]
            inplace = bool(getattr(held, "inplace", False))
            keep = "auto" if p == 0 and keeps_output(found[0], inplace) else "input"
            options = dict(p=p, keep=keep, inplace=inplace, **self.options)
            new = ActReg(found[0], **options, **found[1])
        else:
            p = drop[0]
            new = ActReg("identity", p=p, inplace=drop[1])
        if isinstance(held, nn.Module):
            new = made.setdefault((id(held), p), new)
        self.new.append((site, new))
        self.report.replaced.append(Change(site.name, _shown(held), f"{new}{note}"))

    def _dropout_behind(self, site: Site) -> Site | None:
        """Return the place of the dropout that takes exactly this activation's output."""
        place: Place | None = id(site.parent), site.key
        pair = pair_of(site.parent)
        if pair is not None:
            place = (id(site.parent), pair[1]) if site.key == pair[0] else None
        elif place in self.behind:
            place = self.behind[place][0]
        else:
            place = self._next(site)
        behind = self.by_place.get(place) if place is not None else None
        return behind if behind is not None and dropout_of(behind.held) else None

    def _fit(self, site: Site, behind: Site) -> bool:
        """Whether one module can do what an activation and the dropout behind it do."""
        hooks = has_hooks(site.present) or has_hooks(behind.present)
        if hooks or site.training != behind.training:
            return False
        drop = dropout_of(behind.held)
        if not getattr(site.held, "inplace", False) or (drop is not None and drop[1]):
            return True
        # The dropout would overwrite the input too.
        place = id(site.parent), site.key
        return self.behind[place][1] if place in self.behind else _input_is_new(site)

    def _next(self, site: Site) -> Place | None:
        """Return the place behind this one, in and around an nn.Sequential."""
        parent, key = site.parent, site.key
        while runs_in_order(parent):
            keys = list(parent._modules)
            index = keys.index(key) + 1
            if index < len(keys):
                return self._first(parent, keys[index])
            holders = self.holders.get(id(parent), [])
            if len(holders) != 1 or has_hooks(parent):
                return None
            parent, key = holders[0].parent, holders[0].key
        return None

    def _first(self, parent: nn.Module, key: str) -> Place:
        """Return the place, or the first one inside of it if it holds an nn.Sequential."""
        child = parent._modules[key]
        while runs_in_order(child) and child is not None and child._modules:
            if len(self.holders[id(child)]) != 1 or has_hooks(child):
                break
            parent, key = child, next(iter(child._modules))
            child = parent._modules[key]
        return id(parent), key


def _input_is_new(site: Site) -> bool:
    """Whether nobody else can read the input, which is then overwritten by the dropout too."""
    if not runs_in_order(site.parent):
        return pair_of(site.parent) is not None
    keys = list(site.parent._modules)
    before = keys[: keys.index(site.key)][-1:]
    layer = site.parent._modules[before[0]] if before else None
    return layer is not None and any(True for _ in layer.parameters())


def _shown(held: Any) -> str:
    if isinstance(held, nn.Module | Call):
        return errors.brief(held) if isinstance(held, nn.Module) else str(held)
    return f"function {getattr(held, '__name__', held)}"
