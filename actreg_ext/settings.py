"""The settings of an ActReg: checked when they have changed, and shown in its repr.

No maths here.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple, Protocol

import torch

from . import _C, arguments, rows
from .reference import ActRegOutput

NAMES = frozenset(
    "activation activation_parameters l1 l2 p penalty_on reduction keep shared_dims dropout".split()
)


class HasSettings(Protocol):
    """What this file reads of an ActReg."""

    training: bool
    activation: str
    activation_parameters: dict[str, float]
    l1: float
    l2: float
    p: float
    penalty_on: str
    reduction: str
    keep: str
    shared_dims: tuple[int, ...]
    dropout: str
    inject: bool
    inplace: bool


class Ready(NamedTuple):
    """What forward reads: the settings of a module, checked."""

    given: dict[str, Any]  # activation_parameters, as they were when checked
    name: str
    parameters: tuple[float, ...]
    p: float
    rest: tuple[bool, float, float, str, bool]  # on_output, l1, l2, reduction, keep_input
    train: _C.Prepared[ActRegOutput]  # the call in training mode
    evaluate: _C.Prepared[ActRegOutput]  # the call in eval mode
    has_penalty: bool
    is_general: bool  # in training mode the call is not a flat one: see rows.py
    is_nothing: bool  # the output is the input, in training mode
    is_nothing_in_eval: bool


def prepare(module: HasSettings) -> Ready:
    """Check the attributes, which may have been changed, and return what forward reads."""
    given = dict(module.activation_parameters)
    name, parameters = arguments.resolve(module.activation, given, "ActReg")
    l1 = arguments.coefficient("l1", module.l1)
    l2 = arguments.coefficient("l2", module.l2)
    on_output = arguments.choice("penalty_on", module.penalty_on, arguments.PENALTY_ON)
    reduction = arguments.choice("reduction", module.reduction, arguments.REDUCTIONS)
    keep_input = arguments.choice("keep", module.keep, arguments.KEEP) == "input"
    p = arguments.probability(module.p)
    shared_dims = rows.check_shared_dims(module.shared_dims)
    dropout = rows.check_dropout(module.dropout, on_output)
    rest = (on_output == "output", l1, l2, reduction, keep_input)
    ready = Ready(
        given=given,
        name=name,
        parameters=parameters,
        p=p,
        rest=rest,
        train=_C.prepare(ActRegOutput, name, parameters, p, *rest),
        evaluate=_C.prepare(ActRegOutput, name, parameters, 0.0, *rest),
        has_penalty=bool(l1 or l2),
        is_general=p > 0 and bool(shared_dims or dropout == "alpha"),
        is_nothing=name == "identity" and not (p or l1 or l2),
        is_nothing_in_eval=name == "identity",
    )
    module.__dict__["_ready"] = ready
    return ready


def shown(module: HasSettings) -> str:
    """Return the activation, every option that is not its default, and what backward keeps."""
    parameters = ", ".join(f"{k}={v}" for k, v in module.activation_parameters.items())
    shown = [f"{module.activation}({parameters})" if parameters else module.activation]
    shown += [
        f"{name}={getattr(module, name)}" for name in ("l1", "l2", "p") if getattr(module, name)
    ]
    if module.penalty_on != "activation":
        shown.append(f"penalty_on={module.penalty_on}")
    if module.reduction != "mean":
        shown.append(f"reduction={module.reduction}")
    if module.keep != "auto":
        shown.append(f"keep={module.keep}")
    if module.shared_dims:
        shown.append(f"shared_dims={module.shared_dims}")
    if module.dropout != "standard":
        shown.append(f"dropout={module.dropout}")
    shown += [name for name in ("inject", "inplace") if getattr(module, name)]
    # An attribute that was set to a bad value must not break the repr: forward raises for it.
    with contextlib.suppress(TypeError, ValueError):
        shown.append(f"keeps={_kept(module)}")
    return ", ".join(shown)


def _kept(module: HasSettings) -> str:
    """Return what the backward keeps for float32, and for the other dtypes that differ."""
    if module.training and module.p and (module.shared_dims or module.dropout != "standard"):
        return "input"  # see Note [The general form]
    kept, *others = (
        _C.kept(
            dtype,
            module.activation,
            tuple(module.activation_parameters.values()),
            module.p if module.training else 0.0,
            module.penalty_on == "output",
            module.l1,
            module.l2,
            module.keep == "input",
        )
        for dtype in (torch.float32, torch.float64, torch.float16)
    )
    differing = [
        f"{name}: {other}"
        for name, other in zip(("float64", "half"), others, strict=True)
        if other != kept
    ]
    return f"{kept} ({', '.join(differing)})" if differing else kept
