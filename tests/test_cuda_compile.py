"""torch.compile on a GPU: with Triton kernels, CUDA graphs and autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from actreg_ext.functional import act_reg
from tests import gpu, table
from tests.gpu import PENALTIES

gpu.require()
pytestmark = pytest.mark.cuda

MODES = ["default", "reduce-overhead", pytest.param("max-autotune", marks=pytest.mark.slow)]


@pytest.mark.usefixtures("nothing_compiled_yet")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("small", [torch.float32, torch.bfloat16], ids=table.describe)
def test_compiled(mode: str, small: torch.dtype) -> None:
    """Run several times: modes with CUDA graphs warm up, then capture, then replay."""

    def step(x: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        first = act_reg(x, "gelu", **PENALTIES, p=0.3, seed=seed)
        return *first, *act_reg(x, "tanh", **PENALTIES)

    def results(function: Callable[..., Any]) -> list[Tensor]:
        outputs = function(x, seed)
        gradients = [torch.ones_like(t) for t in outputs]
        dx = torch.autograd.grad(outputs, x, gradients)
        return [t.detach().clone() for t in (*outputs, *dx)]

    x = torch.randn(4, 2500, device="cuda").to(small).requires_grad_()
    seed = torch.tensor([3, 4], device="cuda")
    expected = results(step)
    compiled = torch.compile(step, mode=mode, fullgraph=True)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        found = results(compiled)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
        assert_close(found, expected)


@pytest.mark.usefixtures("nothing_compiled_yet")
@pytest.mark.parametrize("mode", MODES)
def test_masks_of_compiled_steps(mode: str) -> None:
    """All masks of two layers in several steps differ; each backward has its forward's mask."""

    @torch.compile(mode=mode, fullgraph=True)
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (act_reg(x, "identity", p=0.5).output for _ in range(2))
        return first, second

    x = torch.ones(1000, device="cuda", requires_grad=True)
    masks = []
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        outputs = step(x)
        masks += [y != 0 for y in outputs]
        (dx,) = torch.autograd.grad(outputs, x, [torch.ones_like(x), torch.full_like(x, 3)])
        assert torch.equal(dx, 2.0 * masks[-2] + 6.0 * masks[-1])
    assert len(torch.stack(masks).unique(dim=0)) == 8


@pytest.mark.usefixtures("nothing_compiled_yet")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("half", table.HALF_TYPES, ids=table.describe)
def test_autocast(half: torch.dtype, compiles: bool) -> None:
    """The output has the dtype of the layer before; penalty and weight gradients are float32."""
    linear = torch.nn.Linear(64, 96, device="cuda")
    x, seed = torch.randn(32, 64, device="cuda"), torch.tensor([3, 4], device="cuda")

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(act_reg(linear(x), "silu", **PENALTIES, p=0.3, seed=seed))

    with torch.autocast("cuda", half):
        output, penalty = (torch.compile(step, fullgraph=True) if compiles else step)(x)
        h = linear(x).detach()
    expected = act_reg(h, "silu", **PENALTIES, p=0.3, seed=seed)
    assert output.dtype == half and penalty.dtype == torch.float32
    assert torch.equal(output != 0, expected.output != 0)
    assert_close((output, penalty), tuple(expected))
    (gradient,) = torch.autograd.grad(output.float().sum() + penalty, linear.weight)
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()


def test_graphs_of_a_compiled_step_come_first() -> None:
    gpu.passes_alone(f"{__file__}::test_masks_of_compiled_steps[reduce-overhead]")
