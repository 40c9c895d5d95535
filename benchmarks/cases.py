"""What is measured: cases, and the presets that choose some of them.

A preset is a list of slices, each a full product of a few axes; together they are the plan. Options
of the command line replace an axis in every slice, so nothing is ever measured that was not asked
for, and `describe` says of each slice what is in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from actreg_ext import activations

DTYPES = ("float32", "float64", "float16", "bfloat16")
SIZES = tuple(2**k for k in range(4, 27))
PENALTIES = {"both": (0.1, 0.1), "l1": (0.1, 0.0), "l2": (0.0, 0.1), "none": (0.0, 0.0)}
PLACES = ("call", "mlp", "ffn", "sae", "step", "deep")
TRAINED = ("step", "deep")  # in whole steps, on data that needs no gradient
DIRECTIONS = ("forward", "backward", "both", "step")
REQUIRED = {"threshold": {"threshold": 0.1, "value": 0.0}}  # parameters without defaults
# For when the time is short, or the place on a page.
MOST_USED = ("relu", "gelu", "silu", "gelu_tanh", "tanh", "sigmoid", "leaky_relu", "elu")
UNCOMPILED = ("floor", "fused", "eager", "activation", "triton-dropout", "liger")
COMPILED = ("compile", "max-autotune", "cooperative")


class Case(NamedTuple):
    """One computation: every provider does it on the same numbers."""

    place: str
    activation: str
    dtype: str
    p: float
    penalty: str
    elements: int  # of the activation's input

    def describe(self) -> str:
        size = self.elements
        shown = f"2^{size.bit_length() - 1}" if size & (size - 1) == 0 else str(size)
        return f"{self.place} {self.activation} {self.dtype} p={self.p:g} {self.penalty} {shown}"


@dataclass(frozen=True)
class Slice:
    """A full product."""

    title: str
    places: tuple[str, ...] = ("call",)
    activations: tuple[str, ...] = ("gelu",)
    dtypes: tuple[str, ...] = ("float32",)
    p: tuple[float, ...] = (0.0, 0.1)
    penalties: tuple[str, ...] = ("both",)
    sizes: tuple[int, ...] = (2**22,)
    directions: tuple[str, ...] = ("forward", "backward")
    providers: tuple[str, ...] = UNCOMPILED + COMPILED

    def cases(self) -> list[Case]:
        axes = (self.places, self.activations, self.dtypes, self.p, self.penalties, self.sizes)
        return [Case(*axis) for axis in itertools.product(*axes)]

    def describe(self) -> str:
        names = list(activations())
        every = len(self.activations) == len(names)
        exponents = [f"2^{s.bit_length() - 1}" if s & (s - 1) == 0 else str(s) for s in self.sizes]
        parts = (
            " ".join(self.places),
            f"all {len(names)} activations" if every else " ".join(self.activations),
            " ".join(self.dtypes),
            "p " + " ".join(f"{p:g}" for p in self.p),
            "penalties " + " ".join(self.penalties),
            " ".join(exponents) + " elements",
            " ".join(self.directions),
        )
        return ", ".join(parts)


@dataclass
class Planned:
    """What is asked of one case by all slices together."""

    case: Case
    directions: list[str]
    providers: list[str]
    slices: list[str] = field(default_factory=list)  # their titles, by which the pages find it


def every_activation() -> tuple[str, ...]:
    """The most used first."""
    names = [name for name in MOST_USED if name in activations()]
    return tuple(names + [name for name in activations() if name not in names])


def quick() -> list[Slice]:
    few = ("floor", "fused", "eager", "activation", "triton-dropout", "liger")
    return [
        Slice("size", p=(0.1,), sizes=(2**4, 2**12, 2**22), directions=DIRECTIONS[:3]),
        Slice(
            "activation", activations=every_activation(), p=(0.1,), sizes=(2**20,), providers=few
        ),
        Slice("dtype", dtypes=DTYPES, p=(0.0,), sizes=(2**20,), providers=few),
        Slice("penalty", penalties=tuple(PENALTIES), p=(0.1,), sizes=(2**20,), providers=few),
        *_places(2**18, ("float32",), ("fused", "eager", "compile")),
    ]


def published() -> list[Slice]:
    return [
        Slice("size", p=(0.1,), sizes=SIZES[::2]),
        Slice("size", p=(0.1,), sizes=SIZES[:19:6], directions=("both",)),
        Slice("activation", activations=every_activation()),
        Slice("dtype", activations=("relu", "gelu"), dtypes=DTYPES, sizes=(2**24,)),
        Slice("penalty", penalties=tuple(PENALTIES)),
        *_places(2**20, ("float32", "bfloat16"), ("fused", "fused-compile", "eager", "compile")),
    ]


def reused() -> list[Slice]:
    """Where malloc keeps what is freed (machine.keep_memory), and no call waits for fresh pages."""
    return [Slice("reused", activations=("relu", "gelu"), dtypes=DTYPES, sizes=(2**22, 2**24))]


def full() -> list[Slice]:
    """Everything: days on two cores."""
    everything = Slice(
        "everything",
        activations=every_activation(),
        dtypes=DTYPES,
        penalties=tuple(PENALTIES),
        sizes=SIZES,
        directions=DIRECTIONS[:3],
        providers=(*UNCOMPILED, "fused-compile", *COMPILED),
    )
    return [everything, *_places(2**22, DTYPES, everything.providers)]


def gpu() -> list[Slice]:
    """What `make gpu-check` measures: the kernels where memory is the limit."""
    order = ("bfloat16", "float32", "float16", "float64")
    names, large = every_activation(), (2**26,)
    rivals = ("floor", "fused", "eager", *COMPILED)
    return [
        Slice("activation", activations=names, dtypes=order, sizes=large, providers=rivals),
        Slice("dtype", activations=("relu", "gelu"), dtypes=order, sizes=large, providers=rivals),
        Slice("size", p=(0.1,), sizes=SIZES[::2], providers=("floor", "fused", "eager", "compile")),
        *_places(2**24, ("bfloat16",), ("fused", "eager", "compile")),
    ]


def _places(size: int, dtypes: tuple[str, ...], providers: tuple[str, ...]) -> list[Slice]:
    shared: dict[str, Any] = {"dtypes": dtypes, "sizes": (size,), "providers": providers}
    blocks = {"directions": ("forward", "both"), **shared}
    return [
        Slice("perceptron, transformer", places=("mlp", "ffn"), p=(0.1,), **blocks),
        Slice(
            "sparse autoencoder",
            places=("sae",),
            activations=("relu",),
            p=(0.0,),
            penalties=("l1",),
            **blocks,
        ),
        Slice("training step", places=("step",), p=(0.1,), directions=("step",), **shared),
        Slice(
            "deep perceptron",
            places=("deep",),
            activations=("relu",),
            p=(0.1,),
            penalties=("l1",),
            directions=("step",),
            **shared,
        ),
    ]


PRESETS = {
    "quick": quick,
    "published": published,
    "reused": reused,
    "full": full,
    "gpu": gpu,
}


def narrowed(slices: Sequence[Slice], axes: dict[str, Sequence[Any] | None]) -> list[Slice]:
    """The slices with some axes replaced; a place, direction or provider is only ever left out."""
    found = []
    for part in slices:
        for axis, wanted in axes.items():
            if wanted is None:
                continue
            if axis in ("places", "directions", "providers"):
                wanted = tuple(value for value in getattr(part, axis) if value in wanted)
            elif axis != "sizes" and axis != "dtypes" and part.places != ("call",):
                continue  # a block is measured with what belongs to it
            changed: dict[str, Any] = {axis: tuple(wanted)}
            part = replace(part, **changed)
        found.append(part)
    return [part for part in found if part.cases() and part.directions and part.providers]


def plan(slices: Sequence[Slice]) -> list[Planned]:
    """Each case once, with all that is asked of it, in the order of the slices."""
    found: dict[Case, Planned] = {}
    for part in slices:
        for case in part.cases():
            planned = found.setdefault(case, Planned(case, [], []))
            planned.directions += [d for d in part.directions if d not in planned.directions]
            planned.slices += [part.title] * (part.title not in planned.slices)
            planned.providers += [p for p in part.providers if p not in planned.providers]
    return list(found.values())
