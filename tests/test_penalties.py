"""The penalties of penalties.py against their definitions, written for the whole activation."""

from __future__ import annotations

import copy
import doctest
import io
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence

from actreg_ext import dead_units, functional, hoyer, l1_controller, penalties, reference
from actreg_ext.penalties import (
    DeadUnits,
    GroupLasso,
    Hoyer,
    HoyerSquared,
    KLTarget,
    L1Controller,
    LogPenalty,
    WeightedL1,
)
from actreg_ext.reference import ActSums

CHANNELS = 4
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)


def weight() -> Tensor:
    return WEIGHT


@pytest.fixture(params=[reference.act_sums, functional.act_sums], ids=["reference", "kernel"])
def act_sums(request: pytest.FixtureRequest) -> Callable[..., ActSums]:
    return request.param


# Definitions. t: the activation as [C, rows]; w: the weights of the rows; n: their sum.


def divided(total: Tensor, t: Tensor, n: Tensor, reduction: str) -> Tensor:
    return total / {"row": n, "mean": n * len(t), "sum": torch.ones_like(n)}[reduction]


def weighted_l1(t: Tensor, w: Tensor, n: Tensor, reduction: str) -> Tensor:
    return divided((WEIGHT[: len(t), None].to(t) * t.abs() * w).sum(), t, n, reduction)


def kl_target(t: Tensor, w: Tensor, n: Tensor) -> Tensor:
    mean = (t * w).sum(1) / n
    return kl_divergence(Bernoulli(torch.full_like(mean, 0.1)), Bernoulli(mean)).sum()


def hoyer_of(t: Tensor, w: Tensor, n: Tensor, power: int, per_channel: bool, norm: bool) -> Tensor:
    if not per_channel:
        t, w, n = t.flatten()[None], w.repeat(len(t)), n * len(t)
    measure = (t * w).norm(p=1, dim=1) / (t * w.sqrt()).norm(p=2, dim=1)
    return ((measure / n.sqrt() if norm else measure) ** power).sum()


def group_lasso(t: Tensor, w: Tensor, n: Tensor, reduction: str) -> Tensor:
    return divided((n.sqrt() * (t * w.sqrt()).norm(dim=1)).sum(), t, n, reduction)


def log_penalty(t: Tensor, w: Tensor, n: Tensor) -> Tensor:
    return torch.log(1 + (t.abs() * w).sum(1) / n / 0.1).sum()


Definition = Callable[[Tensor, Tensor, Tensor], Tensor]
CASES: dict[str, tuple[Callable[[], nn.Module], Definition]] = {
    **{
        f"WeightedL1-{d}": (
            partial(WeightedL1, 0.7, WEIGHT, reduction=d),
            partial(weighted_l1, reduction=d),
        )
        for d in ("row", "mean", "sum")
    },
    "WeightedL1-function": (
        partial(WeightedL1, 0.7, weight),
        partial(weighted_l1, reduction="row"),
    ),
    "KLTarget": (partial(KLTarget, 0.7, rate=0.1), kl_target),
    **{
        f"{kind.__name__}-{per_channel}-{normalize}": (
            partial(kind, 0.7, per_channel=per_channel, normalize=normalize),
            partial(hoyer_of, power=power, per_channel=per_channel, norm=normalize),
        )
        for power, kind in enumerate((Hoyer, HoyerSquared), 1)
        for per_channel in (False, True)
        for normalize in (False, True)
    },
    **{
        f"GroupLasso-{d}": (
            partial(GroupLasso, 0.7, reduction=d),
            partial(group_lasso, reduction=d),
        )
        for d in ("row", "mean", "sum")
    },
    "LogPenalty": (partial(LogPenalty, 0.7, eps=0.1), log_penalty),
    "L1Controller": (
        partial(L1Controller, 0.1, l1=0.7),
        lambda t, w, n: (t.abs() * w).sum() / (n * len(t)),
    ),
}
# Of each class one, for what does not depend on the options.
SOME = [
    "WeightedL1-row",
    "WeightedL1-function",
    "KLTarget",
    "Hoyer-False-False",
    "HoyerSquared-True-True",
    "GroupLasso-row",
    "LogPenalty",
    "L1Controller",
]
some = pytest.mark.parametrize("case", SOME)
# shape, channel_dim; the last two have one row and one channel
LAYOUTS = [((5, 3, 4), -1), ((4, 5, 3), 0), ((5, 4, 3), 1), ((1, 4), 1), ((6, 1), 1)]


