"""CUDA graphs and streams: capture, replay, deletion, and calls that overlap."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from actreg_ext.functional import act_reg
from actreg_ext.nn import ActReg
from tests import gpu
from tests.gpu import PENALTIES, next_state, some_inputs

gpu.require()
pytestmark = pytest.mark.cuda


def capture(
    step: Callable[[], Any], stream: torch.cuda.Stream | None = None
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of the launches of `step`, and the results of `step`, which each replay fills."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(2):
            step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = step()
    return graph, results


def test_graph_draws_at_each_replay(dtype: torch.dtype) -> None:
    """Each replay of two layers equals eager calls with the seeds and offsets it draws."""
    x = torch.ones(5000, dtype=dtype, device="cuda", requires_grad=True)
    dy = torch.ones_like(x)

    def step() -> list[tuple[Tensor, ...]]:
        layers = [act_reg(x, "identity", **PENALTIES, p=0.5) for _ in range(2)]
        return [(*layer, *torch.autograd.grad(layer.output, x, dy)) for layer in layers]

    graph, layers = capture(step)
    masks = []
    for _ in range(4):
        with torch.no_grad():
            x.uniform_(1, 2)  # not 0, so only dropout makes an output 0
        state = next_state()
        graph.replay()
        for call, (output, penalty, dx) in enumerate(layers):
            seed = state + torch.tensor([0, 4 * call])
            expected = act_reg(x.detach(), "identity", **PENALTIES, p=0.5, seed=seed)
            assert torch.equal(output, expected.output) and torch.equal(penalty, expected.penalty)
            assert torch.equal(dx != 0, output != 0)
            masks.append(output != 0)
        assert torch.equal(next_state(), state + torch.tensor([0, 8]))
    assert len(torch.stack(masks).unique(dim=0)) == 8


def test_replays_beside_eager_calls_on_the_stream_of_the_capture() -> None:
    """Both count finished blocks, in separate workspaces, so their penalties are right."""
    x, z = torch.randn(2, 2**20, device="cuda")
    expected = [act_reg(t, **PENALTIES, p=0.5).penalty.item() for t in (x, z)]
    captured_on, other = torch.cuda.Stream(), torch.cuda.Stream()
    graph, penalty = capture(lambda: act_reg(x, **PENALTIES, p=0.5).penalty, captured_on)
    torch.cuda.synchronize()
    replayed, eager = [], []
    for _ in range(200):
        with torch.cuda.stream(other):
            graph.replay()
            replayed.append(penalty.clone())
        with torch.cuda.stream(captured_on):
            eager.append(act_reg(z, **PENALTIES, p=0.5).penalty)
    torch.cuda.synchronize()
    assert [{p.item() for p in penalties} for penalties in (replayed, eager)] == [
        {value} for value in expected
    ]


def test_graphs_beside_each_other() -> None:
    """Two graphs overlap. Only penalties are compared: all graphs share one seed and offset."""
    xs = torch.randn(2, 2**20, device="cuda")
    expected = [act_reg(x, **PENALTIES, p=0.5).penalty.item() for x in xs]
    graphs = [capture(lambda x=x: act_reg(x, **PENALTIES, p=0.5).penalty) for x in xs]
    streams = [torch.cuda.Stream() for _ in xs]
    torch.cuda.synchronize()
    penalties: list[list[Tensor]] = [[], []]
    for _ in range(200):
        for (graph, penalty), stream, seen in zip(graphs, streams, penalties, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
                seen.append(penalty.clone())
    torch.cuda.synchronize()
    assert [{p.item() for p in seen} for seen in penalties] == [{value} for value in expected]


def test_graphs_that_come_and_go() -> None:
    """A new graph may reuse the workspace of a deleted one while other graphs are replayed."""
    xs, expected = some_inputs()
    kept = []
    for turn in range(24):
        x, right = xs[turn % len(xs)], expected[turn % len(xs)]
        kept.append((*capture(lambda x=x: act_reg(x, **PENALTIES, p=0.5).penalty), right))
        if turn % 3:
            del kept[turn % len(kept)]
        for graph, *_ in kept:
            graph.replay()
        assert all(torch.equal(penalty, right) for _, penalty, right in kept)


def test_capture_without_warm_up() -> None:
    x = torch.empty(2**20, device="cuda").uniform_(1, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, penalty = act_reg(x, "identity", **PENALTIES, p=0.5)
    masks = []
    for _ in range(3):
        state = next_state()
        graph.replay()
        expected = act_reg(x, "identity", **PENALTIES, p=0.5, seed=state)
        assert torch.equal(output, expected.output) and torch.equal(penalty, expected.penalty)
        masks.append(output != 0)
    assert len(torch.stack(masks).unique(dim=0)) == 3


def test_graph_of_a_second_derivative(dtype: torch.dtype) -> None:
    x = torch.randn(5000, device="cuda").to(dtype).requires_grad_()
    dy, v = torch.randn(2, 5000, device="cuda").to(dtype)
    seed = torch.tensor([3, 4], device="cuda")

    def step() -> Tensor:
        result = act_reg(x, "gelu", **PENALTIES, p=0.5, penalty_on="output", seed=seed)
        gradients = (dy, torch.ones_like(result.penalty))
        (dx,) = torch.autograd.grad(list(result), x, gradients, create_graph=True)
        return torch.autograd.grad(dx, x, v)[0]

    graph, second = capture(step)
    for _ in range(3):
        with torch.no_grad():
            x.normal_()
        graph.replay()
        assert second.any() and torch.equal(second, step())


def recorded(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Like `capture`, but without waiting for the GPU's running work."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            results = step()
        finally:
            graph.capture_end()
    return graph, results


def test_a_graph_is_deleted_while_it_runs() -> None:
    """No other graph gets the workspace of a deleted graph before its last launch has ended."""
    (x, z, *_), (of_x, of_z, *_) = some_inputs()
    wrong = torch.zeros(2, dtype=torch.int64, device="cuda")

    def calls(cycles: int, x: Tensor, expected: Tensor, wrong: Tensor) -> None:
        torch.cuda._sleep(cycles)
        for _ in range(300):
            wrong += act_reg(x, **PENALTIES, p=0.5).penalty != expected

    first, second, done = torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.Event()
    for _ in range(3):
        torch.cuda.synchronize()
        graph, _ = recorded(lambda: calls(10**9, x, of_x, wrong[:1]))
        with torch.cuda.stream(first):
            graph.replay()
            done.record()
        del graph
        other, _ = recorded(lambda: calls(1, z, of_z, wrong[1:]))
        assert not done.query()
        while not done.query():
            with torch.cuda.stream(second):
                other.replay()
                second.synchronize()
        assert wrong.tolist() == [0, 0]


def test_a_graph_is_instantiated_twice() -> None:
    """Two instances that run one after another are right; the last one keeps the workspace.

    Two instances at the same time are not supported: they would write the same tensors.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    x, z = torch.randn(2, 2**20, device="cuda")
    expected, of_z = (act_reg(t, **PENALTIES).penalty for t in (x, z))
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        result = act_reg(x, **PENALTIES)  # holding the result keeps the graph's memory
    instance, captured = ctypes.c_void_p(), ctypes.c_void_p(graph.raw_cuda_graph())
    flags = ctypes.c_ulonglong(0)
    assert driver.cuGraphInstantiateWithFlags(ctypes.byref(instance), captured, flags) == 0

    def launch() -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        assert driver.cuGraphLaunch(instance, stream) == 0

    for run in (graph.replay, launch, launch, graph.replay):
        result.penalty.zero_()
        run()
        assert torch.equal(result.penalty, expected)
    del graph
    other, of_other = capture(lambda: act_reg(z, **PENALTIES).penalty)  # needs a workspace
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    seen: list[list[Tensor]] = [[], []]
    for _ in range(200):
        with torch.cuda.stream(streams[0]):
            launch()
            seen[0].append(result.penalty.clone())
        with torch.cuda.stream(streams[1]):
            other.replay()
            seen[1].append(of_other.clone())
    torch.cuda.synchronize()
    for penalties, right in zip(seen, (expected, of_z), strict=True):
        assert all(torch.equal(penalty, right) for penalty in penalties)
    assert driver.cuGraphExecDestroy(instance) == 0


