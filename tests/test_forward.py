"""The output of every activation, in every dtype and setting, by Note [The rule]."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from actreg_ext.functional import act_reg
from tests import table, tolerance


@pytest.mark.pairs
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_output(variant: dict[str, Any], dtype: torch.dtype, device: str, p: float) -> None:
    x = table.random_inputs(dtype, device)
    output, _ = act_reg(x, **variant, p=p, seed=0)
    assert output.dtype == dtype
    tolerance.assert_dropped(output, variant, x, p)


def test_penalties_leave_the_output_alone(
    activation: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    x = table.random_inputs(dtype, device)
    plain = {p: act_reg(x, **activation, p=p, seed=0).output for p in (0.0, 0.3, 1.0)}
    for setting in table.SETTINGS:
        output = act_reg(x, **activation, **setting, seed=0).output
        assert torch.equal(output, plain[setting["p"]]), setting


def test_module_stands_for_its_name() -> None:
    """A torch.nn module as activation gives the same result as its name and parameters."""
    x = table.random_inputs(torch.float32, "cpu")
    for module, named in {
        torch.nn.LeakyReLU(0.2): {"activation": "leaky_relu", "negative_slope": 0.2},
        torch.nn.GELU(): {"activation": "gelu"},
        torch.nn.GELU(approximate="tanh"): {"activation": "gelu_tanh"},
        torch.nn.Softplus(2.0, 3.0): {"activation": "softplus", "beta": 2.0, "threshold": 3.0},
        torch.nn.Threshold(0.5, -1.0): {"activation": "threshold", "threshold": 0.5, "value": -1},
        torch.nn.ReLU6(inplace=True): {"activation": "relu6"},
    }.items():
        before = x.clone()
        assert torch.equal(act_reg(x, module).output, act_reg(x, **named).output), module
        assert torch.equal(x, before)