def made(case: str, channels: int = CHANNELS) -> nn.Module:
    """The penalty of a case, for fewer channels if the input has fewer."""
    build = CASES[case][0]
    if case.startswith("WeightedL1") and channels < CHANNELS:
        return WeightedL1(0.7, WEIGHT[:channels], build.keywords.get("reduction", "row"))
    return build()


def row_weights(kind: str, shape: tuple[int, ...], channel_dim: int) -> Tensor | None:
    rows = list(shape)
    rows[channel_dim] = 1
    if kind == "none":
        return None
    if kind == "mask":
        mask = torch.rand(rows) < 0.6
        mask.view(-1)[0] = True
        return mask
    return torch.rand(rows, dtype=torch.float64) + 0.1


@pytest.mark.pairs
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("weights", ["none", "mask", "real"])
def test_definition(
    act_sums: Any,
    device: str,
    case: str,
    layout: tuple[tuple[int, ...], int],
    weights: str,
) -> None:
    """Value and gradient are those of the definition, applied to the whole activation."""
    shape, channel_dim = layout
    activation = "sigmoid" if case == "KLTarget" else "tanh"
    x = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    row_weight = row_weights(weights, shape, channel_dim)
    row_weight = None if row_weight is None else row_weight.to(device)
    penalty = made(case, shape[channel_dim]).to(device)
    if case == "WeightedL1-function":
        penalty = WeightedL1(0.7, lambda: WEIGHT[: shape[channel_dim]].to(device))
    ours = penalty(act_sums(x, activation, channel_dim=channel_dim, row_weight=row_weight))

    a = getattr(torch, activation)(x)
    t = a.movedim(channel_dim, 0).flatten(1)
    w = torch.ones_like(a) if row_weight is None else row_weight.to(a).expand(shape)
    w = w.movedim(channel_dim, 0).flatten(1)[0]
    expected = 0.7 * CASES[case][1](t, w, w.sum())

    assert ours.shape == () and ours.dtype == torch.float64
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-9)
    (dx,), (true_dx,) = (torch.autograd.grad(value, x) for value in (ours, expected))
    torch.testing.assert_close(dx, true_dx, rtol=1e-6, atol=1e-9)


@some
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_in_float32_give_a_penalty_in_float32(
    act_sums: Any, case: str, dtype: torch.dtype
) -> None:
    x = torch.randn(6, CHANNELS, dtype=dtype, requires_grad=True)
    penalty = made(case)(act_sums(x, "sigmoid", channel_dim=1))
    assert penalty.dtype == torch.float32
    true = made(case)(act_sums(x.double(), "sigmoid", channel_dim=1))
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(penalty.double(), true, rtol=tolerance, atol=0)
    penalty.backward()
    assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.parametrize("case", CASES)
def test_rows_of_weight_0_only(act_sums: Any, case: str) -> None:
    x = torch.randn(3, CHANNELS, requires_grad=True)
    row_weight = torch.zeros(3, 1)
    penalty = made(case)(act_sums(x, "sigmoid", channel_dim=1, row_weight=row_weight))
    assert penalty == 0
    penalty.backward()
    assert not x.grad.any()


@pytest.mark.parametrize("case", CASES)
def test_no_rows(act_sums: Any, case: str) -> None:
    x = torch.empty(0, CHANNELS, requires_grad=True)
    penalty = made(case)(act_sums(x, "sigmoid", channel_dim=1))
    assert penalty == 0
    penalty.backward()


@pytest.mark.parametrize("case", CASES)
def test_a_dead_channel_has_gradient_0(act_sums: Any, case: str) -> None:
    """Nothing is NaN at 0, also if all channels are dead."""
    alive = torch.tensor([1.0, 1.0, 0.0, 0.0])
    for scale in (alive, 0 * alive):
        x = (torch.rand(5, CHANNELS) * 0.9 * scale).requires_grad_()
        penalty = made(case)(act_sums(x, "identity", channel_dim=1))
        penalty.backward()
        assert penalty.isfinite() and x.grad.isfinite().all()
        assert not x.grad[:, 2:].any()


