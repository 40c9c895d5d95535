"""ActReg(inject=True): the gradients are those of the explicit form, in every kind of loop."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from actreg_ext import (
    check_injection,
    collect_penalty,
    penalty_values,
    record_penalties,
    set_injection_scale,
)
from actreg_ext.nn import ActReg

pytestmark = pytest.mark.usefixtures("nothing_compiled_yet", "default_device")

BACKENDS = [None, "aot_eager"]
# One for each kind of node: what the backward keeps is the input, bits, the output, nothing.
LAYERS: dict[str, dict[str, Any]] = {
    "input": {"activation": "gelu", "l1": 0.5, "l2": 0.25},
    "input, dropout": {"activation": "gelu", "l1": 0.5, "p": 0.5},
    "bits": {"activation": "relu", "l1": 0.5, "p": 0.5},
    "output": {"activation": "leaky_relu", "l1": 0.5, "l2": 0.25},
    "penalty on the output": {"activation": "silu", "l2": 0.5, "p": 0.5, "penalty_on": "output"},
}


def network(inject: bool = True, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    options = LAYERS["input"] | options
    return nn.Sequential(
        nn.Linear(3, 4), ActReg(inject=inject, **options), nn.Linear(4, 2), ActReg("tanh", l1=0.5)
    )


def both(**options: Any) -> tuple[nn.Sequential, nn.Sequential]:
    """The same model, injected and explicit."""
    injected = network(True, **options)
    explicit = copy.deepcopy(injected)
    explicit[1].inject = False
    injected[3].inject = True
    return injected, explicit


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def compiled(model: nn.Module, backend: str | None) -> Any:
    return model if backend is None else torch.compile(model, backend=backend, fullgraph=True)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_gradients_are_those_of_the_explicit_form(
    options: dict[str, Any], backend: str | None
) -> None:
    injected, explicit = both(**options)
    run_injected, run_explicit = compiled(injected, backend), compiled(explicit, backend)
    for step in range(2):
        x = torch.randn(5, 3)
        torch.manual_seed(step)
        run_injected(x).square().sum().backward()
        torch.manual_seed(step)
        (run_explicit(x).square().sum() + collect_penalty(explicit)).backward()
        torch.testing.assert_close(gradients(injected), gradients(explicit))
    assert collect_penalty(injected) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    for options in ({}, LAYERS["bits"]):
        injected, explicit = (model.to(dtype) for model in both(**options))
        x = torch.randn(5, 3, dtype=dtype)
        torch.manual_seed(0)
        injected(x).sum().backward()
        torch.manual_seed(0)
        (explicit(x).sum() + collect_penalty(explicit)).backward()
        assert all(map(torch.equal, gradients(injected), gradients(explicit)))


def test_inductor() -> None:
    injected, explicit = both()
    assert_same(torch.compile(injected, fullgraph=True), explicit)


class TestLoops:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("batches", [1, 2, 4, 8])
    def test_accumulation(self, batches: int, backend: str | None) -> None:
        """The gradient of a window is that of the mean loss."""
        injected, explicit = both()
        run = compiled(injected, backend)
        set_injection_scale(injected, accumulation=batches)
        losses = []
        for _ in range(batches):
            x = torch.randn(5, 3)
            (run(x).sum() / batches).backward()
            losses.append(explicit(x).sum() + collect_penalty(explicit))
        torch.stack(losses).mean().backward()
        torch.testing.assert_close(gradients(injected), gradients(explicit))

    def test_grad_scaler(self) -> None:
        """Growing after every good step, and shrinking after a step with infinite gradients."""
        injected, explicit = both()
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        set_injection_scale(injected, scaler)
        scales = []
        for step in range(5):
            x = torch.randn(5, 3)
            for model in (injected, explicit):
                model.zero_grad()
            loss = injected(x).sum() * (float("inf") if step == 2 else 1.0)
            scaler.scale(loss).backward()
            optimizer = torch.optim.SGD(injected.parameters(), 0.0)
            scaler.unscale_(optimizer)
            if step != 2:
                (explicit(x).sum() + collect_penalty(explicit)).backward()
                torch.testing.assert_close(gradients(injected), gradients(explicit))
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        assert scales == [8.0, 16.0, 8.0, 16.0, 32.0]

    def test_a_disabled_scaler_is_1(self) -> None:
        injected, explicit = both()
        set_injection_scale(injected, torch.amp.GradScaler("cpu", enabled=False))
        assert_same(injected, explicit)

    def test_gradient_clipping(self) -> None:
        injected, explicit = both()
        x = torch.randn(5, 3)
        injected(x).sum().backward()
        (explicit(x).sum() + collect_penalty(explicit)).backward()
        norms = [nn.utils.clip_grad_norm_(m.parameters(), 0.1) for m in (injected, explicit)]
        torch.testing.assert_close(norms[0], norms[1])
        torch.testing.assert_close(gradients(injected), gradients(explicit))

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpointing_counts_once(self, reentrant: bool) -> None:
        injected, explicit = both(p=0.5)
        x = torch.randn(5, 3, requires_grad=True)
        torch.manual_seed(1)
        checkpoint(injected, x, use_reentrant=reentrant).sum().backward()
        torch.manual_seed(1)
        (explicit(x).sum() + collect_penalty(explicit)).backward()
        torch.testing.assert_close(gradients(injected), gradients(explicit))

    def test_a_scale_as_a_number_and_as_a_tensor(self) -> None:
        injected, explicit = both()
        x, scale = torch.randn(5, 3), torch.tensor(2.0)
        for given in (3.0, scale, scale.double()):
            set_injection_scale(injected, given)
            factor = float(given)
            injected.zero_grad(), explicit.zero_grad()
            injected(x).sum().backward()
            (explicit(x).sum() + factor * collect_penalty(explicit)).backward()
            torch.testing.assert_close(gradients(injected), gradients(explicit))
        set_injection_scale(injected, scale)
        scale.fill_(5.0)  # the caller's tensor is read, not a copy
        injected.zero_grad(), explicit.zero_grad()
        injected(x).sum().backward()
        (explicit(x).sum() + 5 * collect_penalty(explicit)).backward()
        torch.testing.assert_close(gradients(injected), gradients(explicit))


def assert_same(injected: nn.Module, explicit: nn.Module) -> None:
    x = torch.randn(5, 3)
    injected(x).sum().backward()
    (explicit(x).sum() + collect_penalty(explicit)).backward()
    torch.testing.assert_close(gradients(injected), gradients(explicit))


class TestUses:
    def test_an_output_used_twice(self) -> None:
        injected, explicit = both()
        x = torch.randn(5, 3)
        for model in (injected, explicit):
            hidden = model[1](model[0](x))
            loss = (model[3](model[2](hidden)) + hidden.sum()).sum()
            (loss + collect_penalty(model)).backward()
        torch.testing.assert_close(gradients(injected), gradients(explicit))

    def test_an_output_modified_in_place(self) -> None:
        injected, explicit = both(keep="input")
        x = torch.randn(5, 3)
        for model in (injected, explicit):
            hidden = model[1](model[0](x))
            hidden += 1
            (hidden.sum() + collect_penalty(model)).backward()
        torch.testing.assert_close(gradients(injected), gradients(explicit))

    def test_in_place(self) -> None:
        for name in ("relu", "gelu"):
            injected, explicit = both(activation=name, inplace=True)
            assert_same(injected, explicit)

    @pytest.mark.parametrize("inject_sees", ["a view", "a mode"])
    def test_in_place_where_the_caller_goes_on_with_the_input(self, inject_sees: str) -> None:
        injected, explicit = both(inplace=True)
        x = torch.randn(5, 3)
        for model in (injected, explicit):
            hidden = model[0](x)
            written = hidden[:, :] if inject_sees == "a view" else hidden
            with torch.device(x.device) if inject_sees == "a mode" else contextlib.nullcontext():
                model[1](written)
            (written.sum() + collect_penalty(model)).backward()
        torch.testing.assert_close(gradients(injected), gradients(explicit))

    @pytest.mark.parametrize("sums", [False, True])
    @pytest.mark.parametrize("adds", [False, True])
    def test_inside_a_record(self, sums: bool, adds: bool) -> None:
        """The backward adds the gradient, so the record has the value alone."""
        injected, explicit = both()
        x = torch.randn(5, 3)
        with record_penalties(sums=sums) as record:
            y = injected(x)
        (y.sum() + (record.total() if adds else 0)).backward()
        loss = explicit(x).sum()
        penalty = collect_penalty(explicit)
        (loss + penalty).backward()
        torch.testing.assert_close(record.total(), penalty.detach())
        torch.testing.assert_close(gradients(injected), gradients(explicit))

    @pytest.mark.parametrize("how", ["unused", "detached"])
    def test_check_injection_finds_a_lost_gradient(self, how: str) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)
                self.act = ActReg("gelu", l1=1.0, inject=True)

            def forward(self, x: Tensor) -> Tensor:
                lost = self.act(self.first(x))
                return self.second(x) + (lost.detach() if how == "detached" else 0)

        found = check_injection(Model(), torch.randn(5, 3), torch.sum)
        assert not found and set(found.differing) == {"first.weight", "first.bias"}
        assert "collect_penalty" in found.message

    def test_check_injection_changes_nothing(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), ActReg(l1=0.5, inject=True))
        set_injection_scale(model, 7.0)
        state = copy.deepcopy(model.state_dict())
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        found = check_injection(model, (torch.randn(5, 3).fill_(0.3).add(1),), torch.sum)
        assert found and not found.differing
        torch.manual_seed(5)
        assert torch.equal(torch.rand(1), expected)
        assert all(map(torch.equal, state.values(), model.state_dict().values()))
        assert not gradients(model) and model[2].inject
        assert float(model[2]._injection.scale) == 7.0

    def test_check_injection_of_a_model_with_both_kinds(self) -> None:
        model = network()
        x = torch.randn(5, 3)
        y = model(x)
        assert check_injection(model, x, torch.sum)
        assert collect_penalty(model) > 0  # of the forward before
        del y

    def test_values(self) -> None:
        injected, explicit = both()
        assert penalty_values(injected) == {}
        x = torch.randn(5, 3)
        injected(x), explicit(x)
        values = penalty_values(injected)
        assert list(values) == ["1", "3"] and not values["1"].requires_grad
        torch.testing.assert_close(sum(values.values()), collect_penalty(explicit).detach())
        with torch.no_grad():
            injected.eval()(torch.randn(2, 3))
        assert penalty_values(injected) == values

    def test_eval_and_no_grad_inject_nothing(self) -> None:
        injected, explicit = both()
        x = torch.randn(5, 3)
        injected.eval()(x).sum().backward()
        explicit.eval()(x).sum().backward()
        assert all(map(torch.equal, gradients(injected), gradients(explicit)))
        with torch.no_grad():
            assert not injected.train()(x).requires_grad

    @pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
    def test_a_second_backward_is_refused(self, options: dict[str, Any]) -> None:
        model = network(**options)
        loss = model(torch.randn(5, 3)).sum()
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="second backward.*collect_penalty"):
            loss.backward()

    def test_create_graph_is_refused(self) -> None:
        model, x = network(), torch.randn(5, 3, requires_grad=True)
        with pytest.raises(RuntimeError, match="create_graph=True.*collect_penalty"):
            torch.autograd.grad(model(x).sum(), x, create_graph=True)

    def test_a_second_backward_without_a_node_of_ours_is_refused(self) -> None:
        model = network()
        with record_penalties(sums=True):
            loss = model(torch.randn(5, 3)).sum()
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="second backward.*collect_penalty"):
            loss.backward()

    def test_nested_gradients_are_refused(self) -> None:
        layer = ActReg("gelu", l2=1.0, inject=True)
        x = torch.ones(3, requires_grad=True)
        inner = grad(lambda t: layer(t).square().sum())
        with pytest.raises(RuntimeError, match=r"nested.*collect_penalty"):
            grad(lambda t: inner(t).sum())(torch.ones(3))
        with pytest.raises(RuntimeError, match=r"nested.*collect_penalty"):
            inner(x).sum().backward()

    def test_forward_mode_is_refused(self) -> None:
        layer = ActReg("gelu", l2=1.0, inject=True)
        x = torch.ones(3)
        for f in (layer, grad(lambda t: layer(t).sum())):
            with pytest.raises(RuntimeError, match="forward-mode.*collect_penalty"):
                jvp(f, (x,), (x,))
        with forward_ad.dual_level():
            layer(x)
            with pytest.raises(RuntimeError, match="forward-mode.*collect_penalty"):
                layer(forward_ad.make_dual(x, x))

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not")
    def test_compiled_autograd(self) -> None:
        injected, explicit = both()
        x = torch.randn(5, 3)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
            for scale in (1.0, 3.0):
                set_injection_scale(injected, scale)
                injected.zero_grad(), explicit.zero_grad()
                injected(x).sum().backward()
                (explicit(x).sum() + scale * collect_penalty(explicit)).backward()
                torch.testing.assert_close(gradients(injected), gradients(explicit))

    @pytest.mark.parametrize(
        "transform", [grad, lambda f: vmap(grad(f), in_dims=(None, 0))], ids=["grad", "vmap(grad)"]
    )
    def test_transforms(self, transform: Callable[..., Any]) -> None:
        injected, explicit = both()
        x = torch.randn(5, 3)
        parameters = dict(injected.named_parameters())

        def loss(model: nn.Module, p: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(model, p, (x,)).sum() + collect_penalty(model)

        ours = transform(lambda p, x: loss(injected, p, x))(parameters, x)
        expected = transform(lambda p, x: loss(explicit, p, x))(parameters, x)
        torch.testing.assert_close(ours, expected)


def test_vmap_inside_a_gradient() -> None:
    """Inside vmap a tensor does not show that the gradient outside of it needs the tensor."""
    injected, explicit = both()
    x = torch.randn(5, 3)
    parameters = {name: p.detach() for name, p in injected.named_parameters()}

    def loss(model: nn.Module, p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, p, (x,)).sum() + collect_penalty(model)

    ours = grad(lambda p: vmap(lambda t: loss(injected, p, t))(x).sum())(parameters)
    expected = grad(lambda p: vmap(lambda t: loss(explicit, p, t))(x).sum())(parameters)
    torch.testing.assert_close(ours, expected)
    vmap(injected)(x).sum().backward()
    everything = dict(explicit.named_parameters())
    vmap(lambda t: loss(explicit, everything, t))(x).sum().backward()
    torch.testing.assert_close(gradients(injected), gradients(explicit))


def test_many_gradients_at_once_are_refused() -> None:
    injected, _ = both()
    parameters = dict(injected.named_parameters())
    with pytest.raises(RuntimeError, match="several gradients.*collect_penalty"):
        x = torch.randn(5, 3, requires_grad=True)
        y = injected(x).sum(0)
        torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True)
    with pytest.raises(RuntimeError, match="several gradients.*collect_penalty"):
        jacrev(lambda p: functional_call(injected, p, (torch.randn(5, 3),)).sum(1))(parameters)


def test_a_compiled_transform() -> None:
    """torch.compile leaves the function to eager mode, or says so."""
    layer = ActReg(l1=1.0, reduction="sum", inject=True)

    def step(x: Tensor) -> Any:
        return grad(lambda t: layer(t).sum())(x)

    x = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.compile(step, backend="aot_eager")(x).tolist() == [2, 2, 2]
    torch._dynamo.reset()
    with pytest.raises(Exception, match="inject=False and"):
        torch.compile(step, backend="aot_eager", fullgraph=True)(x)


@pytest.mark.parametrize("strict", [True, False])
def test_an_export_in_training_mode_leaves_no_value(strict: bool) -> None:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(model, (torch.randn(5, 3),), strict=strict)
    assert penalty_values(model) == {}


class TestScales:
    """Nothing of a transform, of a tracer or of another device stays in a module."""

    def test_a_tensor_of_the_caller_stays_when_another_device_runs(self) -> None:
        injected, explicit = both()
        scale = torch.tensor(2.0)
        set_injection_scale(injected, scale)
        for layer in (injected[1], injected[3]):
            layer(torch.ones(3, device="meta", requires_grad=True))
        scale.fill_(5.0)
        x = torch.randn(5, 3)
        injected(x).sum().backward()
        (explicit(x).sum() + 5 * collect_penalty(explicit)).backward()
        torch.testing.assert_close(gradients(injected), gradients(explicit))

    @pytest.mark.parametrize("how", ["fake", "grad", "vmap"])
    def test_after_a_transform(self, how: str) -> None:
        injected, explicit = both()
        x = torch.randn(5, 3)
        if how == "fake":
            with FakeTensorMode(allow_non_fake_inputs=True):
                injected(x)
        elif how == "grad":
            grad(lambda t: injected(t).sum())(x)
        else:
            vmap(injected)(x)
        assert penalty_values(injected) == {}
        assert_same(injected, explicit)

    def test_compiled_code_stores_no_scale(self) -> None:
        injected, explicit = both()
        with torch._dynamo.config.patch(error_on_recompile=True):
            run = torch.compile(injected, backend="aot_eager", fullgraph=True)
            for _ in range(3):
                assert_same(run, explicit)
                injected.zero_grad(), explicit.zero_grad()


def test_copies_do_not_share_a_scale() -> None:
    model = network()
    set_injection_scale(model, 3.0, accumulation=2)
    copied = copy.deepcopy(model)
    assert float(copied[1]._injection.scale) == 3.0 and copied[1]._injection.accumulation == 2
    set_injection_scale(copied, 5.0)
    assert float(model[1]._injection.scale) == 3.0
    set_injection_scale(model, torch.ones(()))
    lost, x = pickle.loads(pickle.dumps(model)), torch.randn(5, 3)
    with pytest.raises(RuntimeError, match="set_injection_scale on the copy"):
        lost(x)
    set_injection_scale(lost, 2.0)
    lost(x)
    copied = copy.deepcopy(network())
    assert repr(copied[1]) == repr(model[1]) and "inject" in repr(model[1])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"scale": "2"}, TypeError, "scale must be a real number"),
        ({"scale": float("inf")}, ValueError, "scale must be finite"),
        ({"scale": torch.ones(2)}, ValueError, "0-d floating-point"),
        ({"accumulation": 0}, ValueError, "at least 1"),
        ({"accumulation": 2.0}, TypeError, "accumulation must be an int"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    model = network()
    with pytest.raises(error, match=text):
        set_injection_scale(model, **arguments)
    with pytest.raises(ValueError, match="no ActReg with inject=True"):
        penalty_values(nn.Sequential(nn.ReLU(), ActReg(l1=1.0)))
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        check_injection(model, torch.randn(5, 3), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inject must be True or False"):
        ActReg(inject=1)  # type: ignore[arg-type]
