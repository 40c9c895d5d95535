"""The CUDA kernels on the emulated device of `make emulate`: launches, grids, captures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from actreg_ext import dropout_mask, reference, temporal_penalty
from actreg_ext.functional import act_reg
from tests import table

if not hasattr(torch.ops.actreg_emulation, "configure"):
    pytest.skip("runs on the emulated device (make emulate)", allow_module_level=True)

# Lengths around the elements of a thread, a warp and a block. Large tiles begin at 8192 elements on
# the emulated device, and at 2^21 on a GPU.
LENGTHS = [1, 255, 256, 257, 2047, 2048, 2049, 8191, 8192, 8193, 3 * 8192 + 259]
emulation = torch.ops.actreg_emulation


def configure(multiprocessors: int = 2, order: int = 2) -> list[int]:
    """Set the number of multiprocessors and the order in which threads and blocks run.

    Returns [launches, memsets, allocations] so far, and the number of temporaries in use.
    """
    return emulation.configure(multiprocessors, order)


@pytest.fixture(autouse=True)
def device_as_it_was() -> Iterator[None]:
    yield
    configure()
    emulation.use_stream(1)


@pytest.mark.parametrize("n", LENGTHS)
def test_grid_and_order_change_no_bit(dtype: torch.dtype, n: int) -> None:
    """The results are the same for any number of blocks, and whichever block ends last."""
    x, dy = torch.randn(2, n).to(dtype)
    results = []
    for multiprocessors in (0, 1, 50):
        for order in (0, 1, 2, 3):
            configure(multiprocessors, order)
            leaf = x.clone().requires_grad_()
            result = act_reg(leaf, "gelu", l1=0.3, l2=0.7, p=0.3, seed=1, penalty_on="output")
            results.append((*result, table.gradient(result, leaf, dy)))
    for result in results:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("shape", [(70, 130), (19, 2200)])  # the second one has wide steps
def test_grid_and_order_change_no_bit_of_temporal_penalty(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    h, w = torch.randn(shape).to(dtype), torch.rand(shape[0], 1)
    results = []
    for multiprocessors in (0, 1, 50):
        for order in (0, 1, 2, 3):
            configure(multiprocessors, order)
            leaf = h.clone().requires_grad_()
            penalty = temporal_penalty(leaf, 0.5, 0, w)
            results.append((penalty, torch.autograd.grad(penalty, leaf)[0]))
    for result in results:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("n", [1, 5000, 3 * 8192 + 259])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_no_penalty(dtype: torch.dtype, n: int, p: float) -> None:
    """Without coefficients the kernel computes no sums; the penalty is 0 even for infinities."""
    x = torch.randn(n).to(dtype)
    with_sums, without = (act_reg(x, "relu", l1=l1, p=p, seed=1) for l1 in (1.0, 0.0))
    assert torch.equal(with_sums.output, without.output)
    assert without.penalty == 0
    x[0] = float("inf")
    assert act_reg(x, "relu", p=p, seed=1).penalty == 0


def test_blocks_side_by_side() -> None:
    """Each launch finds the partial sums of another tensor in the workspace, and ignores them."""
    xs = torch.randn(2, 5 * 4096 + 3)
    configure(multiprocessors=0)
    expected = [act_reg(x, "identity", l1=1.0, l2=1.0).penalty for x in xs]
    for order in range(2, 30):
        configure(2, order)  # a grid of four blocks, which run side by side
        for x, penalty in zip(xs, expected, strict=True):
            assert torch.equal(act_reg(x, "identity", l1=1.0, l2=1.0).penalty, penalty)


def test_more_parts_than_the_workspace_has() -> None:
    """If there are more tiles than places for partial sums, one block sums several tiles."""
    x = torch.rand(4096 * 2048 + 5000, dtype=torch.float64) - 0.5
    penalties = []
    for multiprocessors in (1, 2000):
        configure(multiprocessors)
        penalties.append(act_reg(x, "identity", l1=1.0, l2=1.0, reduction="sum").penalty)
    assert torch.equal(*penalties)
    torch.testing.assert_close(penalties[0], x.abs().sum() + x.square().sum())


def test_one_launch_each_way() -> None:
    x = torch.randn(9000, requires_grad=True)
    act_reg(x, "relu")  # the first call of a stream zeroes its workspace
    before = configure()
    result = act_reg(x, "relu", l1=1.0, p=0.5)
    assert configure() == [before[0] + 1, *before[1:]]
    for outputs, gradients in (
        ([result.output], [torch.ones_like(x)]),
        ([result.output], [torch.ones(()).expand_as(x)]),  # the gradient of y.sum()
        ([result.penalty], [torch.ones(())]),
        (list(result), [torch.ones_like(x), torch.ones(())]),
    ):
        before = configure()
        torch.autograd.grad(outputs, x, gradients, retain_graph=True)
        assert configure() == [before[0] + 1, *before[1:]]


def test_one_gradient_for_all(dtype: torch.dtype) -> None:
    """A gradient with strides 0, as y.sum() gives, has the same result as a dense one."""
    x = torch.randn(5000, dtype=dtype, requires_grad=True)
    one = torch.tensor(0.5, dtype=dtype).expand_as(x)
    ours, theirs = (
        table.gradient(act_reg(x, "silu", l1=0.5, p=0.3, seed=1), x, dy)
        for dy in (one, one.clone())
    )
    assert torch.equal(ours, theirs)


def forward_random(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.ops.actreg.forward_random(x, "relu", [], 0.5, True, [1.0, 0.0], "sum", [])


def test_a_captured_launch_reads_its_state_from_memory() -> None:
    x = torch.randn(9000)
    emulation.begin_capture()
    y, penalty, state = forward_random(x)
    emulation.end_capture()
    emulation.destroy_graphs()
    options = dict(l1=1.0, p=0.5, reduction="sum", seed=state, penalty_on="output")
    again = act_reg(x, "relu", **options)
    assert torch.equal(again.output, y) and torch.equal(again.penalty, penalty)
    assert state[1] == 0 and torch.equal(y != 0, dropout_mask(9000, 0.5, state) & (x > 0))


def test_a_capture_has_a_workspace_of_its_own_until_its_graph_is_gone() -> None:
    x = torch.randn(9000)
    act_reg(x, "relu")
    emulation.destroy_graphs()
    made = []
    for _ in range(3):  # only the second capture must allocate; the first may find one
        before = configure()
        emulation.begin_capture()
        for _ in range(2):
            forward_random(x)
        emulation.end_capture()
        after = configure()
        assert after[0] == before[0] + 2
        assert after[1] - before[1] == after[2] - before[2]  # each new workspace is zeroed once
        made.append(after[2] - before[2])
        if len(made) == 2:
            emulation.destroy_graphs()
    assert made[0] <= 1 and made[1:] == [1, 0]
    emulation.destroy_graphs()


FIRST_CALL = """
import torch
from actreg_ext.functional import act_reg