@pytest.mark.parametrize("case", [case for case in CASES if case != "L1Controller"])
def test_gradcheck(act_sums: Any, case: str) -> None:
    x = torch.randn(3, CHANNELS, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        sums = act_sums(x, "sigmoid", channel_dim=1, row_weight=torch.tensor([[1.0], [0.0], [0.5]]))
        return made(case)(sums)

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)


def test_compiled(act_sums: Any, nothing_compiled_yet: None) -> None:
    """The sums and every penalty in one graph; each penalty has its own share in the gradient."""
    modules = [made(case) for case in SOME]
    factors = torch.rand(len(SOME))

    def penalties_of(x: Tensor) -> Tensor:
        sums = act_sums(x, "sigmoid", channel_dim=1)
        return torch.stack([module(sums) for module in modules])

    x = torch.randn(6, CHANNELS, requires_grad=True)
    results = []
    for f in (penalties_of, torch.compile(penalties_of, backend="aot_eager", fullgraph=True)):
        values = f(x)
        results.append((values, *torch.autograd.grad(values @ factors, x)))
    torch.testing.assert_close(results[0], results[1])


@some
def test_autocast_does_not_matter(act_sums: Any, case: str) -> None:
    sums = act_sums(torch.randn(6, CHANNELS), "sigmoid", channel_dim=1)
    expected = made(case)(sums)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(case)(sums), expected)


@some
def test_copies(act_sums: Any, case: str) -> None:
    """A copy, a pickled module and a loaded state_dict compute the same."""
    penalty = made(case)
    sums = act_sums(torch.randn(6, CHANNELS), "sigmoid", channel_dim=1)
    penalty(sums)
    if isinstance(penalty, L1Controller):
        penalty.step()
    loaded = made(case)
    loaded.load_state_dict(penalty.state_dict())
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty)), loaded):
        assert torch.equal(other(sums), penalty(sums))
        assert repr(other) == repr(penalty)


def test_repr() -> None:
    assert repr(WeightedL1(torch.tensor(0.5), WEIGHT)) == (
        "WeightedL1(coefficient=<tensor>, reduction=row)"
    )
    assert repr(KLTarget(0.5, 0.1)) == "KLTarget(coefficient=0.5, rate=0.1, eps=1e-06)"
    assert repr(Hoyer(0.5)) == "Hoyer(coefficient=0.5, per_channel=False, normalize=False)"
    assert repr(DeadUnits(3)) == "DeadUnits(3, unit=step)"


# Coefficients


def test_coefficient_may_be_a_tensor(act_sums: Any) -> None:
    x = torch.randn(6, CHANNELS)
    sums = act_sums(x, "relu", channel_dim=1)
    for dtype in (torch.float32, torch.float64):
        penalty = LogPenalty(torch.tensor(0.5, dtype=dtype))
        assert torch.equal(penalty(sums), LogPenalty(0.5)(sums))
        assert "coefficient" in penalty.state_dict()
    learned = nn.Parameter(torch.tensor(0.5))
    penalty = LogPenalty(learned)
    penalty(sums).backward()
    assert list(penalty.parameters()) == [learned]
    torch.testing.assert_close(learned.grad, LogPenalty(1.0)(sums))


def test_coefficient_0_switches_off(act_sums: Any) -> None:
    x = torch.full((2, 1), math.inf, requires_grad=True)
    penalty = GroupLasso(0.0)(act_sums(x, "relu", channel_dim=1))
    assert penalty == 0
    penalty.backward()
    assert not x.grad.any()


# Each penalty


def test_weighted_l1_is_the_loss_of_a_standard_sae(act_sums: Any) -> None:
    """As in SAELens with lp_norm=1: the gradient reaches the encoder and the decoder."""
    l1_coefficient = 5.0
    w_dec = nn.Parameter(torch.randn(CHANNELS, 3))
    x = torch.randn(2, 7, CHANNELS, requires_grad=True)
    penalty = WeightedL1(l1_coefficient, lambda: w_dec.norm(dim=1))
    ours = penalty(act_sums(x, "relu", channel_dim=-1))
    weighted = torch.relu(x) * w_dec.norm(dim=1)
    expected = (l1_coefficient * weighted.norm(p=1, dim=-1)).mean()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, w_dec)), torch.autograd.grad(expected, (x, w_dec))
    )
    assert not penalty.state_dict()


