"""temporal_penalty: values, axes, layouts, weights, derivatives, tracing, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.func import grad, hessian, jvp, vmap
from torch.testing import assert_close

from actreg_ext import ops, reference, temporal_penalty
from tests import tolerance

# (shape, the time dimension): time is the first, the middle and the last dimension.
AXES = [((9, 4, 6), 0), ((4, 9, 6), 1), ((4, 6, 9), -1)]
# Shapes of h and, after them, of weights that broadcast to h.
WEIGHTS = [(9, 4, 6), (9, 4, 1), (9, 1, 1), (4, 1), (6,), (), (9, 1, 6), (1, 4, 6)]


def both(h: Tensor, *arguments: Any, **options: Any) -> Iterator[list[Tensor]]:
    """The penalties of the operator and of the reference, then the gradients."""
    leaves = [h.detach().requires_grad_() for _ in range(2)]
    functions = (temporal_penalty, reference.temporal_penalty)
    pairs = zip(functions, leaves, strict=True)
    penalties = [f(leaf, *arguments, **options) for f, leaf in pairs]
    yield penalties
    yield [torch.autograd.grad(p, leaf)[0] for p, leaf in zip(penalties, leaves, strict=True)]


def assert_same(h: Tensor, *arguments: Any, **options: Any) -> None:
    for ours, theirs in both(h, *arguments, **options):
        assert_close(ours, theirs)


def numbers(values: Any) -> tolerance.Numbers:
    values = numpy.asarray(values)
    high = values.astype(float)
    return tolerance.Numbers(*map(torch.from_numpy, (high, (values - high).astype(float))))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "dim"), [((65, 2, 33), 0), ((7, 130, 3), 1), ((50, 70), -1)])
def test_accuracy(
    dtype: torch.dtype, device: str, shape: tuple[int, ...], dim: int, weighted: bool
) -> None:
    """Note [The rule] of tolerance.py; the truth is computed in numpy's longdouble."""
    h = torch.randn(shape, dtype=torch.float64).to(dtype)
    w = torch.randint(0, 3, shape[:-1] + (1,)) / 2 if weighted else torch.ones(())
    l2 = h.numel() / 8.0
    (penalty, eager), (dh, eager_dh) = both(h.to(device), l2, dim, w.to(device))
    exact = numpy.moveaxis(h.double().numpy().astype(numpy.longdouble), dim, 0)
    weight = numpy.moveaxis(w.double().expand(shape).numpy().astype(numpy.longdouble), dim, 0)
    pairs, differences = weight[1:] * weight[:-1], exact[1:] - exact[:-1]
    total = (pairs * differences**2).sum() * l2 / pairs.sum()
    truth = numbers(total[None])
    tolerance.assert_accurate(penalty[None], eager[None], truth, truth.high, [shape])
    edges = [(1, 1)] + [(0, 0)] * (h.dim() - 1)
    slopes = numpy.pad(2 * l2 / pairs.sum() * pairs * differences, edges)
    of_pairs = numpy.moveaxis(slopes[:-1] - slopes[1:], 0, dim).reshape(-1)
    size = numpy.moveaxis(abs(slopes[:-1]) + abs(slopes[1:]), 0, dim).reshape(-1)
    truth, unit = numbers(of_pairs), numbers(size).high
    places = range(h.numel())
    tolerance.assert_accurate(dh.flatten(), eager_dh.flatten(), truth, unit, places)