x = torch.full((9000,), 2.0, requires_grad=True)
torch.ops.actreg_emulation.begin_capture()
y, penalty = act_reg(x, "relu", l1=1.0, p=0.5)
(dx,) = torch.autograd.grad((y, penalty), x, (torch.ones_like(x), torch.ones(())))
torch.ops.actreg_emulation.end_capture()
assert penalty == 2 and torch.equal(y, 4.0 * (y != 0)) and 0 < (y != 0).sum() < 9000
torch.testing.assert_close(dx, 2.0 * (y != 0) + 1 / 9000)
"""


def test_the_first_call_of_a_process_is_captured() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_streams_that_come_and_go() -> None:
    """Only the first 256 streams keep a workspace, and all penalties are right."""
    x = torch.randn(300)
    expected = act_reg(x, "relu", l1=1.0).penalty
    before = configure()
    for stream in range(2, 602):
        emulation.use_stream(stream)
        assert torch.equal(act_reg(x, "relu", l1=1.0).penalty, expected)
    after = configure()
    assert after[2] - before[2] <= 256 and after[3] <= 1
    launches, memsets, *_ = (b - a for a, b in zip(before, after, strict=True))
    assert launches == 600 and memsets >= 600 - 256  # a temporary workspace is zeroed in each call
    emulation.use_stream(1)  # this stream was there before, so it has a workspace
    before = configure()
    act_reg(x, "relu")
    assert configure() == [before[0] + 1, *before[1:]]
    emulation.begin_capture()
    forward_random(x)
    emulation.end_capture()
    after = configure()
    assert after[0] == before[0] + 2 and after[3] == before[3]
    emulation.destroy_graphs()


def test_sizes_after_one_another() -> None:
    """Each launch leaves the workspace ready for the next one, for any grid."""
    for n in (20_000, 1, 4096, 0, 50_000):
        x = torch.randn(n)
        for p in (0.0, 0.5):
            ours, theirs = (
                f(x, "sigmoid", l1=1.0, p=p, seed=3, reduction="sum").penalty
                for f in (act_reg, reference.act_reg)
            )
            torch.testing.assert_close(ours, theirs)