class Sae(nn.Module):
    """A model whose penalty reads the norms of the model's own decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(CHANNELS, 3)
        self.penalty = WeightedL1(1.0, self.norms)

    def norms(self) -> Tensor:
        return self.decoder.weight.norm(dim=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_model_reads_its_own_decoder(act_sums: Any, copied: Any) -> None:
    model = Sae()
    other = copied(model)
    with torch.no_grad():
        other.decoder.weight.zero_()
    sums = act_sums(torch.rand(2, CHANNELS), "relu", channel_dim=1)
    assert other.penalty(sums) == 0 and model.penalty(sums) > 0
    assert list(model.state_dict()) == ["decoder.weight", "decoder.bias"]


def test_weights_may_be_learned(act_sums: Any) -> None:
    parameter = nn.Parameter(torch.ones(CHANNELS))
    penalty = WeightedL1(1.0, parameter, "sum")
    sums = act_sums(torch.rand(2, CHANNELS), "relu", channel_dim=1)
    penalty(sums).backward()
    assert list(penalty.parameters()) == [parameter]
    torch.testing.assert_close(parameter.grad, sums.l1)


def test_kl_is_clamped(act_sums: Any) -> None:
    """Means of 0, of 1 and above 1: finite, with gradient 0."""
    x = torch.tensor([[0.0, 1.0, 7.0, 0.5]], dtype=torch.float64, requires_grad=True)
    penalty = KLTarget(1.0, 0.1, eps=1e-3)(act_sums(x, "identity", channel_dim=1))
    means = torch.tensor([1e-3, 1 - 1e-3, 1 - 1e-3, 0.5], dtype=torch.float64)
    divergence = kl_divergence(Bernoulli(torch.full_like(means, 0.1)), Bernoulli(means))
    torch.testing.assert_close(penalty, divergence.sum())
    penalty.backward()
    assert not x.grad[0, :3].any() and x.grad[0, 3] > 0


def test_hoyer_squared_counts_equal_elements(act_sums: Any) -> None:
    x = torch.tensor([3.0, -3.0, 3.0, 0.0, 0.0])
    sums = act_sums(x, "identity")
    torch.testing.assert_close(HoyerSquared(1.0)(sums), torch.tensor(3.0))
    torch.testing.assert_close(Hoyer(1.0)(sums), torch.tensor(math.sqrt(3)))
    torch.testing.assert_close(HoyerSquared(1.0)(act_sums(7 * x, "identity")), torch.tensor(3.0))


def test_hoyer_squared_pushes_small_elements_down_and_large_ones_up(act_sums: Any) -> None:
    x = torch.tensor([0.1, 0.2, 4.0, 4.0], requires_grad=True)
    sums = act_sums(x, "relu")
    HoyerSquared(1.0)(sums).backward()
    h = (sums.l1 / sums.l2).detach()
    torch.testing.assert_close(x.grad, 2 * h * (1 - h * x.detach()))
    assert (x.grad > 0).tolist() == [True, True, False, False]


def test_normalized_hoyer_does_not_depend_on_the_scale_of_the_weights(act_sums: Any) -> None:
    x, w = torch.randn(6, CHANNELS), torch.rand(6, 1)
    for kind in (Hoyer, HoyerSquared):
        penalty = kind(1.0, per_channel=True, normalize=True)
        once, thrice = (
            penalty(act_sums(x, "relu", channel_dim=1, row_weight=f * w)) for f in (1, 3)
        )
        torch.testing.assert_close(once, thrice)


# L1Controller


def batch(active: int, rows: int = 8, device: str = "cpu") -> Tensor:
    """Rows of 10 units of which some are active, by the reference's act_sums a share of a tenth."""
    return torch.cat((torch.ones(rows, active), torch.zeros(rows, 10 - active)), 1).to(device)


def test_controller_by_hand(act_sums: Any, device: str) -> None:
    controller = L1Controller(0.2, l1=0.5, gain=0.1, damping=0.7).to(device)
    l1, before = 0.5, 0.0
    for active in (10, 3, 3, 0, 1):
        controller(act_sums(batch(active, device=device), "relu", channel_dim=1))
        controller.step()
        error = max(-1.0, min(1.0, math.log(active / 2))) if active else -1.0
        l1 *= math.exp(0.1 * error + 0.7 * (error - before))
        before = error
        assert math.isclose(controller.l1.item(), l1, rel_tol=1e-5)
        assert math.isclose(controller.share.item(), active / 10, rel_tol=1e-6)
    assert controller.l1.dtype == torch.float32 and controller.l1.shape == ()


