"""Tests that need a GPU: masks, the generator, devices, memory, launches.

The tests of the other files run on "cuda" too, by their fixture `device`. Further tests that need
a GPU are in test_cuda_graphs.py and test_cuda_compile.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from actreg_ext import doctor, ops, reference
from actreg_ext.functional import act_reg
from tests import gpu, table
from tests.gpu import PENALTIES, generator, next_state

gpu.require()
pytestmark = pytest.mark.cuda

# Around the sizes of vectors, warps, tiles (2048 elements of float64, 8192 of the others), and
# from 4096 tiles on, where a part of the penalty is more than one of them.
LENGTHS = [1, 2, 3, 7, 8, 9, 31, 33, 255, 257, 2047, 2048, 2049, 8191, 8192, 8193, 24577, 2**20 + 3]
MANY_TILES = 2**25 + 8197
OFFSETS = [0, 1, 3]
SMALL = 2048  # bytes


def at_offset(x: Tensor, offset: int) -> Tensor:
    """The same numbers on the GPU, `offset` elements after an aligned address."""
    return x.new_empty(len(x) + offset, device="cuda")[offset:].copy_(x)


# Masks, and the penalty's bits.


@pytest.mark.parametrize("n", LENGTHS)
def test_masks_are_the_cpus_and_the_references(dtype: torch.dtype, n: int) -> None:
    ones = torch.ones(n, dtype=dtype)
    for seed in (0, 2**63 + 5, torch.tensor([5, 2**32]), torch.tensor([-(2**63), -1])):
        options: dict[str, Any] = {"p": 0.3, "seed": seed}
        expected = act_reg(ones, "identity", **options).output
        assert torch.equal(expected, reference.act_reg(ones, "identity", **options).output)
        for offset in OFFSETS:
            output = act_reg(at_offset(ones, offset), "identity", **options).output
            assert torch.equal(output.cpu(), expected), (seed, offset)


def test_many_tiles(dtype: torch.dtype) -> None:
    """relu's output and gradient are one product each, so they equal the reference's exactly."""
    x = torch.randn(MANY_TILES, device="cuda").to(dtype).requires_grad_()
    dy = torch.randn_like(x)
    ours, expected = (f(x, "relu", p=0.3, seed=2).output for f in (act_reg, reference.act_reg))
    assert torch.equal(ours, expected)
    assert torch.equal(*(torch.autograd.grad(y, x, dy)[0] for y in (ours, expected)))


@pytest.mark.parametrize("penalty_on", ["activation", "output"])
def test_bits_of_the_penalty(dtype: torch.dtype, penalty_on: str) -> None:
    """The penalty's bits do not depend on run, stream or alignment; its value is right."""
    options: dict[str, Any] = {**PENALTIES, "p": 0.3, "seed": 1, "penalty_on": penalty_on}
    x = torch.randn(MANY_TILES, device="cuda").to(dtype)
    views = [at_offset(x, offset) for offset in OFFSETS]
    torch.cuda.synchronize()
    penalties = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            penalties += [act_reg(view, "identity", **options).penalty for view in views]
    torch.cuda.synchronize()
    assert len({penalty.item() for penalty in penalties}) == 1
    expected = reference.act_reg(x.double(), "identity", **options).penalty
    assert_close(penalties[0], expected.to(penalties[0].dtype))


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_second_derivatives_are_the_cpus(activation: dict[str, Any], p: float) -> None:
    start, v = torch.randn(2, 500, dtype=torch.float64)
    seconds = []
    for device in ("cpu", "cuda"):
        x, dy = (4 * start).to(device).requires_grad_(), v.to(device).requires_grad_()
        result = act_reg(x, **activation, **PENALTIES, p=p, seed=3, penalty_on="output")
        gradients = [dy, torch.full_like(result.penalty, 0.7)]
        (dx,) = torch.autograd.grad(list(result), x, gradients, create_graph=True)
        second = torch.autograd.grad(dx, (x, dy), dy.detach(), materialize_grads=True)
        seconds.append([t.cpu() for t in second])
    assert_close(*seconds)


# The generator.


