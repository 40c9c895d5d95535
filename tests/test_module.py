"""ActReg and collect_penalty: which penalties reach the loss, and how often."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from actreg_ext import collect_penalty, dispatch, reference
from actreg_ext.functional import act_reg
from actreg_ext.nn import ActReg

pytestmark = pytest.mark.usefixtures("default_device")

L1 = {"l1": 1.0, "reduction": "sum"}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), ActReg("gelu", l1=0.5, l2=0.25, p=0.5), nn.Linear(8, 2))


def test_forward_is_act_reg() -> None:
    layer = ActReg("elu", l1=0.5, p=0.5, penalty_on="output", reduction="batch", alpha=0.7)
    x = torch.randn(6, 5)
    nothing = torch.zeros((), device="cpu")
    for training in (True, False):
        layer.train(training)
        torch.manual_seed(1)
        output = layer(x)
        torch.manual_seed(1)
        options = dict(l1=0.5, p=0.5, penalty_on="output", reduction="batch", alpha=0.7)
        expected = act_reg(x, "elu", **options, training=training)
        assert torch.equal(output, expected.output)
        assert torch.equal(collect_penalty(layer), expected.penalty if training else nothing)


def test_stands_for_an_activation() -> None:
    layer = ActReg(nn.LeakyReLU(0.2, inplace=True))
    x = torch.randn(10)
    assert torch.equal(layer(x), nn.functional.leaky_relu(x, 0.2))
    assert layer.activation == "leaky_relu"
    assert layer.activation_parameters == {"negative_slope": 0.2}
    assert not list(layer.children())


def test_collecting_clears() -> None:
    layer = ActReg(**L1)
    layer(torch.ones(3))
    assert collect_penalty(layer) == 3
    assert collect_penalty(layer) == 0


def test_a_module_called_twice_counts_twice() -> None:
    layer = ActReg(**L1)
    layer(torch.ones(3)), layer(torch.ones(4))
    assert collect_penalty(layer) == 7


def test_several_modules_and_one_in_two_places() -> None:
    shared = ActReg(**L1)
    model = nn.ModuleDict({"a": nn.Sequential(ActReg(**L1), shared), "b": shared})
    x = torch.ones(2)
    model["b"](model["a"](x))
    assert collect_penalty(model) == 6  # three forwards of two modules


def test_a_part_of_a_model() -> None:
    model = nn.Sequential(ActReg(**L1), ActReg(**L1))
    model(torch.ones(5))
    assert collect_penalty(model[0]) == 5
    assert collect_penalty(model) == 5


def test_gradients_reach_the_parameters() -> None:
    """The gradients equal those of a loss without ActReg, written by hand."""
    model, x = network(), torch.randn(3, 4)
    first, _, last = model
    torch.manual_seed(4)
    output = model(x)
    penalty = collect_penalty(model)
    torch.manual_seed(4)
    hidden = act_reg(first(x), "gelu", l1=0.5, l2=0.25, p=0.5)
    assert torch.equal(output, last(hidden.output)) and torch.equal(penalty, hidden.penalty)
    by_module, by_hand = (
        torch.autograd.grad(loss, list(model.parameters()))
        for loss in (output.sum() + 2 * penalty, last(hidden.output).sum() + 2 * hidden.penalty)
    )
    assert all(map(torch.equal, by_module, by_hand))
    assert by_module[0].abs().sum() > 0


@pytest.mark.parametrize(
    "silently",
    [
        lambda layer, x: layer.eval()(x),
        lambda layer, x: torch.no_grad()(layer)(x),
        lambda layer, x: torch.inference_mode()(layer)(x),
    ],
    ids=["eval", "no_grad", "inference_mode"],
)
def test_nothing_is_left_behind(silently: Callable[[nn.Module, Tensor], Tensor]) -> None:
    layer = ActReg(**L1)
    silently(layer, torch.ones(3, requires_grad=True))
    assert collect_penalty(layer.train()) == 0
    layer(torch.ones(4))
    silently(layer, torch.ones(3))
    assert collect_penalty(layer.train()) == 4


def test_a_forward_that_fails_leaves_nothing() -> None:
    layer = ActReg(**L1)
    with pytest.raises(TypeError, match="int32"):
        layer(torch.ones(3, dtype=torch.int32))
    assert collect_penalty(layer) == 0


def test_an_empty_collection() -> None:
    for model in (nn.Sequential(), nn.Linear(2, 2), ActReg(**L1)):
        penalty = collect_penalty(model)
        assert penalty.shape == () and penalty == 0
    (nn.Linear(2, 2)(torch.ones(2)).sum() + collect_penalty(nn.Linear(2, 2))).backward()
    assert collect_penalty(nn.Linear(2, 2, device="meta")).device.type == "meta"


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Objects must be freed by reference counting, not by the garbage collector."""
    gc.disable()
    yield
    gc.enable()