def test_controller_counts_all_calls_of_a_step(act_sums: Any) -> None:
    """Calls with other numbers of rows and channels, with row weights; not calls in eval mode."""
    controller = L1Controller(0.5)
    controller(act_sums(batch(4), "relu", channel_dim=1))
    mask = torch.tensor([[1.0], [0.0], [1.0]])
    controller(act_sums(torch.ones(3, 5), "relu", channel_dim=1, row_weight=mask))
    controller(act_sums(torch.tensor([1.0, 0.0]), "relu"))
    controller.eval()(act_sums(torch.ones(100), "relu"))
    controller.step()
    torch.testing.assert_close(controller.share, torch.tensor((32 + 10 + 1) / (80 + 10 + 2)))
    assert controller.active == 0 and controller.elements == 0


def test_controller_takes_the_number_of_rows(act_sums: Any) -> None:
    controller = L1Controller(0.5)
    w = torch.full((8, 1), 0.25)
    controller.observe(act_sums(batch(4), "relu", channel_dim=1, row_weight=w), count_rows=8)
    controller.step()
    torch.testing.assert_close(controller.share, torch.tensor(0.4))


def test_controller_without_rows_changes_nothing(act_sums: Any) -> None:
    controller = L1Controller(0.5, l1=0.25)
    before = copy.deepcopy(controller.state_dict())
    controller.step()
    controller.step(act_sums(batch(4), "relu", row_weight=torch.zeros(8, 1)))
    assert all(torch.equal(value, before[name]) for name, value in controller.state_dict().items())


def test_controller_stays_within_its_bounds(act_sums: Any) -> None:
    controller = L1Controller(0.5, l1=0.1, gain=5.0, damping=0.0, min_l1=0.01, max_l1=1.0)
    for active, bound in ((10, 1.0), (0, 0.01), (0, 0.01), (10, 1.0)):
        for _ in range(3):
            controller.step(act_sums(batch(active), "relu", channel_dim=1))
        torch.testing.assert_close(controller.l1, torch.tensor(bound))


def test_step_before_the_backward(act_sums: Any) -> None:
    """The backward uses the l1 of its forward."""
    controller = L1Controller(0.5, l1=0.25, reduction="sum")
    x = torch.ones(3, 2, requires_grad=True)
    penalty = controller(act_sums(x, "relu", channel_dim=1))
    controller.step()
    penalty.backward()
    assert controller.l1 != 0.25 and (x.grad == 0.25).all()


def test_l1_stays_the_same_tensor(act_sums: Any) -> None:
    """So `controller.l1` may be passed as l1 of act_reg, also in a captured graph."""
    controller = L1Controller(0.5)
    l1, address = controller.l1, controller.l1.data_ptr()
    controller.step(act_sums(batch(10), "relu", channel_dim=1))
    assert controller.l1 is l1 and l1.data_ptr() == address
    x = torch.rand(4, 3)
    expected = reference.act_reg(x, "relu", l1=l1.item()).penalty
    torch.testing.assert_close(reference.act_reg(x, "relu", l1=l1).penalty, expected)


def test_controller_keeps_float32(act_sums: Any) -> None:
    controller = L1Controller(0.5, l1=0.123456789)
    before = controller.l1.clone()
    for move in (nn.Module.half, nn.Module.bfloat16, nn.Module.double):
        move(controller)
        assert torch.equal(controller.l1, before) and controller.l1.dtype == torch.float32
    assert controller.to("meta").l1.device.type == "meta"


def test_compiled_controller(act_sums: Any, nothing_compiled_yet: None) -> None:
    eager = L1Controller(0.2, gain=0.3)
    compiled = copy.deepcopy(eager)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(sums: ActSums) -> Tensor:
        penalty = compiled(sums)
        compiled.step()
        return penalty

    for active in (7, 1, 4):
        sums = act_sums(batch(active), "relu", channel_dim=1)
        torch.testing.assert_close(step(sums), eager(sums))
        eager.step()
        torch.testing.assert_close(compiled.state_dict(), eager.state_dict())


