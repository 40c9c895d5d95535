"""The operator in high precision: the exact results that float64 is compared with.

PyTorch's float64 results are not exact enough: where a formula cancels, they may be worse than
ours. So this file writes each activation again, as textbooks do, with mpmath (PyTorch installs it
as a dependency of SymPy), and finds the slope numerically. Gradient and penalty are computed from
value and slope in numpy's longdouble, which has 11 bits more than float64 on x86-64, and more than
that on Linux/Arm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import mpmath
import numpy
from mpmath import mpf

Array = Any  # a numpy array of longdouble

FORMULAS: dict[str, Callable[..., Any]] = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "leaky_relu": lambda x, negative_slope: x if x > 0 else negative_slope * x,
    "elu": lambda x, alpha: x if x > 0 else alpha * mpmath.expm1(x),
    "celu": lambda x, alpha: x if x > 0 else alpha * mpmath.expm1(x / alpha),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * mpmath.expm1(x)),
    "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x * _sigmoid(mpmath.sqrt(8 / mpmath.pi) * (x + 0.044715 * x**3)),
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x, beta: x * _sigmoid(beta * x),
    "mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "sigmoid": lambda x: _sigmoid(x),
    "logsigmoid": lambda x: -mpmath.log1p(mpmath.exp(-x)),
    "tanh": lambda x: mpmath.tanh(x),
    "tanhshrink": lambda x: x - mpmath.tanh(x),
    "softplus": lambda x, beta, threshold: (
        x if x * beta > threshold else mpmath.log1p(mpmath.exp(x * beta)) / beta
    ),
    "softsign": lambda x: x / (1 + abs(x)),
    "hardtanh": lambda x, min_val, max_val: min(max(x, min_val), max_val),
    "hardsigmoid": lambda x: min(max(x + 3, 0), 6) / mpf(6),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "hardshrink": lambda x, lambd: x if abs(x) > lambd else mpf(0),
    "softshrink": lambda x, lambd: mpmath.sign(x) * max(abs(x) - lambd, 0),
    "threshold": lambda x, threshold, value: x if x > threshold else mpf(value),
    "relu_squared": lambda x: max(x, 0) ** 2,
}


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


class Jets(NamedTuple):
    """Values and slopes of an activation, as longdouble."""

    value: Array
    slope: Array


@cache
def jets(name: str, parameters: tuple[float, ...], xs: tuple[float, ...]) -> Jets:
    """Values and slopes at `xs`. No x may be a kink, because the slope is found numerically."""

    def function(x: Any) -> Any:
        return FORMULAS[name](x, *parameters)

    with mpmath.workdps(60):  # 60 digits, because tanhshrink loses 24 at 2^-40
        values = [function(mpf(x)) for x in xs]
        slopes = [mpmath.diff(function, mpf(x), relative=True) for x in xs]
        return Jets(_array(values), _array(slopes))


def derivatives(name: str, parameters: tuple[float, ...], x: float) -> tuple[Any, Any, Any]:
    """The value, the slope and the second derivative at x, which must not be a kink."""

    def function(x: Any) -> Any:
        return FORMULAS[name](x, *parameters)

    with mpmath.workdps(330):  # the largest float64 has 309 digits before the point
        a, da, dda = (mpmath.diff(function, mpf(x), n) for n in range(3))
        return a, da, dda


def _array(numbers: list[Any]) -> Array:
    high = [float(number) for number in numbers]
    low = [float(number - h) for number, h in zip(numbers, high, strict=True)]
    return numpy.array(high, numpy.longdouble) + numpy.array(low, numpy.longdouble)


def gradient(
    jets: Jets, dy: Array, scale: Array, *, l1: float, l2: float, p: float, penalty_on: str
) -> tuple[Array, Array]:
    """The two parts of dx for D = 1: the part from dy, and the part from dpenalty = 1.

    `scale` is 0 for a dropped element, and s for a kept one.
    """
    inner = scale if penalty_on == "output" else 1.0  # dt/da
    t = jets.value * inner
    return jets.slope * scale * dy, jets.slope * inner * (l1 * numpy.sign(t) + 2 * l2 * t)


def penalty(jets: Jets, scale: Array, *, l1: float, l2: float, p: float, penalty_on: str) -> Array:
    """The penalty for D = 1."""
    t = jets.value * scale if penalty_on == "output" else jets.value
    return (l1 * abs(t) + l2 * t * t).sum(keepdims=True)
