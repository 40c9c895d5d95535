"""Who owns a penalty between forward and loss: steps that are skipped, forgotten, repeated, traced.

See Note [Whose penalty] in pending.py. Records are in test_records.py.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from actreg_ext import collect_penalty, discard_penalty
from actreg_ext.forwards import links
from actreg_ext.nn import ActReg

pytestmark = pytest.mark.usefixtures("nothing_compiled_yet", "default_device")

L1 = {"l1": 1.0, "reduction": "sum"}
BACKENDS = ["aot_eager", "inductor"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), ActReg("relu", **L1), nn.Linear(4, 2), ActReg(**L1))


def penalty_by_hand(model: nn.Module, x: Tensor) -> Tensor:
    first, _, second, _ = model
    hidden = first(x).relu()
    return hidden.abs().sum() + second(hidden).relu().abs().sum()


class TestSkippedSteps:
    """A step that was skipped leaves nothing in the next step's loss."""

    @pytest.mark.parametrize("reason", ["continue", "exception", "exception in the loss"])
    @pytest.mark.parametrize("backend", [None, *BACKENDS])
    def test_skipped(self, reason: str, backend: str | None) -> None:
        model = network()
        run = model if backend is None else torch.compile(model, backend=backend)
        for step in range(6):
            x = torch.randn(5, 3)
            try:
                y = run(x)
                if step % 3 == 0 and reason == "continue":
                    continue
                if step % 3 == 0 and reason == "exception":
                    raise RuntimeError("a bad batch")
                if step % 3 == 0:
                    y.sum().backward()
                    raise RuntimeError("a bad batch")
            except RuntimeError:
                continue
            penalty = collect_penalty(model)
            torch.testing.assert_close(penalty, penalty_by_hand(model, x))
            ours = torch.autograd.grad(penalty, list(model.parameters()))
            expected = torch.autograd.grad(penalty_by_hand(model, x), list(model.parameters()))
            torch.testing.assert_close(ours, expected)

    def test_exception_inside_the_model(self) -> None:
        """The modules before the failure ran once more than the others."""
        model = network()
        with pytest.raises(RuntimeError, match="fails"), FailAt(model[2]):
            model(torch.randn(5, 3))
        x = torch.randn(5, 3)
        y = model(x)
        torch.testing.assert_close(collect_penalty(model), penalty_by_hand(model, x))
        del y

    @pytest.mark.parametrize("used", [True, False])
    def test_a_branch_that_ran_in_the_skipped_step_only(self, used: bool) -> None:
        """As an expert of a mixture: its module has no later forward."""
        first, expert, other = (ActReg(**L1) for _ in range(3))
        model = nn.ModuleList([first, expert, other])
        x = torch.ones(2, requires_grad=True)
        y = expert(first(x))
        y = other(first(x))
        if not used:
            del y
        assert collect_penalty(model) == 4
        assert collect_penalty(model) == 0

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not")
    @pytest.mark.parametrize("compiles", ["nothing", "first", "expert", "both"])
    def test_a_branch_whose_backward_has_run(self, compiles: str) -> None:
        """The loss of the last step may still be in use, and keeps the nodes of its graph."""
        model = nn.ModuleList([ActReg(**L1), ActReg(**L1)])
        first, expert = model
        if compiles in ("first", "both"):
            first.compile(backend="aot_eager")
        if compiles in ("expert", "both"):
            expert.compile(backend="aot_eager")
        x = torch.ones(2, requires_grad=True)
        loss = expert(first(x)).sum()
        loss.backward()
        y = first(x)
        penalty = collect_penalty(model)
        assert penalty == 2
        (y.sum() + penalty).backward()

    def test_outputs_in_use_all_count(self) -> None:
        """As in a siamese network: both outputs are in the loss."""
        model, a, b = network(), torch.randn(5, 3), torch.randn(2, 3)
        loss = model(a).sum() + model(b).sum()
        penalty = collect_penalty(model)
        torch.testing.assert_close(penalty, penalty_by_hand(model, a) + penalty_by_hand(model, b))
        (loss + penalty).backward()

    def test_discarded(self) -> None:
        model = network()
        kept = model(torch.randn(5, 3))
        discard_penalty(model)
        assert collect_penalty(model) == 0
        y = model(torch.randn(1, 3)), kept
        discard_penalty(model[1])
        assert not model[1]._pending.eager and model[3]._pending.eager
        del y
        with pytest.raises(TypeError, match=r"nn\.Module"):
            discard_penalty(3)  # type: ignore[arg-type]