def test_controller_reaches_its_target(act_sums: Any) -> None:
    """An autoencoder of sparse data, which has nearly half of its units active at first."""
    atoms = torch.randn(32, 16)
    encoder, decoder = nn.Linear(16, 64), nn.Linear(64, 16)
    controller = L1Controller(0.05, gain=0.05, reduction="row")
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    shares = []
    for _ in range(300):
        x = ((torch.rand(128, 32) < 0.06) * torch.rand(128, 32)) @ atoms
        sums = act_sums(encoder(x), "relu", channel_dim=1)
        loss = (decoder(sums.output) - x).square().sum(1).mean() + controller(sums)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.step()
        shares.append(controller.share.item())
    assert shares[0] > 0.4
    assert abs(sum(shares[-50:]) / 50 - 0.05) < 0.01


# DeadUnits


@pytest.mark.parametrize("unit", ["step", "row"])
def test_dead_units(act_sums: Any, device: str, unit: str) -> None:
    units = DeadUnits(3, unit).to(device)
    fired = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 2.0], [0.0, 0.0, 0.0]], device=device)
    for row in fired:
        x = row.repeat(5, 1)
        units.update(act_sums(x, "relu", channel_dim=1))
    n = 1 if unit == "step" else 5
    assert units.since_fired.dtype == torch.int64
    assert units.since_fired.tolist() == [n, 3 * n, n]
    assert units.dead(n).tolist() == [False, True, False]
    units.reset(units.dead(n))
    assert units.since_fired.tolist() == [n, 0, n]
    units.reset()
    assert not units.since_fired.any()


def test_dead_units_leave_out_rows_of_weight_0(act_sums: Any) -> None:
    units = DeadUnits(2, unit="row")
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    mask = torch.tensor([[0.0], [1.0], [1.0]])
    units.update(act_sums(x, "relu", channel_dim=1, row_weight=mask))
    assert units.since_fired.tolist() == [2, 0]


def test_dead_units_take_counts() -> None:
    steps, rows = DeadUnits(2), DeadUnits(2, unit="row")
    count = torch.tensor([0, 4])
    steps.update(count)
    rows.update(count, count_rows=6)
    rows.update(count, count_rows=torch.tensor(7))
    assert steps.since_fired.tolist() == [1, 0] and rows.since_fired.tolist() == [13, 0]


def test_dead_units_are_saved() -> None:
    units = DeadUnits(2)
    units.update(torch.tensor([0, 1]))
    file = io.BytesIO()
    torch.save(units.state_dict(), file)
    file.seek(0)
    loaded = DeadUnits(2)
    loaded.load_state_dict(torch.load(file))
    for other in (loaded, copy.deepcopy(units), pickle.loads(pickle.dumps(units)), units.half()):
        assert other.since_fired.tolist() == [1, 0] and other.since_fired.dtype == torch.int64
    assert units.to("meta").since_fired.is_meta


def test_compiled_dead_units(act_sums: Any, nothing_compiled_yet: None) -> None:
    units = DeadUnits(CHANNELS, unit="row")

    @torch.compile(backend="aot_eager", fullgraph=True)
    def update(sums: ActSums) -> Tensor:
        units.update(sums)
        return units.dead(4)

    sums = act_sums(torch.tensor([[1.0, -1.0, 0.0, 2.0]] * 3), "relu", channel_dim=1)
    assert not update(sums).any()
    assert update(sums).tolist() == [False, True, True, False]
    assert units.since_fired.tolist() == [0, 6, 6, 0]


@some
def test_nothing_waits_for_the_device(act_sums: Any, case: str) -> None:
    """On the device "meta" tensors have no values, so reading one is an error."""
    x = torch.rand(6, CHANNELS, device="meta")
    sums = act_sums(x, "sigmoid", channel_dim=1, row_weight=torch.rand(6, 1, device="meta"))
    penalty = made(case).to("meta")
    if case == "WeightedL1-function":
        penalty = WeightedL1(1.0, lambda: WEIGHT.to("meta"))
    assert penalty(sums).is_meta
    if isinstance(penalty, L1Controller):
        penalty.step(sums)
    for unit in ("step", "row"):
        units = DeadUnits(CHANNELS, unit).to("meta")
        units.update(sums)
        units.reset(units.dead(1))


