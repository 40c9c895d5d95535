"""Who computes it: the operator, everything a user would pick instead, and the memory's own speed.

A provider that does less than a case asks for says so in `does`: it is held to that much, and
every table names it as doing less.
"""

from __future__ import annotations

import importlib.util
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
ALL = frozenset(("activation", "penalty", "dropout"))
# Without CUDA graphs: the copies that these make of each input would count against the rival.
MODES: dict[str, dict[str, Any]] = {
    "compile": {"mode": "default"},
    "fused-compile": {"mode": "default"},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
    "cooperative": {"options": {"triton.cooperative_reductions": True}},
}


@dataclass(frozen=True)
class Provider:
    """How one of them computes a case, and what it is to be held to."""

    name: str
    computes: str
    layer: Callable[[Case], Layer] | None  # None: the floor, which computes nothing
    does: frozenset[str] = ALL
    on: tuple[str, ...] = ("cpu", "cuda")
    needs: str | None = None  # a package
    names: tuple[str, ...] | None = None  # the activations that it has, if not all
    writes_input: bool = False  # its backward overwrites x
    share: Callable[[float], float] = lambda p: 1 - p  # of the elements that is kept

    @property
    def is_floor(self) -> bool:
        return self.layer is None

    @property
    def mode(self) -> dict[str, Any] | None:
        """Arguments of torch.compile, if it is for compiling."""
        return MODES.get(self.name)

    def why_absent(self, device: str) -> str | None:
        if device not in self.on:
            return f"is not for {device}"
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None

    def fits(self, case: Case) -> bool:
        """Whether it has something to do in this case."""
        if case.place != "call":  # blocks are held against float64 as a whole
            return self.does == ALL and not self.is_floor
        if self.does == {"dropout"}:
            return case.p > 0
        return self.names is None or case.activation in self.names


def coefficients(case: Case) -> dict[str, Any]:
    l1, l2 = PENALTIES[case.penalty]
    return {"l1": l1, "l2": l2, **REQUIRED.get(case.activation, {})}


def fused(case: Case) -> Layer:
    return partial(
        act_reg, activation=case.activation, p=case.p, reduction="sum", **coefficients(case)
    )


def function_of(case: Case) -> Callable[[Tensor], Tensor]:
    """The activation, as torch.nn.functional has it."""
    if case.activation == "identity" and case.p:
        return lambda x: x  # dropout makes the new tensor; without it that is a clone
    function, _ = reference.ACTIVATIONS[case.activation]
    parameters = REQUIRED.get(case.activation, {})
    return partial(function, **parameters) if parameters else function


def eager(case: Case) -> Layer:
    """The same in plain PyTorch, as a user writes it."""
    function, p = function_of(case), case.p
    l1, l2 = PENALTIES[case.penalty]
    # A sum of float16 overflows beyond 65504; the other types are summed as they are.
    wide = torch.float32 if case.dtype == "float16" else None

    def plain(x: Tensor) -> tuple[Tensor, ...]:
        a = function(x)
        y = F.dropout(a, p) if p else a
        if not l1 and not l2:
            return (y,)
        if not l2:
            return y, l1 * a.abs().sum(dtype=wide)
        if not l1:
            return y, l2 * a.square().sum(dtype=wide)
        return y, l1 * a.abs().sum(dtype=wide) + l2 * a.square().sum(dtype=wide)

    return plain


def activation_alone(case: Case) -> Layer:
    function = function_of(case._replace(p=0.0))
    return lambda x: (function(x),)


def triton_dropout(case: Case) -> Layer:
    from .triton_dropout import dropout

    return lambda x: (dropout(x, case.p),)


def liger(case: Case) -> Layer:
    """Its gated activations with a gate of ones: act(x) * 1."""
    if case.activation == "silu":
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction as gated
    else:
        from liger_kernel.ops.geglu import LigerGELUMulFunction as gated
    gates: dict[tuple[int, torch.device], Tensor] = {}

    def layer(x: Tensor) -> tuple[Tensor, ...]:
        rows = x.view(-1, min(1024, x.numel()))
        # Made once for each shape and not timed; its own backward overwrites it.
        gate = gates.setdefault((x.numel(), x.device), torch.ones_like(rows))
        return (gated.apply(rows, gate).view_as(x),)

    return layer


def kept_share(p: float) -> float:
    """The operator's: 16 random bits decide."""
    return reference.kept_of_65536(p) / 65536


_compiled = "plain PyTorch under torch.compile"
PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("floor", "x.clone() forward, torch.add(x, dy) backward: the memory alone", None),
        Provider("fused", "act_reg: all of it in one pass", fused, share=kept_share),
        Provider("fused-compile", "act_reg under torch.compile", fused, share=kept_share),
        Provider("eager", "activation, abs().sum(), square().sum(), F.dropout", eager),
        Provider("compile", f"{_compiled}, mode default", eager),
        Provider("max-autotune", f"{_compiled}, mode max-autotune", eager, on=("cuda",)),
        Provider("cooperative", f"{_compiled}, cooperative reductions", eager, on=("cuda",)),
        Provider(
            "activation",
            "less: the activation alone, no penalty, no dropout",
            activation_alone,
            does=frozenset(("activation",)),
        ),
        Provider(
            "triton-dropout",
            "less: the seeded dropout of Triton's tutorial alone",
            triton_dropout,
            does=frozenset(("dropout",)),
            on=("cuda",),
            needs="triton",
        ),
        Provider(
            "liger",
            "less: Liger's gated SiLU and GELU (tanh) with a gate of ones, which it reads",
            liger,
            does=frozenset(("activation",)),
            on=("cuda",),
            needs="liger_kernel",
            names=("silu", "gelu_tanh"),
            writes_input=True,
        ),
    )
}