@pytest.mark.parametrize("function", [temporal_penalty, reference.temporal_penalty])
@pytest.mark.parametrize(("shape", "dim"), AXES)
def test_the_difference_is_along_time(
    function: Callable[..., Tensor], device: str, shape: tuple[int, ...], dim: int
) -> None:
    """h = 3 t: each difference along time is 3, and each one along another dimension is 0."""
    steps = torch.arange(9.0, device=device).reshape([9 if n == 9 else 1 for n in shape])
    h = (3 * steps).expand(shape).clone().requires_grad_()
    penalties = [function(h, 0.5, other).item() for other in range(3)]
    assert penalties == [0.5 * 9 if other == dim % 3 else 0 for other in range(3)]
    dh = torch.autograd.grad(function(h, 0.5, dim), h)[0].movedim(dim, 0)
    assert not dh[1:-1].any()
    assert_close(dh[-1], torch.full_like(dh[-1], 2 * 0.5 * 3 / (8 * 24)))
    assert_close(dh[0], -dh[-1])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_layouts(dtype: torch.dtype, device: str, order: tuple[int, ...], weighted: bool) -> None:
    for shape in ((9, 4, 6), (3, 5, 1030), (2, 2100, 3)):
        inverse = [order.index(d) for d in range(3)]
        h = torch.randn([shape[d] for d in order], device=device).to(dtype).permute(inverse)
        w = torch.rand(shape[0], shape[1], 1, device=device) if weighted else None
        for dim in range(3):
            assert_same(h, 2.0, dim, w)
            leaf = h.detach().requires_grad_()
            (dh,) = torch.autograd.grad(temporal_penalty(leaf, 1.0, dim, w), leaf)
            assert dh.stride() == h.stride() and dh.dtype == dtype
        assert_same(torch.randn(7, 8, 20, device=device).to(dtype)[:, ::2, 1:18:3], 2.0)
        assert_same(h.flatten()[1:], 2.0)  # not aligned


@pytest.mark.parametrize("shape", [(3, 70000), (67, 65600)])
def test_wide_steps(device: str, shape: tuple[int, ...]) -> None:
    h = torch.randn(shape, device=device)
    assert_same(h, 2.0)
    if shape[0] == 3:
        assert_same(h, 2.0, 0, torch.rand(3, 1, device=device))
        assert_same(h.T, 2.0, -1, torch.rand(70000, 1, device=device))


@pytest.mark.parametrize("shape", WEIGHTS)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float16, torch.float64])
def test_weights_broadcast(device: str, shape: tuple[int, ...], kind: torch.dtype) -> None:
    w = torch.randint(0, 4, shape, device=device).to(kind)
    for dims in ((0, 1, 2), (1, 0, 2), (1, 2, 0)):  # the dimensions in memory
        h = torch.randn([(9, 4, 6)[d] for d in dims], device=device)
        h = h.permute([dims.index(d) for d in range(3)])
        for dim in range(3):
            assert_same(h, 1.0, dim, w)
            assert_same(h, 1.0, dim, w.expand_as(h))


@pytest.mark.parametrize("function", [temporal_penalty, reference.temporal_penalty])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_a_mask_leaves_out(
    function: Callable[..., Tensor], dtype: torch.dtype, device: str, bad: float
) -> None:
    """A difference counts only if both steps are valid. The others may be infinite or NaN."""
    h = torch.arange(12.0, device=device).square().reshape(6, 2).to(dtype)
    mask = torch.tensor([1, 1, 0, 1, 1, 1], dtype=torch.bool, device=device)[:, None]
    differences = (h[1:] - h[:-1]).float()[[0, 3, 4]]
    h[2] = bad
    h.requires_grad_()
    penalty = function(h, 3.0, 0, mask)
    assert_close(penalty, 3 * differences.square().mean().to(penalty))
    (dh,) = torch.autograd.grad(penalty, h)
    assert dh.isfinite().all() and not dh[2].any() and dh[[0, 1, 3, 5]].all()
    nothing = function(h, 3.0, 0, torch.zeros(2, device=device))
    assert nothing == 0 and not torch.autograd.grad(nothing, h)[0].any()


@pytest.mark.parametrize("function", [temporal_penalty, reference.temporal_penalty])
@pytest.mark.parametrize("shape", [(0,), (1,), (1, 5), (0, 5), (7, 0), (1, 3, 1100)])
def test_no_pairs(function: Callable[..., Tensor], device: str, shape: tuple[int, ...]) -> None:
    h = torch.randn(shape, device=device, requires_grad=True)
    for weight in (None, torch.ones(shape, device=device)):
        penalty = function(h, 1.0, 0, weight)
        assert penalty.shape == () and penalty == 0
        assert not torch.autograd.grad(penalty, h)[0].any()


