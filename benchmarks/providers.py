"""Who computes a case: act_reg, what a user would write instead, and a copy of the memory.

docs/benchmarks.md shows how to add a provider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from actreg_ext import reference
from actreg_ext.functional import act_reg

from .cases import PENALTIES, REQUIRED, Case

Layer = Callable[[Tensor], tuple[Tensor, ...]]  # x -> y, or y and the penalty


@dataclass(frozen=True)
class Provider:
    """How one of them computes a case."""

    name: str
    computes: str
    layer: Callable[[Case], Layer] | None  # None: a copy, which computes nothing
    regularizes: bool = True  # else it is held to the activation alone
    # Arguments of torch.compile. Without CUDA graphs: they copy each input, which would be unfair.
    mode: dict[str, Any] | None = None
    on: tuple[str, ...] = ("cpu", "cuda")
    share: Callable[[float], float] = lambda p: 1 - p  # of the elements that dropout keeps


def coefficients(case: Case) -> dict[str, Any]:
    l1, l2 = PENALTIES[case.penalty]
    return {"l1": l1, "l2": l2, **REQUIRED.get(case.activation, {})}


def fused(case: Case) -> Layer:
    options = coefficients(case)
    return partial(act_reg, activation=case.activation, p=case.p, reduction="sum", **options)


def function_of(case: Case) -> Callable[[Tensor], Tensor]:
    """The activation, as torch.nn.functional has it."""
    if case.activation == "identity" and case.p:
        return lambda x: x  # dropout makes the new tensor; without dropout a clone does
    function, _ = reference.ACTIVATIONS[case.activation]
    return partial(function, **REQUIRED.get(case.activation, {}))


def eager(case: Case) -> Layer:
    """Activation, dropout and penalties in plain PyTorch, as a user writes them."""
    function, p = function_of(case), case.p
    l1, l2 = PENALTIES[case.penalty]
    # A float16 sum overflows beyond 65504; the other types are summed in their own type.
    wide = torch.float32 if case.dtype == "float16" else None

    def layer(x: Tensor) -> tuple[Tensor, ...]:
        a = function(x)
        y = F.dropout(a, p) if p else a
        if not l1 and not l2:
            return (y,)
        if not l2:
            return y, l1 * a.abs().sum(dtype=wide)
        if not l1:
            return y, l2 * a.square().sum(dtype=wide)
        return y, l1 * a.abs().sum(dtype=wide) + l2 * a.square().sum(dtype=wide)

    return layer


def plain(case: Case) -> Layer:
    """The activation alone: the model before anybody regularized it."""
    function = function_of(case._replace(p=0.0))
    return lambda x: (function(x),)


def kept_share(p: float) -> float:
    """Of act_reg's dropout, which decides by 16 random bits."""
    return float(reference.kept_of_65536(p)) / 65536


_default = {"mode": "default"}
_tuned = {"mode": "max-autotune-no-cudagraphs"}
_cooperative = {"options": {"triton.cooperative_reductions": True}}
_under, _gpu = "eager under torch.compile", ("cuda",)
_providers = (
    Provider("act_reg", "actreg_ext: everything in one pass", fused, share=kept_share),
    Provider(
        "act_reg-compile", "act_reg under torch.compile", fused, mode=_default, share=kept_share
    ),
    Provider("eager", "PyTorch: activation, abs().sum(), square().sum(), F.dropout", eager),
    Provider("compile", f"{_under}, default mode", eager, mode=_default),
    Provider("max-autotune", f"{_under}, max-autotune", eager, mode=_tuned, on=_gpu),
    Provider("cooperative", f"{_under}, cooperative reductions", eager, mode=_cooperative, on=_gpu),
    Provider(
        "plain", "less work: the activation, no penalty, no dropout", plain, regularizes=False
    ),
    Provider("copy", "no work: x.clone() forward, torch.add(x, dy) backward", None),
)
PROVIDERS = {provider.name: provider for provider in _providers}