def test_seed_none_is_the_generators_seed_and_offset(dtype: torch.dtype) -> None:
    """Each call advances the offset by 4, the smallest step of CUDA's generator."""
    x = torch.empty(5000, dtype=dtype, device="cuda")
    torch.manual_seed(123)
    x.uniform_(1, 2)  # this draws, so the offset is not 0 any more
    for _ in range(3):
        state = next_state()
        output = act_reg(x, "identity", p=0.5).output
        assert torch.equal(output, act_reg(x, "identity", p=0.5, seed=state).output)
        assert torch.equal(next_state(), state + torch.tensor([0, 4]))


@pytest.mark.parametrize(
    "options", [{"p": 0.0}, {"p": 0.5, "training": False}, {"p": 0.5, "seed": 1}], ids=str
)
def test_nothing_is_drawn_without_need(options: dict[str, Any]) -> None:
    x = torch.ones(100, device="cuda", requires_grad=True)
    before = next_state()
    act_reg(x, **options, **PENALTIES).output.sum().backward()
    assert torch.equal(next_state(), before)


def test_backward_draws_nothing() -> None:
    x = torch.ones(100, device="cuda", requires_grad=True)
    output = act_reg(x, p=0.5).output
    before = next_state()
    output.sum().backward()
    assert torch.equal(next_state(), before)


def test_state_of_the_generator() -> None:
    """manual_seed, set_rng_state and fork_rng reset the mask; otherwise each call differs."""
    x = torch.ones(1000, device="cuda")

    def draw() -> Tensor:
        return act_reg(x, p=0.5).output

    torch.manual_seed(5)
    saved = torch.cuda.get_rng_state()
    first, second = draw(), draw()
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(draw(), first) and torch.equal(draw(), second)
    torch.cuda.set_rng_state(saved)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        assert torch.equal(draw(), first)
    assert torch.equal(draw(), first) and torch.equal(draw(), second)


def test_checkpoint() -> None:
    """The repeated forward has the same mask, and does not change the generator's state."""

    def block(x: Tensor) -> tuple[Tensor, Tensor]:
        y, penalty = act_reg(x.sin(), "tanh", **PENALTIES, p=0.5)
        return y.exp(), penalty

    x = torch.randn(3000, device="cuda", requires_grad=True)
    results = []
    for run in (block, lambda x: checkpoint(block, x, use_reentrant=False)):
        torch.manual_seed(5)
        y, penalty = run(x)
        (dx,) = torch.autograd.grad(y.sum() + penalty, x)
        results.append((y, penalty, dx, next_state()))
    assert all(map(torch.equal, *results))


# Devices.


@gpu.two_needed
def test_another_device_than_the_current_one(dtype: torch.dtype) -> None:
    here = torch.randn(5000, device="cuda:0").to(dtype).requires_grad_()
    there = here.detach().to("cuda:1").requires_grad_()
    offsets = [generator(device).get_offset() for device in (0, 1)]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        drawn = act_reg(there, "silu", **PENALTIES, p=0.5)
    dx = table.gradient(drawn, there, torch.ones_like(there), dpenalty=0.0)
    assert torch.cuda.current_device() == 0
    assert {t.device for t in (*drawn, dx, *saved)} == {there.device} and len(saved) == 2
    assert torch.equal(dx != 0, drawn.output != 0)
    assert [generator(device).get_offset() for device in (0, 1)] == [offsets[0], offsets[1] + 4]
    results = []
    for x in (here, there):
        result = act_reg(x, "silu", **PENALTIES, p=0.5, seed=3)
        results.append((*result, table.gradient(result, x, torch.ones_like(x))))
    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("refused", [torch.int32, torch.bool, torch.complex64])
def test_dtypes_that_are_refused(refused: torch.dtype) -> None:
    with pytest.raises(TypeError, match=str(refused)):
        act_reg(torch.ones(4, device="cuda").to(refused), p=0.5)


def test_a_seed_may_be_on_any_device() -> None:
    x = torch.ones(1000, device="cuda")
    seeds = (7, torch.tensor([7, 0]), torch.tensor([7, 0], device="cuda"))
    first, *others = (act_reg(x, p=0.5, seed=seed).output for seed in seeds)
    assert all(torch.equal(first, other) for other in others)


