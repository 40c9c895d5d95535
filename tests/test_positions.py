"""The backward gets the order of positions as an argument, so copies cannot change the mask.

Autograd, functorch, Inductor and hooks give the backward copies whose strides differ from those of
the tensor that the forward saw.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

from actreg_ext import ops, reference
from actreg_ext.functional import act_reg

FORMATS = [torch.contiguous_format, torch.channels_last]
pytestmark = pytest.mark.usefixtures("nothing_compiled_yet")


def convolutions(memory_format: torch.memory_format) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    first, second = (
        nn.Conv2d(a, b, 3).to(memory_format=memory_format) for a, b in ((3, 8), (8, 4))
    )
    return first, second


def loss(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    return second(act_reg(first(x), "gelu", p=0.4, seed=3).output).square().mean()


def test_inductor_distinguishes_memory_formats() -> None:
    """The second memory format must not get the cached graph of the first."""
    x = torch.randn(1, 3, 7, 7)
    for memory_format in FORMATS:
        torch._dynamo.reset()
        layers = convolutions(memory_format)
        parameter = layers[0].weight
        (expected,) = torch.autograd.grad(loss(x, *layers), parameter)
        (compiled,) = torch.autograd.grad(torch.compile(loss)(x, *layers), parameter)
        assert_close(compiled, expected)


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_compiled_graphs_name_the_order() -> None:
    """The order is in the graphs of forward and backward, so a cache of graphs sees it."""
    x = torch.randn(1, 3, 7, 7)
    orders = []
    for memory_format in FORMATS:
        backend = AotEagerAndRecordGraphs()
        torch._dynamo.reset()
        torch.compile(loss, backend=backend)(x, *convolutions(memory_format)).backward()
        for graph in (backend.fw_graphs[0], backend.bw_graphs[0]):
            (node,) = (n for n in graph.graph.nodes if n.target in (ops.forward, ops.backward))
            orders.append(list(node.args[-1]))
    assert orders == [[], [], [0, 2, 3, 1], [0, 2, 3, 1]]


SAMPLES = {
    "transposed": lambda: torch.randn(3, 4, 5).transpose(1, 2),
    "channels_last": lambda: torch.randn(3, 2, 7, 6, 6).to(memory_format=torch.channels_last_3d),
    "inner batch": lambda: torch.randn(5, 4, 3).permute(2, 1, 0),
    "negated": lambda: torch._neg_view(torch.randn(3, 4, 5).transpose(1, 2)),
}
KEPT: list[dict[str, Any]] = [  # cases that keep the output, the input and bits
    {"activation": "relu", "l2": 0.3, "penalty_on": "output"},
    {"activation": "identity", "l2": 0.3, "penalty_on": "output"},
    {"activation": "leaky_relu", "l1": 0.3, "penalty_on": "output"},
    {"activation": "gelu", "l2": 0.3},
    {"activation": "relu", "l1": 0.3},
]


@pytest.mark.parametrize("options", KEPT, ids=lambda o: o["activation"] + "-".join(o))
@pytest.mark.parametrize("layout", SAMPLES)
def test_gradient_of_each_sample(layout: str, options: dict[str, Any]) -> None:
    x = SAMPLES[layout]().double()

    def f(sample: Tensor) -> Tensor:
        output, penalty = act_reg(sample, p=0.4, seed=3, **options)
        return output.square().sum() + penalty

    assert_close(vmap(grad(f))(x), torch.stack([grad(f)(sample) for sample in x]))


@pytest.mark.parametrize("options", [*KEPT, {"activation": "relu"}], ids=lambda o: str(len(o)))
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_a_lazily_negated_tensor(p: float, options: dict[str, Any]) -> None:
    z = torch.randn(5, 7, dtype=torch.complex128, requires_grad=True)
    dy = torch.randn(7, 5, dtype=torch.float64)
    gradients = []
    for f in (act_reg, reference.act_reg):
        x = z.conj().imag.t()
        assert x.is_neg() and not x.is_contiguous()
        output, penalty = f(x, p=p, seed=3, **options)
        gradients += torch.autograd.grad((output * dy).sum() + penalty, z)
    assert_close(*gradients)


def test_forward_mode_over_vmap_of_a_lazily_negated_tensor() -> None:
    x = torch._neg_view(torch.randn(4, 3))
    results = [
        jvp(vmap(lambda x, f=f: f(x, "gelu").output), (x,), (torch.ones(4, 3),))
        for f in (act_reg, reference.act_reg)
    ]
    assert_close(*results)


def test_memory_order() -> None:
    orders = {
        (): torch.randn(3, 4, 5),
        (0, 2, 1): torch.randn(3, 5, 4).transpose(1, 2),
        (2, 0, 1): torch.randn(5, 3, 4).permute(1, 2, 0),
        (0, 2, 3, 1): torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    for order, x in orders.items():
        assert reference.memory_order(x) == order
        assert reference.memory_order(x[..., ::2]) == ()  # not dense, so counted in row-major order
    # The stride of a dimension of size 1 decides where it is in the order, as in channels_last.
    x = torch.randn(2, 3, 1, 5).to(memory_format=torch.channels_last)
    assert reference.memory_order(x) == (0, 2, 3, 1)
    assert act_reg(x).output.stride() == x.stride()
