"""The checks of public arguments, which functional, nn and reference share. No maths here.

The texts of the errors are in errors.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from . import _C, errors
from .known import accepted_classes, described

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
PENALTY_ON = ("activation", "output")
KEEP = ("auto", "input")
REDUCTIONS = ("sum", "mean", "batch", "token")
OPTIONS = {
    "act_reg": (
        "activation",
        "l1",
        "l2",
        "p",
        "training",
        "penalty_on",
        "reduction",
        "seed",
        "keep",
        "channel_dim",
        "row_weight",
        "shared_dims",
        "dropout",
        "shard",
    ),
    "ActReg": (
        "activation",
        "l1",
        "l2",
        "p",
        "penalty_on",
        "reduction",
        "keep",
        "shared_dims",
        "dropout",
        "inject",
        "inplace",
    ),
}

# The C++ registry: name -> {parameter: default}. A default of None: the caller must give a value.
DEFAULTS: dict[str, dict[str, float | None]] = _C.activations()
# The activations that can be called without parameters: name -> all defaults, in registry order.
READY: dict[str, tuple[float, ...]] = {
    name: tuple(value for value in parameters.values() if value is not None)
    for name, parameters in DEFAULTS.items()
    if None not in parameters.values()
}
# name -> (a test that the parameters must pass, the text if they do not). The tests reject what
# torch rejects, and divisions by 0.
_CONSTRAINTS: dict[str, tuple[Callable[..., bool], str]] = {
    "celu": (lambda alpha: alpha != 0, "alpha must not be 0"),
    "softplus": (lambda beta, threshold: beta != 0, "beta must not be 0"),
    "hardtanh": (lambda low, high: low <= high, "min_val must not be greater than max_val"),
    "softshrink": (lambda lambd: 0 <= lambd < math.inf, "lambd must be finite and at least 0"),
}


def check(
    input: Tensor,
    l1: float,
    l2: float,
    p: float,
    training: bool,
    penalty_on: str,
    reduction: str,
    seed: int | Tensor | None,
    keep: str = "auto",
) -> tuple[float, float, float]:
    """Check the arguments of the flat `act_reg` except the activation.

    Returns l1, l2 and p as floats. rows.py checks the arguments of the general form.
    """
    check_input(input)
    if training is not True and training is not False:
        raise TypeError(f"training must be True or False, but got {errors.shown(training)}")
    choice("penalty_on", penalty_on, PENALTY_ON)
    choice("reduction", reduction, REDUCTIONS)
    choice("keep", keep, KEEP)
    if seed is not None:
        check_seed(seed)
    return coefficient("l1", l1), coefficient("l2", l2), probability(p)


def check_input(input: object, argument: str = "input") -> None:
    """Raise TypeError unless the input is a dense tensor of one of `DTYPES`."""
    if (
        not isinstance(input, Tensor)
        or input.dtype not in DTYPES
        or input.layout is not torch.strided
        or input.is_nested
    ):
        raise errors.bad_input(input, DTYPES, argument)


def resolve(
    activation: str | nn.Module, given: Mapping[str, Any], taker: str = "act_reg"
) -> tuple[str, tuple[float, ...]]:
    """Return the registry's name of an activation and all its parameters, in registry order.

    Args:
        activation: a name or an activation module of a class that known.py lists.
        given: the parameters that the caller gave by keyword.
        taker: "act_reg" or "ActReg": whose options an error lists.
    """
    if isinstance(activation, nn.Module):
        if given:
            raise errors.parameters_of_module(activation, given)
        found = described(activation)
        if found is None:
            raise errors.unknown_module(activation, accepted_classes())
        activation, given = found
    if not isinstance(activation, str) or activation not in DEFAULTS:
        raise errors.not_one_of("activation", activation, DEFAULTS)
    if activation == "gelu" and "approximate" in given:  # as in torch
        given = dict(given)
        approximate = given.pop("approximate")
        if approximate not in ("none", "tanh"):
            raise errors.not_one_of("approximate", approximate, ("none", "tanh"))
        activation = "gelu_tanh" if approximate == "tanh" else "gelu"
    defaults = DEFAULTS[activation]
    for name in given:
        if name not in defaults:
            raise errors.unknown_parameter(
                activation, name, given[name], defaults, taker, OPTIONS[taker]
            )
    parameters = tuple(
        [
            _parameter(activation, name, given.get(name, default))
            for name, default in defaults.items()
        ]
    )
    if activation in _CONSTRAINTS:
        accepts, accepted = _CONSTRAINTS[activation]
        if not accepts(*parameters):
            values = errors.listed(dict(zip(defaults, parameters, strict=True)))
            raise ValueError(f"{activation}: {accepted}, but got {values}")
    return activation, parameters


def _parameter(activation: str, name: str, value: object) -> float:
    if type(value) is float and value == value:
        return value
    if value is None:
        raise TypeError(
            f"{activation}: {name} is required, but was not given; pass {name}=<a real number>"
        )
    number = real(f"{activation}: {name}", value)
    if number != number:
        raise ValueError(f"{activation}: {name} must be a real number, but got nan")
    return number


def real(argument: str, value: object) -> float:
    """Return a real number as a float; raise TypeError for a bool, a string or a tensor."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise errors.not_real(argument, value)
    try:
        return float(value)
    except OverflowError:  # an int that is larger than every float
        return -math.inf if value < 0 else math.inf


