"""What `convert` will replace: decided for the whole model before anything is changed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from . import errors, fx_conversion
from .known import described, described_function, is_activation_class, pair_of
from .nn import ActReg
from .places import Filter, Site, has_hooks, share_hooks, sites
from .report import Change, ConversionReport

_SHARED_MASK = (
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def _description(site: Site) -> tuple[str, dict[str, Any]] | None:
    held = site.held
    if not isinstance(held, nn.Module):
        return described_function(held)
    found = described(held)
    return None if found is None or found[0] == "identity" else found


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
        self.model = model
        self.p = p
        self.options = options
        self.dropout = dropout
        self.include, self.exclude = filters
        self.report = ConversionReport()
        self.sites = list(sites(model))
        self.kinds: dict[str, type] = {"": type(model)}
        for site in self.sites:
            if isinstance(site.held, nn.Module):
                self.kinds[site.name] = type(site.held)
        self.places = Counter(id(site.held) for site in self.sites)
        self.changes: list[tuple[Site, nn.Module]] = []
        self.made: dict[tuple[int, float, bool], ActReg] = {}
        self.graphs: list[fx_conversion.GraphPlan] = []

    def make(self) -> None:
        """Decide what is replaced, and fill the report."""
        merged: dict[int, Site] = {}  # the place of a dropout -> the activation before it
        by_place = {(id(site.parent), site.key): site for site in self.sites}
        for site in self.sites:
            found = _description(site)
            if found is None or not self._selected(site, found):
                continue
            behind = self._dropout_behind(site, by_place)
            if behind is not None and (not self._matches(behind) or has_hooks(site.held)):
                behind = None
            if behind is not None and has_hooks(behind.held):
                behind = None
            if behind is not None:
                merged[id(behind)] = site
            probability = self.p
            if probability is None:
                probability = 0.0 if behind is None else behind.held.p
            self._replace(site, found, probability)
        for site in self.sites:
            if id(site) in merged:
                self._remove(site, merged[id(site)])
            elif isinstance(site.held, nn.Module):
                self._consider(site)
        self._order()
        for name, module in [("", self.model), *self.model.named_modules()]:
            if isinstance(module, torch.fx.GraphModule) and not any(
                plan.module is module for plan in self.graphs
            ):
                self.graphs.append(fx_conversion.GraphPlan(name, module))
        for graph in self.graphs:
            for name, was, layer in graph.make(self.options, self.p, self.dropout):
                self.report.replaced.append(Change(name, was, str(layer)))

    def apply(self) -> None:
        """Change the model."""
        for site, new in self.changes:
            site.put(new)
        for graph in self.graphs:
            graph.apply()

    def _matches(self, site: Site) -> bool:
        included = not self.include.rules or self.include.matches(site, self.kinds)
        excluded = self.exclude.matches(site, self.kinds)
        return included and not excluded

    def _selected(self, site: Site, found: tuple[str, dict[str, Any]]) -> bool:
        """Whether to replace an activation; if not, say why."""
        held = site.held
        if isinstance(held, nn.Module) and (held._modules or held._parameters or held._buffers):
            return self._skip(site, "has parameters, buffers or children of its own")
        if not self._matches(site):
            return self._skip(site, "not selected by include and exclude")
        try:
            ActReg(found[0], **found[1])
        except (TypeError, ValueError) as error:
            return self._skip(site, str(error))
        return True

    def _skip(self, site: Site, why: str) -> bool:
        self.report.skipped.append(Change(site.name, _shown(site.held), why))
        return False

    def _replace(self, site: Site, found: tuple[str, dict[str, Any]], p: float) -> None:
        inplace = bool(getattr(site.held, "inplace", False))
        key = (id(site.held), p, inplace)
        if key not in self.made or not isinstance(site.held, nn.Module):
            name, parameters = found
            self.made[key] = self._new(
                site.held,
                ActReg(name, p=p, keep="input", inplace=inplace, **self.options, **parameters),
            )
            if not isinstance(site.held, nn.Module):
                self.made[key].training = site.parent.training
        self._change(site, self.made[key])

    @staticmethod
    def _new(old: Any, new: Any) -> Any:
        new._original = (old,)
        if isinstance(old, nn.Module):
            new.training = old.training
            share_hooks(old, new)
        return new

    def _change(self, site: Site, new: nn.Module, note: str = "") -> None:
        self.changes.append((site, new))
        self.report.replaced.append(Change(site.name, _shown(site.held), f"{new}{note}"))

    def _remove(self, site: Site, activation: Site) -> None:
        new = self._new(site.held, nn.Identity())
        self._change(site, new, f": part of {activation.name}")

    def _consider(self, site: Site) -> None:
        """Replace a dropout that follows no activation, or say why a module stays."""
        held = site.held
        if type(held) is nn.Dropout:
            if not self.dropout:
                self._skip(site, "dropout=False")
            elif not self._matches(site):
                self._skip(site, "not selected by include and exclude")
            elif held.p == 0:
                self._skip(site, "p is 0")
            else:
                key = (id(held), held.p, held.inplace)
                if key not in self.made:
                    layer = ActReg("identity", p=held.p, inplace=held.inplace)
                    self.made[key] = self._new(held, layer)
                self._change(site, self.made[key])
        elif isinstance(held, _SHARED_MASK):
            self._skip(site, "elements share their masks, which ActReg does not do")
        elif isinstance(held, ActReg):
            self._skip(site, "is an ActReg that convert did not make")
        elif is_activation_class(held) and described(held) is None:
            self._skip(site, "has no formula here")

    def _dropout_behind(self, site: Site, by_place: dict[tuple[int, str], Site]) -> Site | None:
        """Return the place of the nn.Dropout that takes exactly this activation's output."""
        pair = pair_of(site.parent)
        if pair is not None:
            behind = by_place.get((id(site.parent), pair[1])) if site.key == pair[0] else None
            return behind if behind is not None and type(behind.held) is nn.Dropout else None
        parent, key = site.parent, site.key
        while type(parent).forward is nn.Sequential.forward:
            keys = list(parent._modules)
            index = keys.index(key) + 1
            if index < len(keys):
                return self._first(parent, keys[index], by_place)
            holders = [other for other in self.sites if other.held is parent]
            if len(holders) != 1 or has_hooks(parent):
                return None
            parent, key = holders[0].parent, holders[0].key
        return None

    def _first(
        self, parent: nn.Module, key: str, by_place: dict[tuple[int, str], Site]
    ) -> Site | None:
        """Return the place if it holds an nn.Dropout, or the first place inside its Sequential."""
        site = by_place.get((id(parent), key))
        while site is not None and type(site.held).forward is nn.Sequential.forward:
            if self.places[id(site.held)] != 1 or has_hooks(site.held) or not site.held._modules:
                return None
            site = by_place.get((id(site.held), next(iter(site.held._modules))))
        return site if site is not None and type(site.held) is nn.Dropout else None

    def _order(self) -> None:
        """Sort the report as the model's modules are."""
        rank = {site.name: index for index, site in enumerate(self.sites)}
        for changes in (self.report.replaced, self.report.skipped):
            changes.sort(key=lambda change: rank[change.name])


def _shown(held: Any) -> str:
    if isinstance(held, nn.Module):
        return errors.brief(held)
    return f"function {getattr(held, '__name__', held)}"
