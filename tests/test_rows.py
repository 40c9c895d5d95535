"""The general form: channels, row weights, shared dimensions, shards, alpha dropout, tensors.

reference.py is the oracle. A call of the flat operator is an oracle too: what the general form adds
must not change the output or its mask.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap

from actreg_ext import collect_penalty, functional, record_penalties, reference
from actreg_ext.functional import Shard, act_reg, act_sums, dropout_mask
from actreg_ext.nn import ActReg
from tests.table import DTYPES, describe

# Channels last and first, narrow and wide, one row, one channel, several panels and chunks.
SHAPES = [
    (7,),
    (1, 5),
    (128, 1),
    (70, 33),
    (3, 2100),
    (9, 1025),
    (300, 8),
    (4, 6, 5),
    (2, 3, 9, 11),
    (2, 3, 100, 10),
    (40, 3, 7, 7),
    (0, 4),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"p": 0.3},
    {"p": 0.3, "penalty_on": "output"},
    {"p": 0.3, "dropout": "alpha"},
]


def example(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)


def row_weights(shape: tuple[int, ...], channel_dim: int | None) -> list[Tensor | None]:
    """No weights; one for each index of the first dimension; one for each row, some of them 0."""
    generator = torch.Generator().manual_seed(2)
    sizes = [1 if dim == channel_dim else size for dim, size in enumerate(shape)]
    first = [size if dim == 0 else 1 for dim, size in enumerate(sizes)]
    each = torch.rand(sizes, generator=generator)
    return [None, torch.rand(first, generator=generator), each * (each > 0.3)]


def results(f: Any, x: Tensor, activation: str, **options: Any) -> tuple[Any, Tensor]:
    """The sums and the gradient of a mix of them, with another factor for each channel."""
    x = x.detach().clone().requires_grad_()
    sums = f(x, activation, seed=3, **options)
    generator = torch.Generator().manual_seed(4)
    factor = torch.rand(sums.l1.shape, generator=generator).to(x.device, torch.float64)
    loss = 1.5 * sums.output.double().sum() + (sums.l1 * factor).sum() + (sums.l2 * factor).sum()
    loss.backward()
    assert x.grad is not None
    return sums, x.grad


def check(ours: Tensor, eager: Tensor, truth: Tensor) -> None:
    """Our largest error is at most twice that of PyTorch in that dtype, plus four roundings.

    In float64 the truth has errors too, of a sum of up to 6000 numbers: there 16 roundings.
    """
    if truth.numel():
        rounding = torch.finfo(ours.dtype).eps * truth.abs().max()
        roundings = 16 if eager.dtype is torch.float64 else 4
        allowed = 2 * (eager.double() - truth).abs().max() + roundings * rounding
        assert (ours.double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=describe)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_gradients(
    device: str, shape: tuple[int, ...], dtype: torch.dtype, activation: str
) -> None:
    x = example(shape, dtype, device)
    for channel_dim in [None, *range(len(shape))]:
        for weight, options in itertools.product(row_weights(shape, channel_dim), OPTIONS):
            given: dict[str, Any] = {**options, "channel_dim": channel_dim}
            if weight is not None:
                given["row_weight"] = weight.to(device)
            ours, dx = results(act_sums, x, activation, **given)
            eager, eager_dx = results(reference.act_sums, x, activation, **given)
            truth, true_dx = results(reference.act_sums, x.double(), activation, **given)
            check(ours.l1, eager.l1, truth.l1)
            check(ours.l2, eager.l2, truth.l2)
            check(dx, eager_dx, true_dx)
            check(ours.output, eager.output, truth.output)
            assert ours.output.dtype == dtype
            assert torch.equal(ours.count, eager.count) or dtype in (torch.half, torch.bfloat16)
            assert torch.allclose(ours.weight, eager.weight)
            if not options.get("dropout"):
                flat = act_reg(x, activation, seed=3, **options)
                assert torch.equal(ours.output, flat.output)


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_memory_order(device: str, layout: str) -> None:
    """The channels of a tensor are the same in every layout; the mask follows the memory."""
    x = example((3, 5, 4, 6), torch.float32, device)
    x = x.contiguous(memory_format=torch.channels_last) if layout != "transposed" else x.mT
    weight = torch.rand(3, 1, *x.shape[2:], device=device)
    for channel_dim, shared in ((1, ()), (1, (2, 3)), (0, (1,)), (3, (0,))):
        given: dict[str, Any] = {"channel_dim": channel_dim, "p": 0.4, "shared_dims": shared}
        if channel_dim == 1:
            given["row_weight"] = weight
        ours, dx = results(act_sums, x, "silu", **given)
        eager, eager_dx = results(reference.act_sums, x, "silu", **given)
        assert torch.equal(ours.output == 0, eager.output == 0)
        assert torch.allclose(ours.l1, eager.l1) and torch.allclose(dx, eager_dx, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch", "token"])
def test_penalty(device: str, reduction: str) -> None:
    x = example((6, 9, 5), torch.float64, device).requires_grad_()
    l1 = torch.rand(9, device=device, requires_grad=True)
    l2 = torch.rand((), device=device, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(6, 1, 5, device=device) > 0.4
    inputs = (x, l1, l2)
    for weight, p in itertools.product((None, mask, mask.int(), mask.half()), (0.0, 0.25)):
        options: dict[str, Any] = dict(l1=l1, l2=l2, p=p, channel_dim=1, reduction=reduction)
        options |= dict(seed=1, row_weight=weight)
        penalties = [f(x, "silu", **options).penalty for f in (act_reg, reference.act_reg)]
        assert penalties[0].dtype == torch.float64 and torch.allclose(*penalties)
        gradients = [torch.autograd.grad(penalty, inputs) for penalty in penalties]
        assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_rows_of_weight_0_are_left_out(device: str) -> None:
    """Padding may hold anything; with padding only, the penalty is 0."""
    x = example((4, 6), torch.float32, device)
    x[1:3] = float("nan")
    x.requires_grad_()
    weight = torch.tensor([1, 0, 0, 1], device=device).view(4, 1)
    penalty = act_reg(x, "gelu", l1=1.0, l2=1.0, row_weight=weight).penalty
    kept = act_reg(x[[0, 3]].detach(), "gelu", l1=1.0, l2=1.0).penalty
    assert torch.allclose(penalty, kept)
    for l1 in (1.0, torch.ones(6, device=device)):
        options: dict[str, Any] = {"channel_dim": 1} if isinstance(l1, Tensor) else {}
        nothing = act_reg(x, l1=l1, row_weight=0 * weight, **options).penalty
        assert nothing == 0
        (dx,) = torch.autograd.grad(nothing, x)
        assert (dx[[0, 3]] == 0).all()


def test_a_shard_has_its_block_of_the_mask(device: str) -> None:
    shape = (5, 7, 11)
    whole = dropout_mask(shape, 0.5, seed=9, device=device)
    for begin, end in (((0, 0, 0), (5, 7, 11)), ((1, 2, 3), (4, 7, 10)), ((4, 0, 10), (5, 1, 11))):
        block = tuple(slice(b, e) for b, e in zip(begin, end, strict=True))
        sizes = [e - b for b, e in zip(begin, end, strict=True)]
        shard = Shard(shape, begin)
        assert torch.equal(whole[block], dropout_mask(sizes, 0.5, 9, device, shard=shard))
    rows = dropout_mask((4, 5000), 0.5, 9, device, shard=Shard((9, 12345), (3, 6789)))
    assert torch.equal(rows, dropout_mask((9, 12345), 0.5, 9, device)[3:7, 6789:11789])
    far = Shard((2**40, 2**20), (2**39 + 5, 123))  # positions beyond 2^32 groups
    ours = act_reg(torch.ones(3, 99, device=device), "identity", p=0.5, seed=9, shard=far).output
    theirs = reference.act_reg(
        torch.ones(3, 99, device=device), "identity", p=0.5, seed=9, shard=far
    ).output
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shared", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_shared_dimensions_repeat_the_mask(device: str, shared: tuple[int, ...]) -> None:
    shape = (6, 130, 9)
    mask = dropout_mask(shape, 0.5, 9, device, shared_dims=shared)
    once = [1 if dim in shared else size for dim, size in enumerate(shape)]
    assert torch.equal(mask, dropout_mask(once, 0.5, 9, device).expand(shape))


def test_a_strided_input_has_the_mask_of_its_copy(device: str) -> None:
    """A half of a fused projection is read in place; dx and y are those of the copy."""
    fused = example((6, 40, 2 * 96), torch.float32, device)
    for part in (fused[..., :96], fused[..., 96:], fused[::2], fused[:, 3:20], fused[..., 1:18]):
        for channel_dim in (None, -1):
            options: dict[str, Any] = dict(p=0.3, channel_dim=channel_dim)
            ours, dx = results(act_sums, part, "gelu", **options)
            copied, copied_dx = results(act_sums, part.contiguous(), "gelu", **options)
            assert torch.equal(ours.output, copied.output) and torch.equal(ours.l1, copied.l1)
            assert torch.equal(dx, copied_dx)
        ours, copied = (act_reg(t, "silu", l2=0.1, p=0.3, seed=1) for t in (part, part.clone()))
        assert torch.equal(ours.output, copied.output) and ours.penalty == copied.penalty
        x = part.detach().clone().requires_grad_()
        gradient = torch.randn(*fused.shape, device=device).as_strided(part.shape, part.stride())
        y = act_reg(x, "silu", l2=0.1, p=0.3, seed=1).output
        strided, dense = (
            torch.autograd.grad(y, x, dy, retain_graph=True)[0]
            for dy in (gradient, gradient.contiguous())
        )
        assert torch.equal(strided, dense)
    half = fused.clone()[..., :96]
    expected = act_reg(half, "relu", p=0.3, seed=1).output
    functional.act_reg_(half, "relu", p=0.3, seed=1)
    assert torch.equal(half, expected)


def test_the_number_of_threads_does_not_matter() -> None:
    threads = torch.get_num_threads()
    try:
        for shape, channel_dim in (((3000, 65), 1), ((8, 20, 40, 60), 1), ((2, 2**17), 1)):
            x = example(shape, torch.float32)
            weight = torch.rand(shape[0], *[1] * (len(shape) - 1))
            options: dict[str, Any] = dict(channel_dim=channel_dim, row_weight=weight, p=0.1)
            found = []
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                found.append(results(act_sums, x, "gelu", **options))
            for sums, dx in found[1:]:
                assert all(map(torch.equal, sums, found[0][0])) and torch.equal(dx, found[0][1])
    finally:
        torch.set_num_threads(threads)


def test_alpha_dropout_keeps_mean_and_variance(device: str) -> None:
    x = torch.randn(2**18, device=device)
    for p in (0.1, 0.4):
        y = act_reg(x, "identity", p=p, dropout="alpha", seed=2).output
        assert abs(y.mean()) < 0.02 and abs(y.std() - 1) < 0.02
        theirs = F.alpha_dropout(x, p, training=True)
        dropped = torch.mode(y).values
        assert torch.allclose(dropped, torch.mode(theirs).values, atol=2e-3)
        assert torch.equal(y != dropped, dropout_mask(x.shape, p, 2, device))
    assert (act_reg(x, "selu", p=1.0, dropout="alpha").output == 0).all()


@pytest.mark.parametrize("case", ["channels", "weights", "shared", "alpha", "shard", "output"])
@pytest.mark.parametrize("activation", ["gelu", "tanh", "softplus"])
def test_gradcheck(device: str, activation: str, case: str) -> None:
    x = example((3, 4, 2), torch.float64, device).requires_grad_()
    l1 = torch.rand(4, device=device, dtype=torch.float64, requires_grad=True)
    l2 = torch.rand((), device=device, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {
        "channels": {},
        "weights": dict(row_weight=torch.rand(3, 1, 2, device=device), p=0.3),
        "shared": dict(shared_dims=(1,), p=0.3),
        "alpha": dict(dropout="alpha", p=0.3),
        "shard": dict(shard=Shard((5, 9, 3), (1, 2, 1)), p=0.5),
        "output": dict(penalty_on="output", p=0.3),
    }[case]

    def f(x: Tensor, l1: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(act_reg(x, activation, l1=l1, l2=l2, channel_dim=1, seed=1, **options))

    assert gradcheck(f, (x, l1, l2), check_forward_ad=True)
    assert gradgradcheck(f, (x, l1, l2))


def test_transforms(device: str) -> None:
    x = example((3, 4, 5), torch.float64, device)
    weight = torch.rand(3, 4, 1, device=device)

    def f(x: Tensor, w: Tensor) -> Tensor:
        sums = act_sums(x, "gelu", channel_dim=1, row_weight=w)
        return torch.cat((sums.l1, sums.l2, sums.count.double()))

    each = torch.stack([f(*example) for example in zip(x, weight, strict=True)])
    assert torch.allclose(vmap(f)(x, weight), each)
    _, tangent = jvp(lambda x: f(x, weight[0]), (x[0],), (torch.ones_like(x[0]),))
    x0 = x[0].clone().requires_grad_()
    rows = torch.autograd.functional.jacobian(lambda x: f(x, weight[0]), x0)
    assert torch.allclose(tangent, rows.sum((1, 2)))
    jacobians = vmap(torch.func.jacrev(f))(x, weight)
    assert torch.allclose(jacobians[0], rows)


def test_compiled_once_for_all_values(device: str) -> None:
    """New values of l1, l2 and p, given as tensors, do not compile again."""
    counter = CompileCounterWithBackend("aot_eager")
    x = example((6, 5), torch.float32, device).requires_grad_()

    @torch.compile(backend=counter, fullgraph=True)
    def f(x: Tensor, l1: Tensor, p: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            act_reg(x, "gelu", l1=l1, l2=0.1, p=p, channel_dim=1, row_weight=weight, seed=5)
        )

    for i in range(1, 12):
        l1 = torch.rand(5, device=device)
        p, weight = torch.tensor(0.08 * i, device=device), torch.rand(6, 1, device=device)
        options: dict[str, Any] = dict(channel_dim=1, row_weight=weight, seed=5)
        y, penalty = f(x, l1, p, weight)
        expected = act_reg(x, "gelu", l1=l1, l2=0.1, p=0.08 * i, **options)
        assert torch.equal(y == 0, expected.output == 0)
        assert torch.allclose(y, expected.output) and torch.allclose(penalty, expected.penalty)
        gradients = [torch.autograd.grad(a.sum() + b, x) for a, b in ((y, penalty), expected)]
        assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_p_as_a_tensor(device: str, p: float) -> None:
    x = example((5, 40), torch.float32, device).requires_grad_()
    for options in ({}, {"penalty_on": "output"}, {"channel_dim": 1}):
        calls = [
            act_reg(x, "relu", l1=0.5, l2=0.1, p=value, seed=8, **options)
            for value in (p, torch.tensor(p, device=device))
        ]
        assert torch.equal(calls[0].output, calls[1].output)
        assert torch.allclose(calls[0].penalty, calls[1].penalty)
        gradients = [torch.autograd.grad(y.sum() + penalty, x)[0] for y, penalty in calls]
        assert torch.allclose(*gradients)


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize(
    "options", [{"shared_dims": (2, 3)}, {"shared_dims": -1}, {"dropout": "alpha"}], ids=str
)
def test_module(device: str, options: dict[str, Any], compiles: bool) -> None:
    """ActReg gives what act_reg gives, in training and in eval mode; a record sees the sums."""
    x = example((5, 3, 4, 6), torch.float32, device).requires_grad_()
    layer = ActReg("silu", l1=0.5, l2=0.25, p=0.4, **options)
    module = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiles else layer
    assert ("dropout=alpha" if "dropout" in options else "shared_dims=") in repr(layer)
    if not compiles:  # the same seed in eager mode
        torch.manual_seed(3)
        y = layer(x)
        torch.manual_seed(3)
        expected = act_reg(x, "silu", l1=0.5, l2=0.25, p=0.4, **options)
        assert torch.equal(y, expected.output)
        assert torch.equal(collect_penalty(layer), expected.penalty)
        with record_penalties(sums=True) as record:
            layer(x)
        l1, l2 = record.sums(layer)[""]
        total = act_sums(x, "silu", p=0.4)
        assert torch.allclose(l1, total.l1) and torch.allclose(l2, total.l2)
    y = module(x)
    y.sum().backward()
    penalty = collect_penalty(layer)
    assert torch.allclose(penalty, act_reg(x, "silu", l1=0.5, l2=0.25).penalty)
    if "shared_dims" in options:
        is_dropped = y == 0
        dims = (2, 3) if options["shared_dims"] == (2, 3) else (3,)
        assert torch.equal(is_dropped.all(dims), is_dropped.any(dims)) and is_dropped.any()
    layer.eval()
    assert torch.allclose(module(x), F.silu(x))


def test_opcheck(device: str) -> None:
    x = example((3, 8, 4), torch.float32, device).requires_grad_()
    weight = torch.rand(3, 1, 4, device=device)
    state = torch.tensor([1, 2, 40000], device=device)
    attributes = ("gelu", (), None, False, None, "sum", (), False, 1, (2,), (9, 9, 9), (1, 1, 1))
    torch.library.opcheck(
        torch.ops.actreg.forward.default,
        (x, state, *attributes, True, weight),
        atol=1e-4,
        rtol=1e-4,
    )
    gradients = (torch.randn(3, 8, 4, device=device), torch.randn(3, 8, device=device).double())
    torch.library.opcheck(
        torch.ops.actreg.backward.default,
        (*gradients, x, state, *attributes, True, False, weight),
        atol=1e-4,
        rtol=1e-4,
    )


def test_shapes_on_meta() -> None:
    x = torch.empty(3, 8, 4, device="meta")
    sums = act_sums(x, "gelu", channel_dim=1, p=0.5)
    assert sums.output.shape == x.shape and sums.l1.shape == sums.count.shape == (8,)
    assert sums.l1.dtype == torch.float32 and sums.count.dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"channel_dim": 2}, ValueError, r"channel_dim must be in \[-2, 1\], but got 2"),
        ({"channel_dim": True}, TypeError, "channel_dim must be an int, but got True"),
        ({"l1": torch.ones(3)}, ValueError, r"of shape \[\]; .* pass channel_dim too"),
        ({"l1": torch.ones(3), "channel_dim": 1}, ValueError, r"\[4\], one for each channel"),
        ({"l2": torch.ones(4).half(), "channel_dim": 1}, TypeError, "float32 or float64"),
        ({"l1": torch.ones((), device="meta")}, ValueError, "input's device"),
        ({"l1": -1.0, "channel_dim": 1}, ValueError, "l1 must be finite and at least 0"),
        ({"row_weight": torch.ones(2)}, ValueError, r"broadcast to shape \[3, 4\]"),
        ({"row_weight": torch.ones(3, 4), "channel_dim": 1}, ValueError, r"\[3, 1\] \(size 1"),
        ({"row_weight": torch.ones(3, 1) * 1j}, TypeError, "bool, integers or real numbers"),
        ({"row_weight": torch.ones(3, 1, requires_grad=True)}, ValueError, "no gradient"),
        ({"row_weight": torch.ones(3).numpy()}, TypeError, "row_weight must be a tensor"),
        ({"shared_dims": None}, TypeError, "shared_dims must be ints, but got None"),
        ({"shared_dims": (0, -2)}, ValueError, "name each dimension once"),
        ({"shared_dims": (2,)}, ValueError, "shared_dims must be in"),
        ({"dropout": "gamma"}, ValueError, "dropout must be one of standard, alpha"),
        ({"dropout": "alpha", "penalty_on": "output"}, ValueError, "accepts only penalty_on"),
        ({"shard": Shard((3, 4), (1, 0))}, ValueError, "must lie within global_shape"),
        ({"shard": Shard((3,), (0,))}, ValueError, "must lie within global_shape"),
        ({"shard": 3}, TypeError, "two sequences of ints"),
        ({"p": torch.ones(2)}, ValueError, "must be 0-d"),
        ({"p": torch.tensor(0.5, requires_grad=True)}, ValueError, "no gradient"),
    ],
    ids=lambda value: describe(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("f", [act_reg, reference.act_reg], ids=["ours", "reference"])
def test_bad_input(f: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(error, match=text):
        f(torch.ones(3, 4), **{"p": 0.5, **options})
    assert torch.equal(state, torch.get_rng_state())


def test_a_0d_input_has_no_channel() -> None:
    with pytest.raises(ValueError, match="left out, because the input is 0-d"):
        act_sums(torch.tensor(1.0), channel_dim=0)