def test_no_graph_outlives_the_loss(no_garbage_collection: None) -> None:
    """The graph's node saves its input, so a freed input proves that the node is freed."""
    layer = ActReg("gelu", **L1)
    hidden = torch.ones(1000, requires_grad=True) * 2
    output, saved = layer(hidden), weakref.ref(hidden)
    del hidden
    loss = collect_penalty(layer)
    del output
    assert saved() is not None
    del loss
    assert saved() is None


def test_without_coefficients_nothing_is_kept(no_garbage_collection: None) -> None:
    layer = ActReg("tanh", p=0.5)
    hidden = torch.ones(1000, requires_grad=True) * 2
    output, saved = layer(hidden), weakref.ref(hidden)
    del hidden
    assert saved() is not None
    del output
    assert saved() is None
    assert collect_penalty(layer) == 0


def test_a_training_loop_keeps_nothing(no_garbage_collection: None) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(20):
        loss = model(torch.randn(3, 4)).square().sum() + collect_penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(weakref.ref(loss))
    del loss
    assert not any(loss() is not None for loss in losses)


def test_a_forgotten_collection_is_reported_once() -> None:
    layer = ActReg(**L1)
    x = torch.ones(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2100):
            layer(x)
    assert len(caught) == 1 and "collect_penalty" in str(caught[0].message)
    assert caught[0].filename == __file__
    collect_penalty(layer)


def test_a_recomputed_forward_counts_once() -> None:
    model, x = network(), torch.randn(3, 4, requires_grad=True)
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(1)
        loss = run(x).sum() + collect_penalty(model)
        gradients.append(torch.autograd.grad(loss, [x, *model.parameters()]))
        assert collect_penalty(model) == 0
    assert all(map(torch.equal, *gradients))


