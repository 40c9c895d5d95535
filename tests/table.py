"""The table that the tests run over: activation x dtype x device, built from the registry."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import actreg_ext
from actreg_ext import _C

NAMES = tuple(actreg_ext.activations())
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALF_TYPES = (torch.float16, torch.bfloat16)

# The GPU is in the table if there is one and this build has CUDA kernels.
DEVICES: list[Any] = ["cpu"]
if _C.build_info()["cuda"] and torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.cuda))


def _other_parameters(name: str) -> dict[str, float]:
    """Parameters that differ from the defaults and from each other, and are exact in float16."""
    defaults = actreg_ext.activations()[name]
    return {
        parameter: 0.5 * (default or 0.0) + 0.125 * i
        for i, (parameter, default) in enumerate(defaults.items(), start=1)
    }


def variants(name: str) -> list[dict[str, Any]]:
    """Keyword arguments of act_reg for one activation: its defaults, and other parameters."""
    others = _other_parameters(name)
    needs_others = None in actreg_ext.activations()[name].values()
    defaults = [] if needs_others else [{"activation": name}]
    return defaults + ([{"activation": name, **others}] if others else [])


PLAIN = [variants(name)[0] for name in NAMES]  # each activation once
VARIANTS = [variant for name in NAMES for variant in variants(name)]  # with other parameters too

# Every p with no penalty and with both penalties; p = 0.3 also with only one penalty.
PENALTIES = [{"l1": l1, "l2": l2} for l1, l2 in ((0.0, 0.0), (0.5, 0.25), (0.5, 0.0), (0.0, 0.25))]
SETTINGS = [
    {"p": p, "penalty_on": penalty_on, **penalty}
    for p in (0.0, 0.3, 1.0)
    for penalty in (PENALTIES if p == 0.3 else PENALTIES[:2])
    for penalty_on in (("activation", "output") if any(penalty.values()) else ("activation",))
]
LENGTHS = {torch.float64: 1024}  # of random inputs: fewer here, because exact.py is slow


def describe(value: Any) -> str:
    """The part of a test's name that names the row of the table."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict):
        return "-".join(v if isinstance(v, str) else f"{k}={v}" for k, v in value.items())
    return str(value)


def random_inputs(dtype: torch.dtype, device: str, wide: bool = True) -> Tensor:
    """Sorted numbers of both signs with uniform exponents, so that every magnitude is tested.

    Three of four numbers have |x| in [2^-10, 90], where activations bend. The fourth has the same
    range if not `wide`. If `wide`, it is between the smallest denormal and the largest number of
    the dtype; for float64 between 2^-40 and 2^40, because exact.py is not exact beyond.
    """
    n = LENGTHS.get(dtype, 4096)
    generator = torch.Generator("cpu").manual_seed(20)  # not on the default device
    info = torch.finfo(dtype)
    widest = (math.log2(info.smallest_normal * info.eps), math.log2(info.max))
    if dtype is torch.float64:
        widest = (-40, 40)
    exponents = torch.empty(n, dtype=torch.float64, device="cpu")
    exponents.uniform_(-10, 6.5, generator=generator)
    if wide:
        exponents[::4].uniform_(*widest, generator=generator)
    signs = torch.randint(0, 2, (n,), generator=generator, device="cpu") * 2 - 1
    return (exponents.exp2() * signs).to(dtype).sort().values.to(device)


def random_gradients(x: Tensor) -> Tensor:
    """Random numbers as dy, in the shape of x."""
    generator = torch.Generator("cpu").manual_seed(21)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x)


def gradient(output: Any, x: Tensor, dy: Tensor, dpenalty: float = 1.0) -> Tensor:
    """The gradient of sum(dy * output) + dpenalty * penalty."""
    dpenalties = torch.full_like(output.penalty, dpenalty)
    return torch.autograd.grad(list(output), x, [dy, dpenalties])[0]