def coefficient(argument: str, value: object) -> float:
    """Return l1 or l2 as a float; raise ValueError unless it is finite and at least 0."""
    number = real(argument, value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{argument} must be finite and at least 0, but got {value}")
    return number


def probability(p: object) -> float:
    """Return p as a float; raise ValueError unless it is in [0, 1]."""
    number = real("p", p)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"p, the dropout probability, must be between 0 and 1, but got {p}")
    return number


def check_seed(seed: object) -> None:
    """Raise unless a seed is an int in [-2^63, 2^64 - 1] or an int64 tensor of shape [2]."""
    if isinstance(seed, Tensor):
        if seed.dtype is not torch.int64 or seed.shape != (2,):
            raise ValueError(
                "seed, if it is a tensor, must be int64 of shape [2] and hold {seed, offset}, "
                f"but got {errors.shown(seed)}"
            )
    elif isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(
            f"seed must be None, an int or an int64 tensor {{seed, offset}} of shape [2], "
            f"but got {errors.shown(seed)}"
        )
    elif not -(2**63) <= int(seed) < 2**64:
        raise ValueError(f"seed must be in [-2^63, 2^64 - 1], but got {seed}")


def rng_state(seed: int | Tensor, x: Tensor, p: float | Tensor = 0.0) -> Tensor:
    """Return a seed, already checked, as a new int64 tensor on the device of x.

    The tensor is {seed, offset}, and {seed, offset, T} if p is a tensor.
    """
    state: Tensor
    at = (p,) if isinstance(p, Tensor) else ()
    if isinstance(seed, Tensor):
        state = torch.ops.actreg.rng_state(x, seed.to(x.device), 0, *at)
    else:
        # Not when compiling: a seed that varies must stay symbolic there.
        if not torch.compiler.is_compiling():
            seed = int(seed)  # also for NumPy's integers
        signed = seed - 2**64 if seed >= 2**63 else seed  # the same 64 bits
        state = torch.ops.actreg.rng_state(x, None, signed, *at)
    return state


def flag(argument: str, value: object) -> bool:
    """Return the value; raise TypeError unless it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, but got {errors.shown(value)}")
    return value


def choice(argument: str, value: str, accepted: tuple[str, ...]) -> str:
    """Return the value; raise unless it is one of the accepted names."""
    if not isinstance(value, str) or value not in accepted:
        raise errors.not_one_of(argument, value, accepted)
    return value
