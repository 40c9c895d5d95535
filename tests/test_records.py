"""record_penalties: the penalties of all calls in a block, for the loss and for logs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

from actreg_ext import collect_penalty, record_penalties
from actreg_ext.functional import act_reg
from actreg_ext.nn import ActReg
from actreg_ext.records import watch

pytestmark = pytest.mark.usefixtures("nothing_compiled_yet", "default_device")

L1 = {"l1": 1.0, "reduction": "sum"}
BACKENDS = [None, "aot_eager", "inductor"]


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"l1": 0.5, "l2": 0.25, **options}
    return nn.Sequential(
        nn.Linear(3, 4), ActReg("gelu", **options), nn.Linear(4, 2), ActReg("tanh", **options)
    )


def compiled(model: nn.Module, backend: str | None) -> Any:
    return model if backend is None else torch.compile(model, backend=backend, fullgraph=True)


def by_hand(model: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    first, _, second, _ = model
    hidden = act_reg(first(x), "gelu", l1=0.5, l2=0.25)
    return {"1": hidden.penalty, "3": act_reg(second(hidden.output), "tanh", l1=0.5, l2=0.25)[1]}


@pytest.mark.parametrize("backend", BACKENDS)
class TestRecords:
    def test_total_and_gradients(self, backend: str | None) -> None:
        model = network()
        run = compiled(model, backend)
        for _ in range(2):
            x = torch.randn(5, 3)
            with record_penalties() as record:
                y = run(x)
            expected = by_hand(model, x)
            total = record.total()
            torch.testing.assert_close(total, expected["1"] + expected["3"])
            ours = torch.autograd.grad(y.sum() + total, list(model.parameters()))
            loss = model(x).sum() + expected["1"] + expected["3"]
            torch.testing.assert_close(ours, torch.autograd.grad(loss, list(model.parameters())))
            torch.testing.assert_close(record.by_layer(model), expected)
            assert list(record.by_layer()) == ["0", "1"]
            collect_penalty(model)

    def test_the_record_owns_its_calls(self, backend: str | None) -> None:
        model, x = network(), torch.randn(5, 3)
        run = compiled(model, backend)
        before = run(x)
        with record_penalties() as record:
            run(x), run(x)
        once = sum(by_hand(model, x).values())
        torch.testing.assert_close(record.total(), 2 * once)
        torch.testing.assert_close(collect_penalty(model), once)
        assert collect_penalty(model) == 0
        del before

    def test_collected_inside(self, backend: str | None) -> None:
        model, x = network(), torch.randn(5, 3)
        run = compiled(model, backend)
        with record_penalties() as record:
            y = run(x)
            penalty = collect_penalty(model)
            assert collect_penalty(model) == 0
        torch.testing.assert_close(penalty, record.total())
        (y.sum() + penalty).backward()
        assert collect_penalty(model) == 0

    def test_without_gradients(self, backend: str | None) -> None:
        model, x = network(), torch.randn(5, 3)
        run = compiled(model, backend)
        for training in (False, True):
            model.train(training)
            with torch.no_grad(), record_penalties() as record:
                run(x)
            torch.testing.assert_close(record.total(), sum(by_hand(model, x).values()).detach())
            assert not record.total().requires_grad
            assert collect_penalty(model) == 0
        model.eval()
        with record_penalties() as record:
            run(x)
        assert not record.total().requires_grad and record.total() > 0
        run(x)
        with record_penalties() as record:
            pass
        assert record.total() == 0

    @pytest.mark.parametrize("options", [{}, {"l1": 0.0, "l2": 0.0}, {"penalty_on": "output"}])
    def test_sums(self, backend: str | None, options: dict[str, Any]) -> None:
        model, x = network(**options, reduction="batch"), torch.randn(5, 3)
        run = compiled(model, backend)
        with record_penalties(sums=True) as record:
            y = run(x)
        hidden = nn.functional.gelu(model[0](x))
        for name, t in {"1": hidden, "3": model[2](hidden).tanh()}.items():
            ours = record.sums(model)[name]
            torch.testing.assert_close(ours, (t.abs().sum(), t.square().sum()))
        torch.testing.assert_close(y, model(x))
        expected = collect_penalty(model)
        torch.testing.assert_close(record.total(), expected)

    def test_an_exception_forgets(self, backend: str | None) -> None:
        model, x = network(), torch.randn(5, 3)
        run = compiled(model, backend)
        with record_penalties() as outer:
            with pytest.raises(ValueError, match="bad batch"), record_penalties() as record:
                run(x)
                raise ValueError("a bad batch")
            run(x)
        assert record.total() == 0
        torch.testing.assert_close(outer.total(), sum(by_hand(model, x).values()))
        assert collect_penalty(model) == 0 and not watch.is_on

    def test_nested_and_several_models(self, backend: str | None) -> None:
        a, b, x = network(), network(), torch.randn(5, 3)
        run_a, run_b = compiled(a, backend), compiled(b, backend)
        with record_penalties() as outer:
            run_a(x)
            with record_penalties() as inner:
                run_b(x)
        once = sum(by_hand(a, x).values())
        torch.testing.assert_close(inner.total(), once)
        torch.testing.assert_close(outer.total(), 2 * once)
        assert list(outer.by_layer(b)) == ["1", "3"] and not inner.by_layer(a)


def test_a_shared_module_counts_each_call() -> None:
    layer = ActReg(**L1)
    model = nn.Sequential(layer, nn.Linear(2, 2), layer)
    with record_penalties() as record:
        model(torch.ones(2))
    hidden = model[1](torch.ones(2)).relu()
    torch.testing.assert_close(record.by_layer(model), {"0": 2 + hidden.sum()})


def test_threads_have_records_of_their_own() -> None:
    layer = ActReg(**L1)
    totals: dict[int, float] = {}
    together = threading.Barrier(4)

    def work(number: int) -> None:
        together.wait()
        with record_penalties() as record:
            for _ in range(50):
                layer(torch.full((1,), float(number)))
            together.wait()
        totals[number] = float(record.total())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == {n: 50.0 * n for n in range(1, 5)}
    assert collect_penalty(layer) == 0


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("options", [{"inject": True}, {"l1": 0.0, "l2": 0.0}], ids=str)
def test_a_forward_that_checkpointing_repeats_is_recorded_once(
    options: dict[str, Any], reentrant: bool
) -> None:
    model = network(**options)
    x = torch.randn(5, 3, requires_grad=True)
    with record_penalties(sums=True) as record:
        y = checkpoint(model, x, use_reentrant=reentrant)
        expected = record.sums(model)
        y.sum().backward()
    assert record.sums(model) == expected


def test_records_and_transforms() -> None:
    layer = ActReg(**L1)

    def inside(t: Tensor) -> Tensor:
        with record_penalties() as record:
            layer(t)
        total: Tensor = record.total()
        return total

    assert vmap(inside)(torch.ones(3, 2)).tolist() == [2, 2, 2]
    with record_penalties() as record:
        vmap(layer)(torch.ones(3, 2))
    with pytest.raises(RuntimeError, match="has ended"):
        record.total()


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="sums"):
        record_penalties(sums=1)  # type: ignore[arg-type]
    with record_penalties() as record:
        pass
    with pytest.raises(RuntimeError, match="sums=True"):
        record.sums()
    with pytest.raises(TypeError, match=r"nn\.Module"):
        record.by_layer("model")  # type: ignore[arg-type]