def test_dtype_of_the_penalty(dtype: torch.dtype, device: str) -> None:
    h = torch.full((2, 3), 300.0, dtype=dtype, device=device)
    h[1] = -300  # the squares overflow in float16
    penalty = temporal_penalty(h, torch.tensor(2.0, dtype=torch.float64))
    assert penalty.item() == 720_000
    assert penalty.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    h[0] = float("inf")
    assert temporal_penalty(h, 0.0) == 0
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        assert temporal_penalty(h[1:].expand(2, 3) * 1, 1.0).dtype == penalty.dtype


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(60, 40, 64), (3, 60, 1000), (5, 70000)])
def test_threads_change_no_bit(shape: tuple[int, ...]) -> None:
    h, w = torch.randn(shape), torch.rand(*shape[:-1], 1)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        for dim in range(len(shape)):
            leaf = h.clone().requires_grad_()
            penalty = temporal_penalty(leaf, 1.0, dim, w)
            results.append((count, dim, penalty, torch.autograd.grad(penalty, leaf)[0]))
    for _, dim, *result in results:
        assert all(map(torch.equal, result, results[dim][2:]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [0, 1])
def test_gradcheck(weighted: bool, dim: int) -> None:
    h = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    l2 = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    w = torch.rand(4, 1) if weighted else None

    def f(h: Tensor, l2: Tensor) -> Tensor:
        return temporal_penalty(h, l2, dim, w)

    modes = {"check_forward_ad": True, "check_batched_grad": True}
    torch.autograd.gradcheck(f, (h, l2), check_batched_forward_grad=True, **modes)
    torch.autograd.gradgradcheck(f, (h, l2), check_fwd_over_rev=True, check_rev_over_rev=True)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": grad,
    "hessian": hessian,
    "jvp of grad": lambda f: lambda h: jvp(grad(f), (h,), (h.cos(),)),
    "vmap": vmap,
    "vmap of dimension 1": lambda f: vmap(f, in_dims=1),
    "vmap of grad": lambda f: vmap(grad(f)),
    "third derivative": lambda f: lambda h: jvp(hessian(lambda x: f(x.sin())), (h,), (h.cos(),)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_transforms(name: str, device: str, weighted: bool) -> None:
    h = torch.randn(4, 3, 5, device=device, dtype=torch.float64).movedim(2, 0)
    w = torch.rand(3, device=device) if weighted else None
    ours, theirs = (
        TRANSFORMS[name](lambda h, f=f: f(h, 0.5, -1, w))(h)
        for f in (temporal_penalty, reference.temporal_penalty)
    )
    assert_close(ours, theirs)


def test_vmap_of_nothing(device: str) -> None:
    h = torch.empty(0, 4, 3, device=device)
    assert vmap(lambda h: ops.temporal(h, None, 0, ()))(h).shape == (0,)
    assert vmap(grad(lambda h: ops.temporal(h, None, 0, ())))(h).shape == h.shape


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not")  # opcheck's
@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted: bool) -> None:
    pytest.importorskip("expecttest", reason="torch.library.opcheck needs expecttest")
    h = torch.randn(4, 3, 2).permute(2, 0, 1).requires_grad_()
    arguments = (h, torch.rand(4, 1) if weighted else None, 1, [1, 2, 0])
    torch.library.opcheck(ops.temporal, arguments)
    torch.library.opcheck(ops.temporal_backward, (torch.ones((), requires_grad=True), *arguments))


def test_what_is_kept() -> None:
    """The backward keeps h and the weights, in the size they were given in."""
    h, w = torch.randn(6, 3, 4, requires_grad=True), torch.rand(6, 1, 1)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        total = ops.temporal(h, w, 0, ())
    assert [t.data_ptr() for t in kept] == [h.data_ptr(), w.data_ptr()]
    assert kept[1].shape == w.shape
    total.backward()
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


@pytest.mark.usefixtures("nothing_compiled_yet")
@pytest.mark.parametrize("weighted", [False, True])
def test_compile(device: str, weighted: bool) -> None:
    """Another l2 or another length does not compile again and again."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(temporal_penalty, fullgraph=True, backend=counter)
    for i in range(1, 6):
        h = torch.randn(3, 5 + i, 4, device=device, requires_grad=True)
        w = torch.rand(3, 5 + i, 1, device=device) > 0.3 if weighted else None
        results = [f(h, i / 7, 1, w) for f in (compiled, temporal_penalty)]
        assert_close(*results)
        assert_close(*(torch.autograd.grad(result, h)[0] for result in results))
    assert counter.frame_count <= 3


def test_export_and_fake_tensors() -> None:
    class Loss(torch.nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return temporal_penalty(h, 0.5)

    h = torch.randn(4, 3)
    program = torch.export.export(Loss(), (h,))
    assert "actreg" not in str(program.graph)
    assert_close(program.module()(h), Loss()(h))
    with FakeTensorMode():
        fake = torch.empty(4, 3, 2, dtype=torch.bfloat16).permute(2, 0, 1).requires_grad_()
        penalty = temporal_penalty(fake, 1.0, 1, torch.ones(4, 1))
        assert penalty.dtype is torch.float32 and penalty.shape == ()
        assert torch.autograd.grad(penalty, fake)[0].stride() == fake.stride()


H = torch.zeros(3, 4)
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"h": [1.0]}, TypeError, r"h must be a dense .* but got \[1.0\] \(list\)"),
    ({"h": H.long()}, TypeError, "h must be .* float32, float64.* torch.int64"),
    ({"h": torch.zeros(())}, ValueError, "h must have a time dimension, but got a 0-d tensor"),
    ({"dim": 2}, ValueError, r"dim.* between -2 and 1 for h of shape \[3, 4\], but got 2"),
    ({"dim": -3}, ValueError, "dim.*-3"),
    ({"dim": 0.0}, TypeError, "dim must be an int, but got 0.0"),
    ({"dim": True}, TypeError, "dim must be an int, but got True"),
    ({"l2": -1.0}, ValueError, "l2 must be finite and at least 0, but got -1.0"),
    ({"l2": float("inf")}, ValueError, "l2 must be finite"),
    ({"l2": float("nan")}, ValueError, "l2 must be finite"),
    ({"l2": "1"}, TypeError, "l2 must be a real number, but got '1'"),
    ({"l2": torch.ones(1)}, ValueError, r"l2, .* 0-d .* shape \[1\]"),
    ({"l2": torch.tensor(1)}, ValueError, "l2, .* floating-point .* torch.int64"),
    ({"row_weight": 1.0}, TypeError, "row_weight must be None or a dense tensor.* but got 1.0"),
    ({"row_weight": H + 0j}, TypeError, "row_weight .* real dtype, .* torch.complex64"),
    ({"row_weight": torch.ones(3)}, ValueError, r"broadcast to .* \[3, 4\], but got shape \[3\]"),
    ({"row_weight": torch.ones(1, 3, 4)}, ValueError, r"row_weight .* got shape \[1, 3, 4\]"),
    ({"row_weight": H.clone().requires_grad_()}, ValueError, "row_weight.*detach"),
    ({"row_weight": H.to("meta")}, ValueError, "row_weight must be on cpu, .* on meta"),
]


@pytest.mark.parametrize("function", [temporal_penalty, reference.temporal_penalty])
@pytest.mark.parametrize(("arguments", "error", "text"), BAD_CALLS)
def test_bad_calls(
    function: Callable[..., Tensor], arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        function(**{"h": H, "l2": 1.0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((H, None, 2, []), "dim is 2, but h has 2"),
        ((H, None, 0, [0, 0]), "permutation"),
        ((H, torch.ones(3), 0, []), r"weights of shape \[3\] do not broadcast"),
        ((H, H.to("meta"), 0, []), "the weights are on"),
        ((H.to("meta"), H, 0, []), "the weights are on"),
    ],
)
def test_bad_calls_of_the_operators(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=text):
        ops.temporal(*arguments)
    with pytest.raises((ValueError, RuntimeError), match=text):
        ops.temporal_backward(torch.ones(()), *arguments)