def test_tensors_of_two_devices_are_refused() -> None:
    """The operators raise, and the next call is right."""
    x = torch.ones(8, device="cuda", requires_grad=True)
    options = ("relu", [], 0.5, False, [1.0, 0.0], "sum", [])
    here, there = torch.tensor([1, 2], device="cuda"), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="rng_state is on cpu and input on cuda"):
        ops.forward(x, there, *options)
    with pytest.raises(ValueError, match="rng_state is on cpu and input on cuda"):
        ops.backward(torch.ones_like(x), None, x, there, *options)
    with pytest.raises(ValueError, match="gradient is on cpu and input on cuda"):
        ops.backward(torch.ones(8), None, x, here, *options)
    output, penalty = act_reg(x, l1=1.0, reduction="sum")
    with pytest.raises(RuntimeError, match="device"):
        torch.autograd.grad(output, x, torch.ones(8), retain_graph=True)
    gradients = (torch.ones_like(output), torch.ones_like(penalty))
    (dx,) = torch.autograd.grad((output, penalty), x, gradients)
    assert penalty == 8 and torch.equal(dx, torch.full_like(x, 2))


# Sizes, memory and launches.


def test_more_elements_than_32_bits_count() -> None:
    n, count = 2**31 + 11, 24
    needed = 4 * 2 * n + 2**28  # x, y, dy and dx, and a reserve
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed} bytes of a GPU's memory, and {free} are free")
    starts = (0, 2**30, 2**31 - 8)  # of the windows compared; the last one ends where x ends
    x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    for start in starts:
        x[start : start + count] = 1
    x.requires_grad_()
    seed = torch.tensor([7, 9])
    output, penalty = act_reg(x, "identity", l1=1.0, p=0.5, reduction="sum", seed=seed)
    gradients = (torch.ones_like(x), torch.ones_like(penalty))
    (dx,) = torch.autograd.grad((output, penalty), x, gradients)
    assert penalty == 2 * count + 19
    for start in starts:
        random16 = reference.random16(*torch.tensor([7, 9]), torch.arange(start, start + count))
        kept_twice = 2 * (random16 < 32768)[: n - start].to(x.dtype)
        window = slice(start, start + count)
        assert torch.equal(output[window].cpu(), kept_twice)
        assert torch.equal(dx[window].cpu(), kept_twice + 1)


def requested(when: str) -> int:
    """Bytes requested from the allocator, before rounding: "current" or "peak"."""
    return torch.cuda.memory_stats()[f"requested_bytes.all.{when}"]


