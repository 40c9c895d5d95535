"""The gradient of every activation, in every dtype and setting, by Note [The rule]."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from actreg_ext import reference
from actreg_ext.functional import act_reg
from tests import table, tolerance

EVERYTHING = [s for s in table.SETTINGS if s["p"] == 0.3 and s["l1"] and s["l2"]]
OTHER_PARAMETERS = [variant for variant in table.VARIANTS if variant not in table.PLAIN]


def check_gradient(
    variant: dict[str, Any], dtype: torch.dtype, device: str, setting: dict[str, Any]
) -> None:
    # The widest inputs would make the penalty's gradient overflow.
    x = table.random_inputs(dtype, device, wide=not (setting["l1"] or setting["l2"]))
    x.requires_grad_()
    dy = table.random_gradients(x)
    options = {**variant, **setting, "reduction": "sum", "seed": 0}
    ours, eager = (table.gradient(f(x, **options), x, dy) for f in (act_reg, reference.act_reg))
    assert ours.dtype == dtype
    true = tolerance.true_gradient(variant, x.detach().cpu(), dy.cpu(), setting)
    tolerance.assert_gradient(ours, eager, true, x)


@pytest.mark.pairs
@pytest.mark.parametrize("setting", table.SETTINGS, ids=table.describe)
def test_gradient(
    activation: dict[str, Any], dtype: torch.dtype, device: str, setting: dict[str, Any]
) -> None:
    check_gradient(activation, dtype, device, setting)


@pytest.mark.parametrize("setting", EVERYTHING, ids=table.describe)
@pytest.mark.parametrize("variant", OTHER_PARAMETERS, ids=table.describe)
def test_gradient_with_parameters(
    variant: dict[str, Any], dtype: torch.dtype, device: str, setting: dict[str, Any]
) -> None:
    check_gradient(variant, dtype, device, setting)


@pytest.mark.parametrize("dpenalty", [0.0, -2.0])
def test_dpenalty(activation: dict[str, Any], device: str, dpenalty: float) -> None:
    """The penalty's gradient is linear in dpenalty, so the truth for dpenalty = 1 is scaled."""
    x = table.random_inputs(torch.float32, device, wide=False)
    x = x[x.abs() < 8].requires_grad_()  # beyond, results may be denormal: larger errors
    dy = torch.zeros_like(x)
    once, scaled = (
        table.gradient(act_reg(x, **activation, l1=0.5, l2=0.25), x, dy, d) for d in (1.0, dpenalty)
    )
    assert torch.equal(scaled, dpenalty * once)
