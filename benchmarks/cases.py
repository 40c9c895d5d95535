"""What is measured: cases, and the presets that choose some of them.

A preset is a list of slices. A slice is every combination of a few axes. The command line can
narrow the axes of all slices. docs/benchmarks.md shows how to add a slice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from actreg_ext import activations

DTYPES = ("float32", "float64", "float16", "bfloat16")
GPU_DTYPES = ("bfloat16", "float32", "float16", "float64")  # the most used first
SIZES = tuple(2**k for k in range(4, 27, 2))
PENALTIES = {"both": (0.1, 0.1), "l1": (0.1, 0.0), "l2": (0.0, 0.1), "none": (0.0, 0.0)}
PLACES = ("call", "mlp", "ffn", "sae", "step", "deep")
TRAINED = ("step", "deep")  # whole training steps, on data that needs no gradient
DIRECTIONS = ("forward", "backward", "both", "step")
REQUIRED = {"threshold": {"threshold": 0.1, "value": 0.0}}  # parameters without defaults
MOST_USED = ("relu", "gelu", "silu", "gelu_tanh", "tanh", "sigmoid", "leaky_relu", "elu")
# The most used come first, for when the time runs out.
EVERY = tuple(dict.fromkeys((*MOST_USED, *activations())))
UNCOMPILED = ("copy", "act_reg", "eager", "plain")
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
        *names, p, penalty, elements = self
        return f"{' '.join(map(str, names))} p={p:g} {penalty} {size(elements)}"


def size(elements: int) -> str:
    power = elements.bit_length() - 1
    return f"2^{power}" if 1 << power == elements else str(elements)


@dataclass(frozen=True)
class Slice:
    """Every combination of these."""

    title: str  # the pages find their cases by it
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
        return [Case(*values) for values in itertools.product(*axes)]

    def describe(self) -> str:
        every = len(self.activations) == len(EVERY)
        parts = (
            " ".join(self.places),
            f"all {len(EVERY)} activations" if every else " ".join(self.activations),
            " ".join(self.dtypes),
            "p " + " ".join(f"{p:g}" for p in self.p),
            "penalties " + " ".join(self.penalties),
            " ".join(map(size, self.sizes)) + " elements",
            " ".join(self.directions),
        )
        return f"{self.title}: {', '.join(parts)}"


@dataclass
class Planned:
    """What all slices together ask of one case."""

    case: Case
    directions: list[str]
    providers: list[str]
    slices: list[str]


# Blocks of networks, forward and both passes.
_passes: dict[str, Any] = {"directions": ("forward", "both")}
_sparse: dict[str, Any] = {"activations": ("relu",), "penalties": ("l1",)}
NETWORKS = (
    Slice("perceptron, transformer", places=("mlp", "ffn"), p=(0.1,), **_passes),
    Slice("sparse autoencoder", places=("sae",), p=(0.0,), **_sparse, **_passes),
)
# Whole training steps.
_steps: dict[str, Any] = {"directions": ("step",), "p": (0.1,)}
STEPS = (
    Slice("training step", places=("step",), **_steps),
    Slice("training step, deep", places=("deep",), **_sparse, **_steps),
)


def sized(
    slices: Sequence[Slice], elements: int, dtypes: tuple[str, ...], *providers: str
) -> list[Slice]:
    """The same slices for one size, these dtypes and providers."""
    return [replace(s, sizes=(elements,), dtypes=dtypes, providers=providers) for s in slices]


_common = ("act_reg", "eager", "compile", "plain")
_gpu = ("copy", "act_reg", "eager", *COMPILED)
_all: dict[str, Any] = {"activations": EVERY}
_types: dict[str, Any] = {"activations": ("relu", "gelu"), "dtypes": DTYPES}
_terms: dict[str, Any] = {"penalties": tuple(PENALTIES)}
_quick: dict[str, Any] = {"p": (0.1,), "sizes": (2**20,), "providers": UNCOMPILED}
_large: dict[str, Any] = {"sizes": (2**26,), "providers": _gpu}  # memory is the limit
PRESETS = {
    "quick": [
        Slice("size", p=(0.1,), sizes=(2**4, 2**12, 2**22), directions=DIRECTIONS[:3]),
        Slice("activation", **_all, **_quick),
        Slice("dtype", dtypes=DTYPES, **(_quick | {"p": (0.0,)})),
        Slice("penalty", **_terms, **_quick),
        *sized(NETWORKS + STEPS, 2**18, ("float32",), *_common),
    ],
    "published": [
        Slice("size", p=(0.1,), sizes=SIZES),
        Slice("size", p=(0.1,), sizes=SIZES[:10:3], directions=("both",)),
        Slice("activation", **_all),
        Slice("dtype", sizes=(2**24,), **_types),
        Slice("penalty", **_terms),
        *sized(NETWORKS, 2**20, ("float32", "bfloat16"), *_common, "act_reg-compile"),
    ],
    "steps": sized(STEPS, 2**20, ("float32", "bfloat16"), *_common, "act_reg-compile"),
    # Where malloc keeps what is freed (machine.keep_memory): no call waits for new pages.
    "reused": [Slice("reused", sizes=(2**22, 2**24), **_types)],
    # For `make gpu-check`: what matters most first, as the time is limited.
    "gpu": [
        Slice("activation", dtypes=GPU_DTYPES, **_all, **_large),
        Slice("dtype", **(_types | {"dtypes": GPU_DTYPES}), **_large),
        Slice("size", p=(0.1,), sizes=SIZES, providers=_gpu[:4]),
        *sized(NETWORKS + STEPS, 2**24, ("bfloat16",), *_common),
    ],
}


def narrowed(slices: Sequence[Slice], axes: dict[str, Sequence[Any] | None]) -> list[Slice]:
    """The slices with some axes replaced; places, directions and providers are only left out."""
    found = []
    for part in slices:
        for axis, wanted in axes.items():
            if wanted is None:
                continue
            if axis in ("places", "directions", "providers"):
                wanted = [value for value in getattr(part, axis) if value in wanted]
            elif axis not in ("sizes", "dtypes") and part.places != ("call",):
                continue  # a network keeps its own activation, p and penalty
            part = replace(part, **{axis: tuple(wanted)})  # type: ignore[arg-type]
        found.append(part)
    return [part for part in found if part.cases() and part.directions and part.providers]


def plan(slices: Sequence[Slice]) -> list[Planned]:
    """Each case once, with all that is asked of it, in the order of the slices."""
    found: dict[Case, Planned] = {}
    for part in slices:
        for case in part.cases():
            planned = found.setdefault(case, Planned(case, [], [], []))
            for known, more in (
                (planned.directions, part.directions),
                (planned.providers, part.providers),
                (planned.slices, [part.title]),
            ):
                known += [value for value in more if value not in known]
    return list(found.values())