@pytest.mark.parametrize("kept", ["input", "bits"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_memory(dtype: torch.dtype, p: float, kept: str) -> None:
    """A call allocates only its results, and keeps x or bits, and 16 bytes, for the backward."""
    name, options = ("gelu", PENALTIES) if kept == "input" else ("relu", {"l1": 0.5})
    bits = 2**22 // 8 if kept == "bits" else 0
    x = torch.randn(2**22, device="cuda").to(dtype).requires_grad_()
    dy = torch.ones_like(x)
    saved: list[Tensor] = []
    for run in ("warm-up", "measured"):
        saved.clear()
        before = requested("current")
        torch.cuda.reset_peak_memory_stats()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            output, penalty = act_reg(x, name, **options, p=p)
        forward = requested("current") - before, requested("peak") - before
        gradients = (dy, torch.ones_like(penalty))
        before = requested("current")
        torch.cuda.reset_peak_memory_stats()
        (dx,) = torch.autograd.grad((output, penalty), x, gradients, retain_graph=True)
        backward = requested("current") - before, requested("peak") - before
        if run == "measured":
            assert all(0 <= size - output.nbytes - bits <= SMALL for size in forward)
            assert all(0 <= size - dx.nbytes <= SMALL for size in backward)
        del output, penalty, dx
    assert (saved[0].data_ptr() == x.data_ptr()) == (kept == "input")
    assert saved[0].nbytes == (bits or x.nbytes)
    assert [(t.dtype, t.nbytes) for t in saved[1:]] == ([(torch.int64, 16)] if p else [])


def test_out_of_memory() -> None:
    """A call that runs out of memory leaves the generator's state; the next call is right."""
    x = torch.ones(2**26, device="cuda")
    torch.cuda.empty_cache()
    state = next_state()
    total = torch.cuda.get_device_properties(x.device).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            act_reg(x, "identity", l1=1.0, p=0.5)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(next_state(), state)
    output, penalty = act_reg(x, "identity", l1=1.0, p=0.5)
    assert penalty == 1
    assert torch.equal(output, act_reg(x, "identity", p=0.5, seed=state).output)


def test_in_a_memory_pool() -> None:
    """The workspace that a call in a memory pool creates is not part of the pool."""
    x = torch.randn(2**20, device="cuda")
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        penalty = act_reg(x, **PENALTIES, p=0.5).penalty.item()
    del pool
    torch.cuda.empty_cache()
    torch.full((2**24,), torch.nan, device="cuda")  # overwrite the memory that the pool had
    assert act_reg(x, **PENALTIES, p=0.5).penalty.item() == penalty


def test_while_the_cache_holds_all_memory() -> None:
    """A stream's first call needs memory from CUDA, so PyTorch's cache must free some."""
    x, stream = torch.randn(5000, device="cuda"), torch.cuda.Stream()
    expected = act_reg(x, **PENALTIES, p=0.5).penalty
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        kept = torch.empty(1, device="cuda")  # the rest of its block is free for the results
    size, _ = torch.cuda.mem_get_info()
    hoard = []
    while size >= 2**20:
        try:
            hoard.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    del hoard
    with torch.cuda.stream(stream):
        penalty = act_reg(x, **PENALTIES, p=0.5).penalty
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert kept.is_cuda and torch.equal(penalty, expected)


def on_the_device(call: Callable[[], object]) -> list[str]:
    """The names of the kernels, copies and fills that a call runs on the GPU."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        call()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == cuda]


@pytest.mark.filterwarnings("ignore:.*[Pp]rofiler")
@pytest.mark.parametrize("name", ["gelu", "relu"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_one_kernel_each_way(dtype: torch.dtype, p: float, name: str) -> None:
    x = torch.randn(10000, device="cuda").to(dtype).requires_grad_()
    seen = [on_the_device(lambda: x.detach().exp()) for _ in range(2)]  # once to warm up
    if len(seen[1]) != 1:
        pytest.skip("the profiler does not see this GPU's kernels")
    f = partial(act_reg, activation=name, l1=0.5, l2=0.25 if name == "gelu" else 0.0, p=p)
    result = f(x)
    gradients = [torch.ones_like(t) for t in result]

    def backward() -> None:
        torch.autograd.grad(list(result), x, gradients, retain_graph=True)

    backward()
    (launched,) = on_the_device(lambda: f(x))
    assert "forward_kernel" in launched
    (launched,) = on_the_device(backward)
    assert ("backward_kernel" if name == "gelu" else "backward_bits_kernel") in launched


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device(dtype: torch.dtype) -> None:
    x = torch.randn(10000, device="cuda").to(dtype).requires_grad_()
    gradients = [torch.ones_like(t) for t in act_reg(x, l1=1.0)]

    def step() -> None:
        result = act_reg(x, "gelu", **PENALTIES, p=0.3)
        torch.autograd.grad(list(result), x, gradients)

    step()
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(10**9)  # cycles, about half a second
        step()
        done.record()
        assert not done.query()
        with pytest.raises(RuntimeError, match="synchronizing"):
            x.sum().item()  # proves that the mode detects a synchronization
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


# What a process does first.


def test_the_doctor_names_the_gpu() -> None:
    (found,) = [finding for finding in doctor.examine() if finding.name == "GPU"]
    assert torch.cuda.get_device_name(0) in found.value and not found.advice


@pytest.mark.parametrize("test", ["test_in_a_memory_pool", "test_while_the_cache_holds_all_memory"])
def test_first_calls(test: str) -> None:
    gpu.passes_alone(f"{__file__}::{test}")
