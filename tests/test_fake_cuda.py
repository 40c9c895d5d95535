"""The CUDA backend without a GPU: registration, checks, fake tensors and graphs, but no numbers.

A gradient is computed by calling the node `output.grad_fn`. torch's autograd engine cannot be used,
because it needs the streams of a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.func import jvp, vmap
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from actreg_ext import _C, _build, collect_penalty, dispatch, doctor, ops, reference
from actreg_ext.functional import ActRegOutput, act_reg, dropout_mask
from actreg_ext.nn import ActReg
from tests.test_layouts import DENSE, LAYOUTS, STRIDED, strides

if not _C.build_info()["cuda"]:
    pytest.skip("this build has no CUDA kernels (make cuda-torch)", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("fake", "nothing_compiled_yet")

RANDOM = ("forward_random", "forward_random_bits")
OPERATORS = (
    *("forward", "forward_bits", "forward_"),
    *RANDOM,
    *("backward", "backward_bits", "curvature"),
)
SEEDS = [None, 3, 2**63 + 1, "cpu", "cuda"]  # "cpu", "cuda": a tensor on that device


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """Make all tensors fake: they have no data, so they may be on any device."""
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        yield mode


def tensor(layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> Tensor:
    return LAYOUTS[layout](torch.empty(3, 6, 11, 7, dtype=dtype, device="cuda"))


def symbolic(fake: FakeTensorMode) -> Tensor:
    """A fake matrix with symbolic sizes."""
    with unset_fake_temporarily():
        real = torch.empty(3, 4, device="meta")
    return torch.empty_like(fake.from_tensor(real), device="cuda")


def is_symbol(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def made(seed: Any) -> Any:
    return torch.tensor([1, 2], device=seed) if isinstance(seed, str) else seed


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def described(t: Tensor) -> tuple[Any, ...]:
    return tuple(t.shape), strides(t), t.dtype, t.device


def gradient(result: ActRegOutput) -> Tensor:
    """The gradient of output.sum() + penalty, with a contiguous dy."""
    dy = torch.ones_like(result.output, memory_format=torch.contiguous_format)
    with torch.no_grad():
        return result.output.grad_fn(dy, torch.ones_like(result.penalty))


def calls(graph: Graph) -> list[Node]:
    """The calls of our operators in a graph, without rng_state."""
    called = [node for node in graph.nodes if str(node.target).startswith("actreg.")]
    return [node for node in called if node.target is not ops.rng_state]


def compiled(f: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Graph]:
    """The results of f under torch.compile, and its forward graph."""
    backend = AotEagerAndRecordGraphs()
    results = torch.compile(f, backend=backend, fullgraph=True)(*inputs)
    (module,) = backend.fw_graphs
    return results, module.graph


# Registration


@pytest.mark.parametrize("name", OPERATORS)
def test_kernels_are_registered(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"actreg::{name}", "CUDA")
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(
        f"actreg::{name}", "AutogradCUDA"
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_tags(name: str) -> None:
    tags = set(getattr(ops, name).tags)
    assert {torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag} <= tags
    assert (torch.Tag.nondeterministic_seeded in tags) == (name in RANDOM)


def test_the_doctor_names_the_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["CUDA kernels"] == ("CUDA kernels", f"built for CUDA {_build.cuda}", "", True)
    assert _build.cuda.split(".")[0] == torch.version.cuda.split(".")[0]
    assert "nvidia-smi" in found["GPU"].advice and found["GPU"].usable


# Shapes without data


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_output_and_gradient_are_laid_out_as_the_input(
    dtype: torch.dtype, layout: str, p: float
) -> None:
    x = tensor(layout, dtype).requires_grad_()
    result = act_reg(x, "silu", l1=0.1, p=p)
    expected = described(x if layout in DENSE else x.contiguous())
    assert described(result.output) == described(gradient(result)) == expected
    assert described(result.penalty) == ((), [], accumulation(dtype), x.device)
    assert x.device.type == "cuda"


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_seeds(dtype: torch.dtype, seed: Any, p: float) -> None:
    """The backward gets {seed, offset} on the GPU, wherever the seed was."""
    x = tensor(dtype=dtype).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = act_reg(x, "elu", l2=0.1, p=p, seed=made(seed))
    state = [described(t) for t in saved[1:]]
    assert state == ([((2,), [1], torch.int64, x.device)] if p else [])
    assert described(result.output) == described(gradient(result)) == described(x)


@pytest.mark.parametrize("coefficients", [None, [0.5, 0.25]], ids=["sums", "weighted"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "every other"])
def test_operators(dtype: torch.dtype, layout: str, coefficients: list[float] | None) -> None:
    x = tensor(layout, dtype)
    order = reference.memory_order(x)
    attributes = ("gelu", [], 0.5, False, coefficients, "mean", order)
    output, penalty, state = ops.forward_random(x, *attributes)
    expected = described(x if layout in DENSE else x.contiguous())
    assert described(output) == expected
    sums = ((), []) if coefficients else ((2,), [1])
    assert described(penalty) == (*sums, accumulation(dtype), x.device)
    assert described(state) == ((2,), [1], torch.int64, x.device)
    again = ops.forward(x, state, *attributes)
    assert [described(t) for t in again] == [described(output), described(penalty)]
    for op in (ops.backward, ops.curvature):
        for gradients in ((output, None), (None, penalty), (output, penalty)):
            assert described(op(*gradients, x, state, *attributes)) == expected


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every other"])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_second_derivative(dtype: torch.dtype, layout: str, p: float) -> None:
    x = tensor(layout, dtype).requires_grad_()
    output, penalty = act_reg(x, "silu", l2=0.1, p=p, seed=1)
    dy, dpenalty = (torch.ones_like(t, requires_grad=True) for t in (output, penalty))
    dx = output.grad_fn(dy, dpenalty)
    seconds = dx.grad_fn(torch.ones_like(dx))
    assert [described(t) for t in seconds] == [described(t) for t in (dy, dpenalty, output)]


def test_forward_mode(dtype: torch.dtype) -> None:
    x = tensor("channels_last", dtype)
    results, tangents = jvp(lambda x: tuple(act_reg(x, l1=0.1, p=0.5, seed=1)), (x,), (x.clone(),))
    assert [described(t) for t in tangents] == [described(t) for t in results]


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap(randomness: str) -> None:
    x = tensor()
    output, penalty = vmap(lambda x: act_reg(x, l1=0.1, p=0.5), randomness=randomness)(x)
    assert described(output) == described(x)
    assert described(penalty) == ((3,), [1], torch.float32, x.device)


def test_a_model() -> None:
    layers = nn.Linear(4, 8, device="cuda"), ActReg("gelu", l1=0.1, p=0.5)
    model = nn.Sequential(*layers, nn.Linear(8, 2, device="cuda", dtype=torch.float32))
    output, penalty = model(torch.empty(5, 4, device="cuda")), collect_penalty(model)
    assert described(penalty) == ((), [], torch.float32, output.device)
    assert penalty.requires_grad and output.device.type == "cuda"


def test_dropout_mask() -> None:
    mask = dropout_mask((2, 3), 0.5, 1, device="cuda")
    assert described(mask) == ((2, 3), [3, 1], torch.bool, tensor().device)


# What the kernels refuse

Change = Callable[[dict[str, Any]], dict[str, Any]]
DEVICES: dict[str, tuple[str, Change, str]] = {
    "rng_state on the CPU": (
        "forward forward_bits forward_ backward backward_bits curvature",
        lambda a: {"rng_state": a["rng_state"].cpu()},
        "rng_state is on cpu and input on cuda:0",
    ),
    "dy on the CPU": (
        "backward curvature",
        lambda a: {"dy": a["dy"].cpu()},
        "a gradient is on cpu and input on cuda:0",
    ),
    "dpenalty on the CPU": (
        "backward backward_bits curvature",
        lambda a: {"dpenalty": a["dpenalty"].cpu()},
        "a gradient is on cpu and input on cuda:0",
    ),
}
if torch.cuda.device_count() != 1:  # with one GPU torch knows that there is no other
    DEVICES["rng_state on another GPU"] = (
        "forward forward_bits forward_ backward backward_bits curvature",
        lambda a: {"rng_state": a["rng_state"].to("cuda:1")},
        "rng_state is on cuda:1 and input on cuda:0",
    )
OTHERS: dict[str, tuple[str, Change, str]] = {
    "no rng_state": (
        "forward forward_bits forward_ backward backward_bits curvature",
        lambda a: {"rng_state": None},
        "dropout needs rng_state",
    ),
    "rng_state of int32": (
        "forward forward_bits forward_ backward backward_bits curvature",
        lambda a: {"rng_state": a["rng_state"].int()},
        r"rng_state is an int64 .* got Int",
    ),
    "rng_state of one number": (
        "forward forward_bits forward_ backward backward_bits curvature",
        lambda a: {"rng_state": a["rng_state"][:1]},
        r"rng_state is an int64 .* of shape \[1\]",
    ),
    "x of int32": (
        "forward forward_bits forward_ forward_random forward_random_bits",
        lambda a: {"x": a["x"].int()},
        "input has dtype Int",
    ),
    "no such activation": (
        "forward forward_random backward",
        lambda a: {"activation": "rule"},
        "no activation 'rule' with 0 parameters",
    ),
    "a parameter too many": (
        "forward forward_random backward",
        lambda a: {"parameters": [1.0]},
        "no activation 'gelu' with 1 parameters",
    ),
    "p": ("forward forward_random backward", lambda a: {"p": 1.5}, "between 0 and 1, but got 1.5"),
}
SHAPES: dict[str, tuple[str, Change, str]] = {
    "shape of dy": (
        "backward curvature",
        lambda a: {"dy": a["dy"][:1]},
        r"dy has shape \[1, 4\], but input has shape \[3, 4\]",
    ),
    "shape of dpenalty": (
        "backward backward_bits curvature",
        lambda a: {"dpenalty": a["dpenalty"].expand(2)},
        r"dpenalty has the shape.* got shape \[2\]",
    ),
}


BITS: dict[str, tuple[str, Change, str]] = {
    "bits on the CPU": (
        "backward_bits",
        lambda a: {"bits": a["bits"].cpu()},
        "uint8 tensor of one dimension on cuda:0",
    ),
    "an order of other dimensions": (
        "forward forward_bits forward_ forward_random backward backward_bits curvature",
        lambda a: {"order": [0, 2]},
        r"a permutation of 2 dimensions, but got \[0, 2\]",
    ),
}


def arguments(name: str) -> dict[str, Any]:
    """Valid arguments of each operator."""
    x = torch.empty(3, 4, device="cuda")
    given = {
        "dy": torch.empty_like(x),
        "dpenalty": x.new_empty(()),
        "x": x,
        "rng_state": x.new_empty(2, dtype=torch.int64),
        "activation": "gelu",
        "parameters": [],
        "p": 0.5,
        "on_output": False,
        "coefficients": [0.5, 0.25],
        "bits": x.new_empty(2, dtype=torch.uint8),
        "sizes": [3, 4],
        "anchor": None,
        "reduction": "mean",
        "order": [1, 0],
        "dtype": torch.float32,
        "with_bits": True,
    }
    if "bits" in name or name == "forward_":
        given |= {"activation": "relu", "coefficients": [0.5, 0.0]}
    names = {argument.name for argument in getattr(ops, name)._schema.arguments}
    return {name: value for name, value in given.items() if name in names}


def run_kernel(name: str, given: dict[str, Any]) -> Any:
    """Call the CUDA kernel directly: if its checks pass, it allocates memory and launches."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(ops, name).redispatch(keys, **given)