def kinds_of_nodes(graph: torch.cuda.CUDAGraph) -> list[int]:
    """The kinds of a graph's nodes, from the driver: 0 is a kernel, 1 a copy, 2 a fill."""
    driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_size_t()
    handle = ctypes.c_void_p(graph.raw_cuda_graph())
    assert driver.cuGraphGetNodes(handle, None, ctypes.byref(count)) == 0
    nodes = (ctypes.c_void_p * count.value)()
    assert driver.cuGraphGetNodes(handle, nodes, ctypes.byref(count)) == 0
    kinds = []
    for node in nodes:
        kind = ctypes.c_int()
        assert driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)) == 0
        kinds.append(kind.value)
    return kinds


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_graph_has_one_node_for_each_launch(dtype: torch.dtype, p: float) -> None:
    """A replay runs kernels only: no fill, no copy."""
    x = torch.randn(10000, device="cuda").to(dtype).requires_grad_()
    gradients = [torch.ones_like(x), torch.ones((), device="cuda")]

    def warm() -> Tensor:
        """Warm up. No autograd graph may outlive this: its nodes wait for the default stream."""
        result = act_reg(x, "gelu", **PENALTIES, p=p)
        torch.autograd.grad(list(result), x, gradients)
        return result.penalty.detach()

    penalty = warm()
    forward, both = (torch.cuda.CUDAGraph(keep_graph=True) for _ in range(2))
    with torch.cuda.graph(forward):
        first = act_reg(x, "gelu", **PENALTIES, p=p)
    with torch.cuda.graph(both):
        second = act_reg(x, "gelu", **PENALTIES, p=p)
        torch.autograd.grad(list(second), x, gradients)
    assert (kinds_of_nodes(forward), kinds_of_nodes(both)) == ([0], [0, 0])
    for graph, result in ((forward, first), (both, second)):
        graph.replay()
        assert torch.equal(result.penalty, penalty)