class FailAt:
    """While this is open, the forward of a module raises."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError("the layer fails")

        self.handle = self.module.register_forward_pre_hook(fail)

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


class TestForgottenSteps:
    """Forgetting collect_penalty costs the penalty and nothing else."""

    @pytest.mark.parametrize("backend", [None, *BACKENDS])
    def test_steps(self, backend: str | None) -> None:
        model = network()
        run = model if backend is None else torch.compile(model, backend=backend, fullgraph=True)
        for _ in range(3):
            run(torch.randn(5, 3)).sum().backward()
        x = torch.randn(5, 3)
        y = run(x)
        torch.testing.assert_close(collect_penalty(model), penalty_by_hand(model, x))
        del y

    def test_two_compiled_forwards_with_a_backward_each(self) -> None:
        model = network()
        run = torch.compile(model, backend="aot_eager", fullgraph=True)
        first, second = run(torch.randn(5, 3)), run(torch.randn(5, 3))
        first.sum().backward()
        second.sum().backward()

    def test_no_graph_is_kept(self) -> None:
        """The list is examined from time to time, so old graphs are freed."""
        layer = ActReg("gelu", **L1)
        seen = []
        for step in range(300):
            hidden = torch.randn(5, 3, requires_grad=True) * 1
            seen.append(weakref.ref(hidden))
            y = layer(hidden)
            if step % 2:
                y.sum().backward()
        assert sum(hidden() is not None for hidden in seen) <= 16
        assert len(layer._pending.eager) <= 16

    @pytest.mark.parametrize("layers", [2, 12])
    def test_no_graph_of_a_deep_model_is_kept(self, layers: int) -> None:
        """The penalty of each layer keeps the graph of the layers before it."""
        stack = [
            module for _ in range(layers) for module in (nn.Linear(3, 3), ActReg("gelu", **L1))
        ]
        model = nn.Sequential(*stack)
        seen, most = [], 0
        for _ in range(40):
            hidden = model[0](torch.randn(5, 3))
            seen.append(weakref.ref(hidden))
            y = model[1:](hidden)
            del hidden
            most = max(most, sum(hidden() is not None for hidden in seen))
        assert most <= 16
        del y

    def test_nothing_of_finished_transforms_is_kept(self) -> None:
        layer = ActReg("gelu", **L1)
        for _ in range(100):
            grad(lambda t: layer(t).sum())(torch.ones(3))
        assert len(layer._pending.eager) <= 4

    @pytest.mark.parametrize("trains", [True, False])
    def test_no_graph_of_compiled_code_is_kept(self, trains: bool) -> None:
        """The garbage collector drops them, because no code of ours runs between the steps."""
        model = network()
        run = torch.compile(model, backend="aot_eager")
        outputs = []
        for step in range(40):
            y = run(torch.randn(5, 3))
            if step in (20, 21):
                outputs.append(y)
            elif trains:
                y.sum().backward()
        gc.collect()
        for layer in (model[1], model[3]):
            assert len(list(links(layer._pending.compiled))) == 3  # the newest, two in use
        del outputs[0]
        gc.collect()
        assert len(list(links(model[1]._pending.compiled))) == 2

    @pytest.mark.parametrize("collects", [True, False])
    def test_a_checkpoint_around_a_compiled_block(self, collects: bool) -> None:
        model = network()
        block = torch.compile(model, backend="aot_eager")
        for _ in range(3):
            x = torch.randn(5, 3, requires_grad=True)
            loss = checkpoint(block, x, use_reentrant=False).square().sum()
            if collects:
                penalty = collect_penalty(model)
                torch.testing.assert_close(penalty, penalty_by_hand(model, x))
                loss = loss + penalty
            loss.backward()
        x = torch.randn(5, 3)
        y = block(x)
        torch.testing.assert_close(collect_penalty(model), penalty_by_hand(model, x))
        del y

    def test_a_late_penalty_says_so(self) -> None:
        model = network()
        for run in (model, torch.compile(model, backend="aot_eager")):
            y = run(torch.randn(5, 3))
            y.sum().backward()
            penalty = collect_penalty(model)
            assert penalty > 0
            with pytest.raises(RuntimeError, match="ActReg.*collect_penalty before the backward"):
                penalty.backward()

    def test_a_second_backward_names_the_layer(self) -> None:
        layer = ActReg("gelu", l1=1.0)
        x = torch.randn(4, requires_grad=True)
        y = layer(x)
        penalty = collect_penalty(layer)
        y.sum().backward()
        with pytest.raises(RuntimeError, match=r'second time[\s\S]*ActReg\("gelu"\).*before'):
            penalty.backward()

    def test_compiled_code_collects_what_eager_code_made(self) -> None:
        layer = ActReg(**L1)
        collect = torch.compile(lambda: collect_penalty(layer), backend="eager")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(1100):
                y = layer(torch.ones(3))
                assert collect() == 3
            del y

    def test_compiled_code_collects_many_eager_forwards(self) -> None:
        layer = ActReg(**L1)
        collect = torch.compile(lambda t: t + collect_penalty(layer), backend="eager")
        x = torch.ones(2, requires_grad=True)
        kept = [layer(x) for _ in range(9)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.compile cannot trace it, so it breaks the graph
            assert collect(torch.zeros(())) == 18
        del kept


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("frequent_switches")
class TestThreads:
    @staticmethod
    def run(work: Callable[[], None]) -> None:
        threads = [threading.Thread(target=work) for _ in range(4)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 1000 forwards without collect_penalty
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    @pytest.mark.parametrize("repetition", range(3))
    def test_threads_share_a_module(self, repetition: int) -> None:
        layer, steps = ActReg(**L1), 2000

        def work() -> None:
            x = torch.ones(1)
            for _ in range(steps):
                layer(x)

        self.run(work)
        assert collect_penalty(layer) == 4 * steps

    def test_threads_collect(self) -> None:
        layer, steps = ActReg(**L1), 1000
        found: list[float] = []

        def work() -> None:
            x = torch.ones(1)
            for _ in range(steps):
                layer(x)
                found.append(float(collect_penalty(layer)))

        self.run(work)
        assert sum(found) + collect_penalty(layer) == 4 * steps


class TestCopies:
    def test_a_subclass_with_children(self) -> None:
        class Twice(ActReg):
            def __init__(self) -> None:
                super().__init__(**L1)  # type: ignore[arg-type]
                self.inner = ActReg(**L1)  # type: ignore[arg-type]

            def forward(self, input: Tensor) -> Tensor:
                return super().forward(self.inner(input))

        layer = Twice()
        y = layer(torch.ones(2))
        assert collect_penalty(layer) == 4
        del y

    def test_a_copy_of_a_compiled_module(self) -> None:
        layer = ActReg(**L1)
        layer.compile(backend="eager")
        layer(torch.ones(2))
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            copied(torch.ones(5))
            assert collect_penalty(copied) == 5
        assert collect_penalty(layer) == 2

    def test_a_whole_model_is_loaded_with_public_names(self) -> None:
        model = network()
        model(torch.randn(5, 3))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        with torch.serialization.safe_globals([nn.Sequential, nn.Linear, ActReg, set]):
            loaded = torch.load(file, weights_only=True)
        x = torch.randn(5, 3)
        y = loaded(x)
        torch.testing.assert_close(collect_penalty(loaded), penalty_by_hand(model, x))
        del y


class TestCheckpoints:
    def test_evaluation_between_collect_and_backward(self) -> None:
        model = network()
        x = torch.randn(5, 3, requires_grad=True)
        loss = checkpoint(model, x, use_reentrant=False).sum() + collect_penalty(model)
        with torch.no_grad():
            model(torch.randn(2, 3))
        loss.backward()
        assert collect_penalty(model) == 0

    def test_reentrant_and_once_more(self) -> None:
        layer = ActReg("gelu", **L1)
        x = torch.randn(5, 3, requires_grad=True)
        y = layer(checkpoint(layer, x, use_reentrant=True))
        loss = y.sum() + collect_penalty(layer)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            loss.backward()


class TestTransforms:
    def test_leftovers_of_a_finished_vmap(self) -> None:
        layer = ActReg(**L1)
        forgetful = vmap(lambda t: layer(t).sum())
        collecting = vmap(lambda t: layer(t).sum() * 0 + collect_penalty(layer))
        forgetful(torch.ones(3, 2))
        assert collecting(torch.ones(3, 2)).tolist() == [2, 2, 2]
        forgetful(torch.ones(3, 2))
        assert collecting(torch.ones(5, 2)).tolist() == [2] * 5
        forgetful(torch.ones(3, 2))
        inside = grad(lambda t: layer(t).sum() * 0 + collect_penalty(layer))(torch.ones(3))
        assert inside.tolist() == [1, 1, 1]

    def test_eager_vmap_eager(self) -> None:
        layer = ActReg(**L1)
        x = torch.ones(2, requires_grad=True)
        first = layer(x)
        vmap(lambda t: layer(t).sum())(torch.ones(3, 7))
        second = layer(x)
        assert collect_penalty(layer) == 4
        del first, second

    def test_a_transform_does_not_take_what_is_outside(self) -> None:
        layer = ActReg(**L1)
        y = layer(torch.ones(2, requires_grad=True))
        inside = vmap(lambda t: layer(t).sum() * 0 + collect_penalty(layer))(torch.ones(3, 7))
        assert inside.tolist() == [7, 7, 7]
        assert collect_penalty(layer) == 2
        del y

    def test_a_transform_inside_a_transform(self) -> None:
        layer = ActReg(**L1)

        def outer(t: Tensor) -> tuple[Tensor, Tensor]:
            y = layer(t).sum()
            inside = vmap(lambda u: layer(u).sum() * 0 + collect_penalty(layer))(torch.ones(2, 5))
            return inside, collect_penalty(layer) + 0 * y

        inside, outside = vmap(outer)(torch.ones(3, 2))
        assert inside.tolist() == [[5, 5]] * 3 and outside.tolist() == [2, 2, 2]

    def test_fake_tensors(self) -> None:
        layer = ActReg("gelu", l1=1.0, p=0.5)
        with FakeTensorMode():
            layer(torch.ones(3))
            assert collect_penalty(layer).shape == ()
            layer(torch.ones(3))
        y = layer(torch.ones(4))
        penalty = collect_penalty(layer)
        assert type(penalty) is Tensor
        torch.testing.assert_close(penalty, nn.functional.gelu(torch.ones(())))
        del y

    @pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
    def test_make_fx(self, mode: str) -> None:
        layer = ActReg("gelu", l1=1.0)
        x = torch.randn(3)
        graph = make_fx(lambda t: layer(t).sum() + collect_penalty(layer), tracing_mode=mode)(x)
        expected = layer(x).sum() + collect_penalty(layer)
        torch.testing.assert_close(graph(x), expected)
        make_fx(lambda t: layer(t).sum(), tracing_mode=mode)(x)
        y = layer(x)
        penalty = collect_penalty(layer)
        assert type(penalty) is Tensor
        torch.testing.assert_close(penalty, nn.functional.gelu(x).abs().mean())
        del y


def test_what_is_dropped_is_dropped_in_compiled_steps(default_device: str) -> None:
    """A whole step in one compiled function: nothing accumulates, nothing compiles twice."""
    model = network()
    step: Callable[[Tensor], Tensor] = torch.compile(
        lambda x: model(x).sum() + collect_penalty(model), backend="eager", fullgraph=True
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            x = torch.randn(5, 3)
            expected = nn.Sequential(*model)(x).sum().detach() + penalty_by_hand(model, x)
            discard_penalty(model)
            torch.testing.assert_close(step(x), expected)