def test_a_checkpoint_that_would_lose_the_penalty_is_refused() -> None:
    layer, x = ActReg(**L1), torch.ones(3, requires_grad=True)
    output = checkpoint(layer, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        output.sum().backward()


def copies(layer: nn.Module) -> Iterator[nn.Module]:
    yield copy.copy(layer)
    yield copy.deepcopy(layer)
    yield pickle.loads(pickle.dumps(layer))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": grad,
    "vmap": vmap,
    "vmap of grad": lambda f: vmap(grad(f)),
    "grad of vmap": lambda f: grad(lambda x: vmap(f)(x).sum()),
    "jvp": lambda f: lambda x: jvp(f, (x,), (x,)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_what_a_transform_leaves_is_dropped(transform: Callable[..., Any]) -> None:
    """After a transform its penalty has no meaning: collecting raises, instead of returning it."""
    model = nn.Sequential(ActReg("gelu", l1=1.0), ActReg("gelu", l1=1.0))
    x = torch.randn(3, 4)
    model(x)
    expected = collect_penalty(model)
    forgetful = transform(lambda t: model(t).sum())
    forgetful(x)
    with pytest.raises(RuntimeError, match="collect_penalty inside that function"):
        collect_penalty(model)
    assert collect_penalty(model) == 0
    forgetful(x)
    forgetful(x)
    model(x)
    assert torch.equal(collect_penalty(model), expected)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_collecting_inside_a_transform(transform: Callable[..., Any]) -> None:
    layer = ActReg("gelu", l1=1.0)
    x = torch.randn(3, 4)
    ours = transform(lambda t: layer(t).sum() + collect_penalty(layer))(x)
    expected = transform(lambda t: nn.functional.gelu(t).sum() + nn.functional.gelu(t).abs().mean())
    torch.testing.assert_close(ours, expected(x))
    assert collect_penalty(layer) == 0


def test_copies() -> None:
    """A copy has the settings, but no pending penalty; the original keeps its penalty."""
    layer = ActReg("elu", l1=0.5, l2=0.25, p=0.0, reduction="sum", alpha=0.7)
    layer(torch.ones(3, requires_grad=True))
    for copied in copies(layer):
        assert repr(copied) == repr(layer)
        assert collect_penalty(copied) == 0
        copied(torch.ones(1))
        assert collect_penalty(copied) == 0.75
    assert collect_penalty(layer) == 2.25


def test_state_dict_is_empty() -> None:
    layer = ActReg(**L1)
    layer(torch.ones(3))
    assert not layer.state_dict() and not list(layer.parameters()) and not list(layer.buffers())
    model = network()
    plain = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (ActReg(), "ActReg(relu, keeps=bits)"),
        (ActReg("gelu", l1=1e-4, p=0.1), "ActReg(gelu, l1=0.0001, p=0.1, keeps=input)"),
        (ActReg(nn.LeakyReLU(0.2)), "ActReg(leaky_relu(negative_slope=0.2), keeps=bits)"),
        (
            ActReg("celu", 0.0, 2.0, 0.0, "output", "token", alpha=3),
            "ActReg(celu(alpha=3.0), l2=2.0, penalty_on=output, reduction=token, keeps=input)",
        ),
    ],
)
def test_repr_shows_what_is_set(layer: nn.Module, text: str) -> None:
    assert repr(layer) == text


@pytest.mark.parametrize("setting", [{"p": 2.0}, {"p": "0.1"}, {"l1": "some"}, {"l2": -1.0}])
def test_repr_shows_what_forward_will_refuse(setting: dict[str, Any]) -> None:
    layer = ActReg("gelu", l1=0.5, p=0.1)
    ((name, value),) = setting.items()
    setattr(layer, name, value)
    assert f"{name}={value}" in repr(layer)
    with pytest.raises((TypeError, ValueError), match=f"^{name}\\b"):
        layer(torch.ones(2))


def test_settings_may_change() -> None:
    layer = ActReg(l1=1.0, reduction="sum")
    layer.l1, layer.l2, layer.p = 0.0, 2.0, 1.0
    assert torch.equal(layer(torch.ones(3)), torch.zeros(3))
    assert collect_penalty(layer) == 6


def test_dtypes_may_mix() -> None:
    layer = ActReg(**L1)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        layer(torch.ones(2, dtype=dtype))
    assert collect_penalty(layer) == 6


def test_a_device_without_kernels_gets_the_reference(
    default_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference computes, with one warning per device type and the same results."""
    x = torch.randn(100, requires_grad=True)
    torch.set_default_device(None)  # as a mode it would be act_reg's caller
    expected = reference.act_reg(x, "elu", l1=0.5, p=0.5, seed=3, alpha=0.7)
    monkeypatch.setattr(dispatch, "DEVICES", frozenset({"meta"}))
    monkeypatch.setattr(dispatch, "_warned", set())
    # act_reg tests is_cpu before the device type; False makes it look at DEVICES.
    monkeypatch.setattr(Tensor, "is_cpu", False)
    with pytest.warns(UserWarning, match=f"no kernel for {default_device}") as caught:
        results = [act_reg(x, "elu", l1=0.5, p=0.5, seed=3, alpha=0.7) for _ in range(3)]
    assert len(caught) == 1 and re.search("actreg_ext doctor", str(caught[0].message))
    assert caught[0].filename == __file__
    for result in results:
        assert torch.equal(result.output, expected.output)
        assert torch.equal(result.penalty, expected.penalty)