# Errors


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: KLTarget(-1.0, 0.1), ValueError, "coefficient must be finite and at least 0"),
        (lambda: Hoyer(math.nan), ValueError, "coefficient must be finite and at least 0"),
        (lambda: Hoyer("1"), TypeError, "coefficient must be a real number"),
        (lambda: Hoyer(torch.ones(2)), ValueError, "coefficient, if it is a tensor, must be 0-d"),
        (lambda: Hoyer(torch.tensor(1)), ValueError, "must be 0-d and float32 or float64"),
        (
            lambda: Hoyer(torch.tensor(1.0, requires_grad=True)),
            ValueError,
            "coefficient must be an nn.Parameter",
        ),
        (lambda: Hoyer(1.0, per_channel=1), TypeError, "per_channel must be True or False"),
        (lambda: KLTarget(1.0, 0.0), ValueError, "rate must be above 0 and below 1, but got 0.0"),
        (lambda: KLTarget(1.0, 1), ValueError, "rate must be above 0 and below 1, but got 1"),
        (lambda: KLTarget(1.0, math.nan), ValueError, "rate must be above 0 and below 1"),
        (lambda: KLTarget(1.0, 0.1, eps=0.5), ValueError, "eps must be above 0 and below 0.5"),
        (lambda: LogPenalty(1.0, eps=0), ValueError, "eps must be above 0 and below inf"),
        (lambda: GroupLasso(1.0, "token"), ValueError, "reduction must be one of row, mean, sum"),
        (lambda: WeightedL1(1.0, WEIGHT[None]), ValueError, r"weight must have shape \[C\]"),
        (lambda: WeightedL1(1.0, WEIGHT.long()), TypeError, "must be a floating-point tensor"),
        (lambda: WeightedL1(1.0, [1.0]), TypeError, "weight must be a tensor of shape"),
        (
            lambda: WeightedL1(1.0, WEIGHT.clone().requires_grad_() * 2),
            ValueError,
            "weight must be an nn.Parameter or a tensor that requires no gradient",
        ),
        (lambda: L1Controller(1.5), ValueError, "target must be above 0 and below 1"),
        (lambda: L1Controller(0.5, gain=-1), ValueError, "gain must be finite and at least 0"),
        (lambda: L1Controller(0.5, damping=-1), ValueError, "damping must be finite"),
        (lambda: L1Controller(0.5, l1=0.0), ValueError, "l1 must be between min_l1 and max_l1"),
        (lambda: L1Controller(0.5, min_l1=0.0), ValueError, "min_l1 must be above 0"),
        (lambda: L1Controller(0.5, l1="1"), TypeError, "l1 must be a real number"),
        (lambda: DeadUnits(0), ValueError, "num_channels must be at least 1"),
        (lambda: DeadUnits(2.0), TypeError, "num_channels must be an int"),
        (lambda: DeadUnits(2, "token"), ValueError, "unit must be one of step, row"),
        (
            lambda: DeadUnits(2, "row").update(torch.ones(2)),
            ValueError,
            "with unit=.row. and a count, pass count_rows too",
        ),
        (lambda: DeadUnits(2).update(torch.ones(3)), ValueError, r"count must have shape \[2\]"),
        (lambda: DeadUnits(2).reset(torch.ones(3)), ValueError, r"mask must have shape \[2\]"),
    ],
)
def test_bad_arguments(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("case", CASES)
def test_bad_sums(act_sums: Any, case: str) -> None:
    penalty = made(case)
    with pytest.raises(TypeError, match=f"{type(penalty).__name__} takes the sums of act_sums"):
        penalty(torch.ones(CHANNELS))
    flat = act_sums(torch.rand(3, CHANNELS), "relu")
    if getattr(penalty, "per_channel", False):
        with pytest.raises(ValueError, match="needs one sum for each channel"):
            penalty(flat)
    else:
        assert penalty(flat).isfinite()


@pytest.mark.parametrize("given", [WEIGHT, weight, lambda: 1.0, lambda: torch.ones(2, 3)])
def test_bad_weights(act_sums: Any, given: Any) -> None:
    sums = act_sums(torch.rand(3, 6), "relu", channel_dim=1)
    with pytest.raises((TypeError, ValueError), match=r"weight must .*(\[6\], one number|\[C\])"):
        WeightedL1(1.0, given)(sums)


def test_weights_on_another_device(act_sums: Any) -> None:
    sums = act_sums(torch.rand(3, CHANNELS), "relu", channel_dim=1)
    with pytest.raises(ValueError, match="weight must be on the device of the sums cpu"):
        WeightedL1(1.0, WEIGHT.to("meta"))(sums)


@pytest.mark.parametrize("module", [penalties, hoyer, l1_controller, dead_units])
def test_examples_are_true(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 2 and result.failed == 0
