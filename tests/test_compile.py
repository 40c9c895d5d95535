"""torch.compile, torch.export, make_fx and fake tensors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from actreg_ext import collect_penalty, functional, reference
from actreg_ext.functional import act_reg
from actreg_ext.nn import ActReg
from tests import table

BACKENDS = ["aot_eager", "inductor"]
pytestmark = pytest.mark.usefixtures("nothing_compiled_yet")


def network(device: str, p: float = 0.0, **options: Any) -> nn.Sequential:
    """A small model, the same at each call, with two ActReg."""
    torch.manual_seed(0)
    options = {"l1": 0.1, "l2": 0.2, "p": p, **options}
    layers = nn.Linear(6, 8), ActReg("gelu", **options), nn.Linear(8, 8), ActReg("tanh", **options)
    return nn.Sequential(*layers).to(device)


@contextmanager
def draws_of_traced_calls(device: str) -> Iterator[None]:
    """Make eager calls on a GPU draw the same seeds as compiled calls, as they do on the CPU.

    Without this, eager kernels on a GPU use the generator's own seed and offset, while compiled
    calls use torch.randint.
    """
    with pytest.MonkeyPatch.context() as patch:
        if device != "cpu":
            patch.setattr(functional, "is_dynamo_compiling", lambda: True)
        yield


def gradients(model: nn.Module, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tuple(model.parameters()))


def test_every_activation_is_traced_whole(device: str) -> None:
    x = torch.randn(50, device=device)

    def f(x: Tensor) -> list[Any]:
        by_name = [act_reg(x, l1=0.1, **variant) for variant in table.VARIANTS]
        return [*by_name, act_reg(x, nn.LeakyReLU(0.3)), act_reg(x, nn.GELU("tanh"))]

    compiled = torch.compile(f, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(x), f(x), strict=True):
        assert_close(tuple(got), tuple(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_explicit_seed_is_the_same_everywhere(device: str, backend: str) -> None:
    """Compiled and eager results are equal in every bit, in training and in eval mode."""
    x, dy = torch.randn(2, 3, 100, device=device)

    def run(f: Callable[..., Any], compiled: Callable[..., Any]) -> Any:
        def step(x: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
            options = {"l1": 0.5, "l2": 0.25, "p": 0.3, "reduction": "sum"}
            trained = f(x, "relu", penalty_on="output", seed=seed, **options)
            other = f(x, "leaky_relu", seed=2**63 + 1, negative_slope=0.25, **options)
            evaluated = f(x, "hardtanh", training=False, **options)
            return *trained, *other, *evaluated

        leaf = x.clone().requires_grad_()
        results = compiled(step)(leaf, torch.tensor([3, 4], device=device))
        y, penalty = sum(dy * t for t in results[::2]), sum(results[1::2])
        return results, *torch.autograd.grad((y.sum(), penalty), leaf)

    ours, dx = run(act_reg, lambda step: torch.compile(step, backend=backend, fullgraph=True))
    for f in (act_reg, reference.act_reg):
        expected, expected_dx = run(f, lambda step: step)
        assert all(map(torch.equal, ours[::2], expected[::2]))
        assert_close(ours[1::2], expected[1::2])
        assert_close(dx, expected_dx, rtol=4 * torch.finfo(dx.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_of_a_compiled_training_step(device: str, backend: str) -> None:
    """Two equal calls differ, every step differs, and each backward has its forward's mask."""

    @torch.compile(backend=backend, fullgraph=True)
    def step(x: Tensor) -> list[Tensor]:
        layers = [act_reg(x, "identity", p=0.5).output for _ in range(3)]
        return [*layers, *[act_reg(x, "identity", p=0.5, seed=1).output for _ in range(2)]]

    x = torch.ones(4, 64, device=device, requires_grad=True)
    first, second = step(x), step(x)
    masks = {tuple((y != 0).flatten().tolist()) for y in [*first[:3], *second[:3]]}
    assert len(masks) == 6
    assert torch.equal(first[3], first[4]) and torch.equal(first[3], second[3])
    for y in first:
        (dx,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        assert torch.equal(dx, y)


def test_one_call_has_the_mask_of_eager_mode(device: str) -> None:
    """aot_eager draws from the eager generator, so the masks are equal."""
    x = torch.ones(1000, device=device)

    def f(x: Tensor) -> Tensor:
        return act_reg(x, "identity", p=0.5).output

    torch.manual_seed(7)
    with draws_of_traced_calls(device):
        expected = f(x), torch.rand_like(x)  # the generators must agree afterwards
    torch.manual_seed(7)
    assert torch.equal(torch.compile(f, backend="aot_eager", fullgraph=True)(x), expected[0])
    assert torch.equal(torch.rand_like(x), expected[1])


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # of Linear, on a GPU
@pytest.mark.parametrize("backend", BACKENDS)
def test_train_step_with_the_penalty_inside(device: str, backend: str) -> None:
    """forward, collect_penalty and loss are compiled as one graph, and run for some steps."""
    model, x = network(device), torch.randn(5, 6, device=device)

    def loss(x: Tensor) -> Tensor:
        return model(x).square().sum() + collect_penalty(model)

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    for _ in range(3):  # a penalty that is left over would show in the next step
        assert_close(gradients(model, compiled(x)), gradients(model, loss(x)))
    assert collect_penalty(model) == 0


def test_train_step_with_the_penalty_outside(device: str) -> None:
    """Only the model is compiled; its two layers draw the same seeds as in eager mode."""
    model, expected = network(device, p=0.3), network(device, p=0.3)
    x = torch.randn(5, 6, device=device)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for step in range(3):
        losses = []
        for net, draws in ((compiled, nullcontext()), (expected, draws_of_traced_calls(device))):
            torch.manual_seed(step)
            with draws:
                losses.append(net(x).square().sum() + collect_penalty(net))
        assert_close(*losses)
        assert_close(gradients(model, losses[0]), gradients(expected, losses[1]))


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_nothing_to_collect(device: str, how: str) -> None:
    model = network(device, p=0.3).train(how != "eval")
    x = torch.randn(5, 6, device=device)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    with torch.set_grad_enabled(how != "no_grad"):
        y = compiled(x)
    torch.manual_seed(1)
    with torch.no_grad(), draws_of_traced_calls(device):
        assert_close(y, model(x))
    assert collect_penalty(model) == 0


@pytest.mark.parametrize("reduction", ["mean", "batch", "token", "sum"])
def test_batch_sizes_share_a_graph(device: str, reduction: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model = network(device, p=0.3, reduction=reduction)

    def loss(x: Tensor) -> Tensor:
        return model(x).square().sum() + collect_penalty(model)

    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for n in (7, 2, 16, 33):
        x = torch.randn(n, 6, device=device)
        torch._dynamo.mark_dynamic(x, 0)
        torch.manual_seed(n)
        ours = gradients(model, compiled(x))
        torch.manual_seed(n)
        with draws_of_traced_calls(device):
            expected = loss(x)
        assert_close(ours, gradients(model, expected))
    assert counter.frame_count == 1


@pytest.mark.parametrize("what", ["function", "module", "seed"])
def test_numbers_share_graphs(device: str, what: str) -> None:
    """13 values of l1 and l2, or of the seed, compile twice: as a constant, then as a symbol."""
    counter = CompileCounterWithBackend("aot_eager")
    layer = ActReg("tanh")

    def f(x: Tensor, value: float, seed: int) -> tuple[Tensor, Tensor]:
        if what != "module":
            return tuple(act_reg(x, "tanh", l1=value, l2=value / 3, p=0.5, seed=seed))
        return layer(x), collect_penalty(layer)

    compiled = torch.compile(f, backend=counter, fullgraph=True)
    x = torch.randn(50, device=device, requires_grad=True)
    for i in range(1, 14):
        value, seed = (0.1, 1 << (4 * i)) if what == "seed" else (i / 7, 5)
        layer.l1, layer.l2 = value, value / 3
        assert_close(compiled(x, value, seed), f(x, value, seed))
    assert counter.frame_count <= 3


@pytest.mark.parametrize("training", [False, True])
def test_vmap_inside(device: str, training: bool) -> None:
    """Gradients of each example by vmap(grad), compiled."""

    def f(x: Tensor) -> Tensor:
        output, penalty = act_reg(x, "silu", l1=0.1, p=0.5, training=training, seed=3)
        return output.square().sum() + penalty

    x = torch.randn(3, 40, device=device)
    compiled = torch.compile(vmap(grad(f)), backend="aot_eager", fullgraph=True)
    assert_close(compiled(x), vmap(grad(f))(x))


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11's load
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_export(device: str, strict: bool, training: bool) -> None:
    """Export with a dynamic batch size, save, load, and run with another batch size."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network(device, p=0.5, l1=0.1).train(training)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return tuple(act_reg(self.layers[:2](x), "elu", l2=0.5, training=self.training))

    model = Model().train(training)
    batch = {0: torch.export.Dim("batch")}
    x = torch.randn(4, 6, device=device)
    program = torch.export.export(model, (x,), dynamic_shapes=(batch,), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = torch.randn(9, 6, device=device)
    torch.manual_seed(2)
    ours = loaded(x)
    torch.manual_seed(2)
    with draws_of_traced_calls(device):
        assert_close(ours, model(x))


def test_make_fx(device: str) -> None:
    """A graph of forward and backward with symbolic sizes contains our two operators."""

    def f(x: Tensor) -> Tensor:
        return grad(lambda x: sum(t.sum() for t in act_reg(x, "gelu", l1=0.1, p=0.5, seed=3)))(x)

    graph = make_fx(f, tracing_mode="symbolic")(torch.randn(3, 4, device=device))
    targets = {str(node.target) for node in graph.graph.nodes}
    assert {"actreg.forward.default", "actreg.backward.default"} <= targets
    x = torch.randn(5, 7, device=device)
    # The traced size; test_tracing.py tests other sizes.
    assert_close(graph(x[:3, :4]), f(x[:3, :4]))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "strided": lambda x: x[..., ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_shapes_without_data(device: str, kind: str, layout: str, dtype: torch.dtype) -> None:
    """Fake tensors: shapes, strides and dtypes of all results are those of a real run."""
    x = LAYOUTS[layout](torch.randn(3, 4, 6, 8, dtype=dtype, device=device))

    def run(x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        output, penalty = act_reg(x, "silu", l1=0.1, p=0.5)
        dy = torch.ones_like(output, memory_format=torch.contiguous_format)
        return [output, penalty, *torch.autograd.grad((output, penalty), x, (dy, penalty.detach()))]

    with FakeTensorMode() if kind == "fake" else nullcontext() as mode:
        without_data = run(mode.from_tensor(x) if mode else x.to("meta"))
    for got, real in zip(without_data, run(x), strict=True):
        assert (got.shape, got.stride(), got.dtype) == (real.shape, real.stride(), real.dtype)