# PyTorch 2.11 keeps the autograd graph of its own warm-up, which ran on another stream.
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")
def test_make_graphed_callables() -> None:
    example = torch.ones(5000, device="cuda", requires_grad=True)
    layer = torch.cuda.make_graphed_callables(ActReg("identity", p=0.5), (example,))
    masks = []
    for _ in range(3):
        x = torch.empty(5000, device="cuda").uniform_(1, 2).requires_grad_()
        y = layer(x)
        masks.append(y != 0)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(y, 2 * x * masks[-1]) and torch.equal(dx, 2.0 * masks[-1])
    assert len(torch.stack(masks).unique(dim=0)) == 3


def penalties_of_calls_at_once(
    xs: list[Tensor], streams: list[torch.cuda.Stream], calls: int
) -> list[Tensor]:
    """The stacked penalties of each of xs; the calls alternate between the streams."""
    penalties: list[list[Tensor]] = [[] for _ in xs]
    for call in range(calls):
        for i, stream in enumerate(streams):
            which = (call + i) % len(xs)
            with torch.cuda.stream(stream):
                penalties[which].append(act_reg(xs[which], **PENALTIES, p=0.5).penalty)
    torch.cuda.synchronize()
    return [torch.stack(each) for each in penalties]


def test_many_streams() -> None:
    xs, expected = some_inputs()
    streams = [torch.cuda.Stream() for _ in range(4)]
    for found, right in zip(penalties_of_calls_at_once(xs, streams, 100), expected, strict=True):
        assert (found == right).all()


@pytest.mark.parametrize("shares_stream", [True, False])
def test_many_threads(shares_stream: bool) -> None:
    xs, expected = some_inputs()
    own = [torch.cuda.Stream() for _ in range(4)]
    streams = [torch.cuda.current_stream()] * 4 if shares_stream else own
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(lambda stream: penalties_of_calls_at_once(xs, [stream], 100), streams)
        for run in runs:
            for found, right in zip(run, expected, strict=True):
                assert (found == right).all()


def test_streams_of_others() -> None:
    """After a stream is destroyed, the next stream may have the same handle."""
    driver, x = ctypes.CDLL("libcuda.so.1"), torch.randn(2**20, device="cuda")
    expected = act_reg(x, **PENALTIES, p=0.5).penalty
    torch.cuda.synchronize()
    for _ in range(5):
        handle = ctypes.c_void_p()
        assert driver.cuStreamCreate(ctypes.byref(handle), 1) == 0  # 1: non-blocking
        with torch.cuda.stream(torch.cuda.ExternalStream(handle.value)):
            penalties = [act_reg(x, **PENALTIES, p=0.5).penalty for _ in range(3)]
        torch.cuda.synchronize()
        assert all(torch.equal(penalty, expected) for penalty in penalties)
        assert driver.cuStreamDestroy_v2(handle) == 0


