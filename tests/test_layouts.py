"""Layouts: a dense tensor is read in memory order and keeps it; any other is copied first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from actreg_ext import reference
from actreg_ext.functional import act_reg
from tests import table

Make = Callable[[Tensor], Tensor]

DENSE: dict[str, Make] = {
    "contiguous": lambda x: x,
    "empty": lambda x: x[:0],
    "0-d": lambda x: x[0, 0, 0, 0],
    "one element": lambda x: x[:1, :1, :1, :1].contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels_last_3d": lambda x: x[:, :, None].contiguous(memory_format=torch.channels_last_3d),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "permuted": lambda x: x.permute(3, 0, 2, 1),
    "reshaped": lambda x: x.reshape(-1, x.shape[-1]).t(),
    "unaligned": lambda x: x.flatten()[1:],
    "offset of 3": lambda x: x.flatten()[3:-2],
    "last rows": lambda x: x[1:],
    "unsqueezed": lambda x: x[:, None].transpose(0, 1),
}
STRIDED: dict[str, Make] = {
    "every other": lambda x: x[..., ::2],
    "columns": lambda x: x[..., 1:4],
    "expanded": lambda x: x[:1].expand(5, *x.shape[1:]),
    "expanded 0-d": lambda x: x[0, 0, 0, 0].expand(6, 7),
    "overlapping": lambda x: x.flatten().as_strided((50, 4), (1, 1)),
    "diagonal": lambda x: x[0, 0].diagonal(),
    "slice of channels_last": lambda x: DENSE["channels_last"](x)[:, :, 1:],
}
LAYOUTS = DENSE | STRIDED


def make(layout: str, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, 11, 7, generator=generator).to(device, dtype)
    return LAYOUTS[layout](x)


def strides(x: Tensor) -> list[int]:
    """The strides of the dimensions larger than 1: other strides have no effect."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_results(dtype: torch.dtype, device: str, layout: str, p: float) -> None:
    """The results equal those for the same numbers in a 1-d tensor in memory order."""
    x = make(layout, dtype, device).requires_grad_()
    result = act_reg(x, "silu", p=p, l1=0.5, l2=0.25, seed=4)
    order = result.output.dim_order()
    flat = x.detach().permute(order).flatten().requires_grad_()
    expected = act_reg(flat, "silu", p=p, l1=0.5, l2=0.25, seed=4)
    assert result.output.shape == x.shape
    assert torch.equal(result.output.permute(order).flatten(), expected.output)
    assert torch.equal(result.penalty, expected.penalty)
    dx = table.gradient(result, x, torch.ones_like(x))
    assert torch.equal(
        dx.permute(order).flatten(), table.gradient(expected, flat, torch.ones_like(flat))
    )


@pytest.mark.parametrize("layout", DENSE)
def test_dense_layouts_are_kept(dtype: torch.dtype, device: str, layout: str) -> None:
    x = make(layout, dtype, device).requires_grad_()
    output = act_reg(x, p=0.5, l1=1.0).output
    (dx,) = torch.autograd.grad(output.sum(), x)
    assert strides(output) == strides(dx) == strides(torch.relu(x))


@pytest.mark.parametrize("layout", STRIDED)
def test_others_become_contiguous(dtype: torch.dtype, device: str, layout: str) -> None:
    assert act_reg(make(layout, dtype, device), p=0.5).output.is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mask_is_the_references(device: str, layout: str) -> None:
    x = make(layout, torch.float32, device)
    ours, theirs = (f(x, "identity", p=0.5, seed=3).output for f in (act_reg, reference.act_reg))
    assert torch.equal(ours, theirs) and strides(ours) == strides(theirs)


@pytest.mark.parametrize("gradient", ["expanded", "transposed", "channels_last", "every other"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "every other"])
def test_gradient_of_another_layout(device: str, layout: str, gradient: str) -> None:
    x = make(layout, torch.float32, device).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    dy = torch.randn(x.shape, generator=generator).to(device)
    ways: dict[str, Make] = {
        "expanded": lambda dy: dy[:1, :1, :1, :1].expand(x.shape),
        "transposed": DENSE["transposed"],
        "channels_last": DENSE["channels_last"],
        "every other": lambda dy: dy.repeat_interleave(2, -1)[..., ::2],
    }
    laid_out = ways[gradient](dy)
    assert laid_out.shape == x.shape
    output = act_reg(x, "tanh", p=0.5, seed=1).output
    ours, expected = (
        torch.autograd.grad(output, x, g, retain_graph=True)[0]
        for g in (laid_out, torch.empty_like(output).copy_(laid_out))
    )
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("n", [1, 7, 1023, 1024, 1025, 16385])
def test_nothing_outside_is_read_or_written(dtype: torch.dtype, device: str, n: int) -> None:
    """x is a view in the middle of a buffer: its neighbours are not read and not written."""
    buffer = torch.full((n + 2,), float("nan"), dtype=dtype, device=device)
    x = buffer[1:-1].fill_(1.0).detach().requires_grad_()
    output, penalty = act_reg(x, "identity", p=0.0, l1=1.0, reduction="sum")
    assert torch.equal(output, torch.ones_like(output)) and penalty == n
    (output.sum() + penalty).backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
    assert buffer[0].isnan() and buffer[-1].isnan()


def test_the_input_is_left_alone(dtype: torch.dtype, device: str) -> None:
    x = table.random_inputs(dtype, device)
    before = x.clone()
    output = act_reg(x, "identity", l1=1.0).output
    assert torch.equal(x, before) and output.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivative_of_a_tensor_that_is_not_dense(dtype: torch.dtype) -> None:
    """The second derivative has the forward's mask, although x is copied in between."""
    leaf = torch.randn(8, 6, dtype=dtype, requires_grad=True)
    seconds = []
    for function in (act_reg, reference.act_reg):
        y = function(leaf.t()[:, ::2], "tanh", p=0.5, seed=3).output
        (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
        seconds += torch.autograd.grad(first.sum(), leaf)
    torch.testing.assert_close(*seconds)


@pytest.mark.parametrize("order", [1, 2])
def test_saved_tensors_may_come_back_with_other_strides(order: int) -> None:
    """Hooks for saved tensors may return other strides: only the values must be the same."""
    start = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    gradients = []
    for pack in (Tensor.contiguous, lambda x: x):
        x = start.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            y = act_reg(x, "tanh", p=0.5, seed=1).output
            (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            if order == 2:
                (gradient,) = torch.autograd.grad(gradient.sum(), x)
        gradients.append(gradient.detach())
    assert torch.equal(*gradients)