def each_operator(table: dict[str, tuple[str, Change, str]]) -> pytest.MarkDecorator:
    rows = [
        pytest.param(name, change, says, id=f"{what}-{name}")
        for what, (names, change, says) in table.items()
        for name in names.split()
    ]
    return pytest.mark.parametrize(("name", "change", "says"), rows)


@each_operator(DEVICES | OTHERS | SHAPES | BITS)
def test_kernels_refuse(name: str, change: Change, says: str) -> None:
    """Bad arguments raise before anything happens on the device."""
    given = arguments(name)
    given |= change(given)
    with pytest.raises((ValueError, TypeError), match=says):
        run_kernel(name, given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="they would run, on tensors without data")
@pytest.mark.parametrize("name", OPERATORS)
def test_kernels_accept(name: str) -> None:
    """Valid arguments pass all checks, so the error is the missing device."""
    with pytest.raises(RuntimeError, match="CUDA error|NVIDIA driver"):
        run_kernel(name, arguments(name))


@each_operator(OTHERS)
def test_fake_tensors_are_refused_alike(name: str, change: Change, says: str) -> None:
    """Fake tensors raise alike, except for the backward's state, which may be a placeholder."""
    given = arguments(name)
    if "rng_state" in says and "forward" not in name:
        getattr(ops, name)(**given | change(given))
        return
    given |= change(given)
    with pytest.raises((ValueError, TypeError), match=says):
        getattr(ops, name)(**given)


