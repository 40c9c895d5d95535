"""The compiled C++ module: the registry of activations, and the operator for eager calls."""

from collections.abc import Sequence
from typing import Generic, TypeVar

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
    keep_input: bool = False,
) -> _Output:
    """Compute the operator and return (output, penalty) as `type`, a named tuple.

    If p > 0 and rng_state is None, a seed is drawn from the generator of x's device.
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
    keep_input: bool = False,
) -> Tensor:
    """Overwrite x with the output and return the penalty.

    If p > 0 and rng_state is None, a seed is drawn from the generator of x's device.
    """

def forward_general(
    x: Tensor,
    rng_state: Tensor | None,
    activation: str,
    parameters: Sequence[float],
    p: float | None,
    on_output: bool,
    coefficients: Sequence[float] | None,
    reduction: str,
    keep_input: bool,
    channel_dim: int | None,
    shared_dims: Sequence[int],
    global_shape: Sequence[int],
    offsets: Sequence[int],
    alpha: bool,
    row_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute the general form: return the output, and the penalty or the sums.

    The arguments are those of the operator `actreg::forward`. If p > 0 and rng_state is None, a
    seed is drawn from the generator of x's device.
    """

def kept(
    dtype: torch.dtype,
    activation: str,
    parameters: Sequence[float],
    p: float,
    on_output: bool,
    l1: float,
    l2: float,
    keep_input: bool = False,
) -> str:
    """Return what is kept for the backward: "input", "output", "bits" or "nothing"."""

def inject(y: Tensor, scale: Tensor, divisor: float) -> bool:
    """Make y's backward add the penalty's gradient, times scale / divisor.

    Returns False if y is not the output of a forward operator.
    """

class Prepared(Generic[_Output]):
    """`forward` with everything but x given beforehand, and without rng_state."""

    def __call__(self, x: Tensor) -> _Output:
        """Compute the operator."""

def prepare(
    type: type[_Output],
    activation: str,
    parameters: Sequence[float],
    p: float,
    on_output: bool,
    l1: float,
    l2: float,
    reduction: str,
    keep_input: bool = False,
) -> Prepared[_Output]:
    """Prepare calls of `forward`."""

class LoosePenalty:
    """A penalty that does not keep its graph alive."""

    def get(self) -> Tensor | None:
        """Return the penalty with its graph; None if the graph is gone."""

def loosen(penalty: Tensor) -> LoosePenalty | None:
    """Make a penalty loose; None if its node may have made the penalty alone."""

def is_in_use(penalty: Tensor) -> bool | None:
    """Whether anything but the penalty holds the graph of its forward; None: unknown."""

def is_freed(penalty: Tensor) -> bool | None:
    """Whether a backward has freed the graph of the penalty's forward; None: unknown."""

def activations() -> dict[str, dict[str, float | None]]:
    """Return {name: {parameter: default}} in registry order; None: the caller must give it."""

def build_info() -> dict[str, str | bool | list[str]]:
    """Return what this module was built with: keys torch, compiler, cuda, instruction_sets."""

def cpu_capability() -> str:
    """Return the instruction set in use: "AVX512", "AVX2" or "DEFAULT"."""
