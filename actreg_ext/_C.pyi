"""The C++ extension module: the registry, and the eager door to the operator."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

_Output = TypeVar("_Output", bound=tuple[Tensor, Tensor])

def forward(
    type: type[_Output],
    x: Tensor,
    rng_state: Tensor | None,
    activation: str,
    parameters: Sequence[float],
    p: float,
    on_output: bool,
    l1: float,
    l2: float,
    reduction: str,
) -> _Output:
    """Return (output, penalty) as `type`, a named tuple.

    With p > 0 and no rng_state it draws one.
    """

def forward_(
    x: Tensor,
    rng_state: Tensor | None,
    activation: str,
    parameters: Sequence[float],
    p: float,
    on_output: bool,
    l1: float,
    l2: float,
    reduction: str,
) -> Tensor:
    """Overwrite x by the output and return the penalty; rng_state None and p > 0 draws."""

def kept(
    dtype: torch.dtype,
    activation: str,
    parameters: Sequence[float],
    p: float,
    on_output: bool,
    l1: float,
    l2: float,
) -> str:
    """Return what of an x of dtype backward keeps: "input", "output", "bits" or "nothing"."""

def activations() -> dict[str, dict[str, float | None]]:
    """Return {name: {parameter: default, None where required}} in registry order."""

def build_info() -> dict[str, str | bool | list[str]]:
    """Return what this module was built with: torch, compiler, cuda, instruction_sets."""

def cpu_capability() -> str:
    """Return the instruction set in use: "AVX512", "AVX2" or "DEFAULT"."""
