"""Print docs/activations.md: python tools/activation_table.py > docs/activations.md."""

from __future__ import annotations

import actreg_ext
from actreg_ext.reference import ACTIVATIONS

HEAD = """\
# Activations

Names, parameters and defaults, as `actreg_ext.activations()` returns them. Values and gradients are
those of the PyTorch function, also at NaN, at the infinities and at the kinks. Where PyTorch's own
kernels differ from each other there, or overflow on the way (gelu at infinity), they are those of
the formula.

| name | parameters | instead of the name |
|---|---|---|"""


def row(name: str, parameters: dict[str, float | None]) -> str:
    """One line of the table."""
    shown = ", ".join(f"`{k}`" if v is None else f"`{k}={v}`" for k, v in parameters.items())
    module = ACTIVATIONS[name][1]
    instance = f"`nn.{module.__name__}(...)`" if module else ""
    if name == "gelu_tanh":
        instance = '`nn.GELU(approximate="tanh")`'
    return f"| `{name}` | {shown} | {instance} |"


if __name__ == "__main__":
    print(HEAD)
    for activation, defaults in actreg_ext.activations().items():
        print(row(activation, defaults))
