"""Jagged nested tensors: act_reg, act_sums and ActReg give what they give for the values."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from actreg_ext import collect_penalty
from actreg_ext.functional import Shard, act_reg, act_sums
from actreg_ext.nn import ActReg

LENGTHS = (3, 1, 5)


def jagged(last: int = 4, requires_grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, last, generator=generator) for n in LENGTHS]
    x = torch.nested.nested_tensor(rows, layout=torch.jagged)
    return x.requires_grad_(requires_grad)


@pytest.mark.parametrize(
    "options",
    [{}, {"p": 0.4}, {"channel_dim": 2}, {"channel_dim": -1, "shared_dims": (2,), "p": 0.4}],
    ids=str,
)
def test_the_values_are_what_counts(options: dict[str, Any]) -> None:
    x = jagged(requires_grad=True)
    dense = x.values().detach().requires_grad_()
    inner = {k: 1 if k == "channel_dim" else v for k, v in options.items()}
    if "shared_dims" in inner:
        inner["shared_dims"] = (1,)
    for reduction in ("mean", "sum", "token"):
        ours = act_reg(x, "gelu", l1=0.5, l2=0.1, reduction=reduction, seed=2, **options)
        theirs = act_reg(dense, "gelu", l1=0.5, l2=0.1, reduction=reduction, seed=2, **inner)
        assert torch.equal(ours.output.values(), theirs.output)
        assert torch.equal(ours.penalty, theirs.penalty)
        (dx,) = torch.autograd.grad(ours.output.values().sum() + ours.penalty, x)
        (expected,) = torch.autograd.grad(theirs.output.sum() + theirs.penalty, dense)
        assert torch.equal(dx.values(), expected)
    sums = act_sums(x, "gelu", seed=2, **options)
    dense_sums = act_sums(dense, "gelu", seed=2, **inner)
    assert all(map(torch.equal, sums[1:], dense_sums[1:]))


def test_the_shape_stays() -> None:
    """The output adds to what torch's own functions return."""
    x = jagged()
    output = act_reg(x, "relu", p=0.0).output
    assert torch.equal((output - F.relu(x)).values(), torch.zeros(sum(LENGTHS), 4))
    assert output.shape[0] == 3 and output.layout is torch.jagged


def test_the_batch_is_the_number_of_examples() -> None:
    x = jagged()
    penalty = act_reg(x, "relu", l1=1.0, reduction="batch").penalty
    assert torch.allclose(penalty, x.values().relu().sum() / len(LENGTHS))


def test_row_weight() -> None:
    x = jagged()
    weight = torch.nested.nested_tensor_from_jagged(
        torch.rand(sum(LENGTHS), 1), offsets=x.offsets()
    )
    ours = act_reg(x, "relu", l1=1.0, row_weight=weight).penalty
    theirs = act_reg(x.values(), "relu", l1=1.0, row_weight=weight.values()).penalty
    assert torch.equal(ours, theirs)
    other = torch.nested.nested_tensor([torch.rand(n, 1) for n in (1, 3, 5)], layout=torch.jagged)
    with pytest.raises(ValueError, match="must have the offsets of the input"):
        act_reg(x, "relu", l1=1.0, row_weight=other)


def test_module() -> None:
    layer = ActReg("relu", l1=1.0, p=0.5)
    x = jagged(requires_grad=True)
    y = layer(x)
    assert torch.allclose(collect_penalty(layer), x.values().relu().mean())
    assert y.layout is torch.jagged and (y.values() == 0).any()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shared_dims": (1,), "p": 0.5}, "shared_dims of a jagged input must be a dimension"),
        ({"shared_dims": (0,), "p": 0.5}, "shared_dims of a jagged input must be a dimension"),
        ({"channel_dim": 1}, "other than the ragged one, but got 1"),
        ({"channel_dim": 5}, "but got 5"),
        ({"shard": Shard((9, 4), (0, 0))}, "shard accepts only dense tensors"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        act_reg(jagged(), "relu", **options)


def test_holes() -> None:
    padded = torch.nested.narrow(
        torch.randn(3, 6, 4),
        1,
        torch.zeros(3, dtype=torch.int64),
        torch.tensor(LENGTHS),
        layout=torch.jagged,
    )
    with pytest.raises(ValueError, match=re.escape("call .contiguous() first")):
        act_reg(padded, "relu")
    assert act_reg(padded.contiguous(), "relu").output.layout is torch.jagged