def test_streams_that_come_and_go() -> None:
    """CUDA does not report destroyed streams, so 20,000 streams must not each keep memory."""
    driver, x = ctypes.CDLL("libcuda.so.1"), torch.randn(5000, device="cuda")
    expected = act_reg(x, **PENALTIES, p=0.5).penalty
    torch.cuda.synchronize()

    def use(count: int) -> int:
        """Call on `count` new streams, and return the free memory afterwards."""
        for call in range(count):
            handle = ctypes.c_void_p()
            assert driver.cuStreamCreate(ctypes.byref(handle), 1) == 0
            with torch.cuda.stream(torch.cuda.ExternalStream(handle.value)):
                penalty = act_reg(x, **PENALTIES, p=0.5).penalty
            if call % 100 == 99:
                torch.cuda.synchronize()
                assert torch.equal(penalty, expected)
                torch.cuda.empty_cache()  # PyTorch caches memory for each stream
            assert driver.cuStreamDestroy_v2(handle) == 0
        return torch.cuda.mem_get_info()[0]

    before = use(500)  # the first 256 streams of a device have a workspace each
    assert before - use(19_500) < 2**24


def test_later_streams_side_by_side() -> None:
    """Overlapping calls on streams without a workspace of their own, from several threads."""
    driver = ctypes.CDLL("libcuda.so.1")
    handles = [ctypes.c_void_p() for _ in range(300)]
    for handle in handles:
        assert driver.cuStreamCreate(ctypes.byref(handle), 1) == 0
    streams = [torch.cuda.ExternalStream(handle.value) for handle in handles]
    xs, expected = some_inputs()
    penalties_of_calls_at_once(xs[:1], streams, 1)
    later = streams[-4:]
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(lambda stream: penalties_of_calls_at_once(xs, [stream], 100), later)
        for run in (*runs, penalties_of_calls_at_once(xs, later, 100)):
            for found, right in zip(run, expected, strict=True):
                assert (found == right).all()
    for handle in handles:
        assert driver.cuStreamDestroy_v2(handle) == 0


@gpu.two_needed
def test_two_devices_at_once() -> None:
    """Calls and graphs run on two devices at once, which have separate workspaces."""
    xs, expected = some_inputs()

    def run(device: int) -> list[Tensor]:
        with torch.cuda.device(device):
            mine = [x.to(f"cuda:{device}") for x in xs]
            torch.cuda.synchronize()
            calls = [act_reg(x, **PENALTIES, p=0.5).penalty for _ in range(100) for x in mine]
            torch.cuda.synchronize()
            return [call.cpu() for call in calls]

    right = [penalty.cpu() for penalty in expected] * 100
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(run, (0, 1)):
            assert all(map(torch.equal, found, right))
    x = xs[0].to("cuda:1")
    with torch.cuda.device(1):
        graph, penalty = capture(lambda: act_reg(x, **PENALTIES, p=0.5).penalty)
    assert torch.cuda.current_device() == 0
    for _ in range(3):
        graph.replay()
        act_reg(xs[0], **PENALTIES, p=0.5)
        torch.cuda.synchronize(1)
        assert torch.equal(penalty.cpu(), right[0])


# What a process does first.

FIRST_CALL = """
import sys
import torch
from actreg_ext.functional import act_reg

x = torch.full((2**20,), 2.0, device="cuda", requires_grad=True)
gradients = [torch.ones_like(x), torch.ones((), device="cuda")]
graph, results = torch.cuda.CUDAGraph(), []
with torch.cuda.graph(graph, capture_error_mode=sys.argv[1]):
    for name in ("identity", "relu"):
        y, penalty = act_reg(x, name, l1=1.0, p=0.5)
        (dx,) = torch.autograd.grad((y, penalty), x, gradients)
        results.append((y.detach(), penalty.detach(), dx))
masks = []
for _ in range(3):
    graph.replay()
    for y, penalty, dx in results:
        kept = y != 0
        assert penalty == 2 and torch.equal(y, 4.0 * kept), (penalty, y)
        torch.testing.assert_close(dx, 2.0 * kept + 2**-20)
        masks.append(kept)
assert len(torch.stack(masks).unique(dim=0)) == 6
print("right")
"""


def test_the_first_call_is_captured() -> None:
    """Capture in every capture_error_mode, with kernels loaded at start or at first launch."""
    runs = {}
    for loading in ("LAZY", "EAGER"):
        for mode in ("global", "thread_local", "relaxed"):
            runs[loading, mode] = subprocess.Popen(
                [sys.executable, "-c", FIRST_CALL, mode],
                cwd=gpu.ROOT,
                env={**os.environ, "CUDA_MODULE_LOADING": loading},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
    said = {case: run.communicate()[0] for case, run in runs.items()}
    wrong = [f"{case}: {text[-1500:]}" for case, text in said.items() if "right" not in text]
    assert not wrong, "\n".join(wrong)