@each_operator({what: row for what, row in DEVICES.items() if "dpenalty" not in what})
def test_torch_refuses_fake_tensors_of_two_devices(name: str, change: Change, says: str) -> None:
    """torch itself raises first, except for 0-d tensors, which may be on any device."""
    given = arguments(name)
    given |= change(given)
    with pytest.raises(RuntimeError, match="device"):
        getattr(ops, name)(**given)


# Graphs


@pytest.mark.parametrize("sizes", ["static", "symbolic"])
@pytest.mark.parametrize("seed", SEEDS)
def test_make_fx(fake: FakeTensorMode, seed: Any, sizes: str) -> None:
    """The graph has one forward, one backward, and the state of the mask between them."""

    def f(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return gradient(act_reg(x, "gelu", l1=0.1, p=0.5, reduction="sum", seed=made(seed)))

    x = symbolic(fake) if sizes == "symbolic" else tensor("channels_last")
    graph = make_fx(f, tracing_mode="symbolic" if sizes == "symbolic" else "fake")(x).graph
    forward, backward = calls(graph)
    assert forward.target is ops.forward
    assert backward.target is ops.backward
    state = backward.args[3]
    assert state is forward.args[1]
    assert state.meta["val"].device == backward.meta["val"].device == x.device
    assert backward.meta["val"].stride() == x.stride()
    assert all(is_symbol(n) == (sizes == "symbolic") for n in backward.meta["val"].shape)
    assert not fake.shape_env.guards  # one graph serves all sizes


def test_make_fx_of_two_draws() -> None:
    """Each call draws a seed, and each gradient uses the seed of its own forward."""

    def f(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        results = [act_reg(x, "identity", p=0.5) for _ in range(2)]
        return torch.stack([gradient(result) for result in results])

    *forwards, first, second = calls(make_fx(f, tracing_mode="fake")(tensor()).graph)
    assert [node.target for node in forwards] == 2 * [ops.forward]
    assert [first.args[3], second.args[3]] == [node.args[1] for node in forwards]
    assert first.args[3] is not second.args[3]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_compile(seed: Any, dynamic: bool) -> None:
    """Two calls draw two seeds if seed=None; the state of the mask is on the GPU."""

    def f(x: Tensor) -> list[Tensor]:
        return [*act_reg(x, l1=0.1, p=0.5, seed=given), *act_reg(x, l1=0.1, p=0.5, seed=given)]

    x, given = tensor("channels_last"), made(seed)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    results, graph = compiled(f, x)
    assert described(results[0]) == described(results[2]) == described(x)
    assert described(results[1]) == ((), [], torch.float32, x.device)
    nodes = calls(graph)
    assert [node.target for node in nodes] == 2 * [ops.forward]
    states = [node.args[1] for node in nodes]
    assert states[0] is not states[1]
    assert all(state.meta["val"].device == x.device for state in states)
    drawn = [node for node in graph.nodes if node.target is torch.ops.aten.randint.low]
    assert len(drawn) == (2 if seed is None else 0)
    assert all(is_symbol(node.meta["val"][0].shape[0]) == dynamic for node in nodes)


def test_compile_of_forward_and_backward() -> None:
    """AOTAutograd does not change the operators and the layouts."""

    def f(x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        attributes = ("gelu", [], 0.5, False, None, "mean", [0, 2, 3, 1])
        output, sums, state = ops.forward_random(x, *attributes)
        return output, ops.backward(dy, sums, x, state, *attributes)

    x = tensor("channels_last")
    torch._dynamo.mark_dynamic(x, 0)
    results, graph = compiled(f, x, tensor())
    assert [described(t) for t in results] == 2 * [described(x)]
    forward, backward = calls(graph)
    assert (forward.target, backward.target) == (ops.forward_random, ops.backward)
    assert backward.args[3].args == (forward, 2)


def test_compiled_without_dropout_draws_nothing() -> None:
    _, graph = compiled(
        lambda x: tuple(act_reg(x, "tanh", l2=0.1, p=0.5, training=False)), tensor()
    )
    (forward,) = calls(graph)
    assert forward.target is ops.forward and forward.args[1] is None
    assert not any("rand" in str(node.target) for node in graph.nodes)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(strict: bool, dynamic: bool) -> None:
    layers = [ActReg("gelu", l1=0.1, p=0.5) for _ in range(2)]
    model = nn.Sequential(nn.Linear(4, 4, device="cuda"), *layers)
    x = torch.empty(3, 4, device="cuda")
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=strict)
    nodes = calls(program.graph)
    assert [node.target for node in nodes] == 2 * [ops.forward]
    assert nodes[0].args[1] is not nodes[1].args[1]
    assert all(node.args[1].meta["val"].device == x.device for node in nodes)
    x = torch.empty(7 if dynamic else 3, 4, device="cuda")
    assert described(program.module()(x)) == described(x)


# A build without CUDA kernels


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "DEVICES", dispatch.DEVICES - {"cuda"})
    monkeypatch.setattr(dispatch, "_warned", set())


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", *STRIDED])
def test_without_kernels_the_reference(
    no_kernels: None, dtype: torch.dtype, layout: str, p: float
) -> None:
    x = tensor(layout, dtype).requires_grad_()
    with pytest.warns(UserWarning, match="no kernel for cuda") as caught:
        for seed in SEEDS:
            output, penalty = act_reg(x, "elu", l1=0.5, p=p, seed=made(seed), alpha=0.7)
            assert described(output) == described(x if layout in DENSE else x.contiguous())
            assert described(penalty) == ((), [], accumulation(dtype), x.device)
            assert output.requires_grad and penalty.requires_grad
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:actreg_ext has no kernel for cuda")
def test_without_kernels_no_graph_has_the_operator(no_kernels: None) -> None:
    def f(x: Tensor) -> list[Tensor]:
        return [t for _ in range(2) for t in act_reg(x, "gelu", l1=0.1, p=0.5)]

    x = tensor("channels_last")
    for graph in (make_fx(f, tracing_mode="fake")(x).graph, compiled(f, x)[1]):
        assert not calls(graph)
        drawn = [node for node in graph.nodes if node.target is torch.ops.aten.randint.low]
        assert len(drawn) == 2


def test_without_kernels_no_warning_under_compile(no_kernels: None) -> None:
    """No warning under torch.compile: this test would fail with it."""
    x = tensor()
    results, _ = compiled(lambda x: tuple(act_reg(x, p=0.5)), x)
    assert described(results[0]) == described(x)
