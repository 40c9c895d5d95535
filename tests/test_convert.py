"""`convert` and `revert`: what is replaced, what stays, and what comes back."""

from __future__ import annotations

import copy
import doctest
import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import actreg_ext
from actreg_ext import ActReg, collect_penalty, conversion, convert, report, revert
from tests import table


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are too small for more, and threads that wait for each other are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mlp(p: float = 0.1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 3))


def state(model: nn.Module) -> list[tuple[Any, ...]]:
    """Everything that a call which fails must leave as it was: modules, hooks, flags, functions."""
    return [
        (name, id(module), module.training, function, *hooks)
        for name, module in model.named_modules(remove_duplicate=False)
        for function in [module.__dict__.get("activation")]
        for hooks in [[(k, id(v), str(v)) for k, v in vars(module).items() if "hook" in k]]
    ]


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules(remove_duplicate=False)]


def kinds(model: nn.Module) -> dict[str, str]:
    return {
        name: module.activation if isinstance(module, ActReg) else "Identity"
        for name, module in model.named_modules()
        if isinstance(module, ActReg | nn.Identity)
    }


def reasons(made: actreg_ext.ConversionReport) -> dict[str, str]:
    return {change.name: change.now for change in made.skipped}


def replaced(made: actreg_ext.ConversionReport) -> list[str]:
    return [change.name for change in made.replaced]


def penalty_by_hand(model: nn.Module, l1: float, run: Callable[[], Any]) -> Tensor:
    """The mean of |a| over the outputs a of all activation modules, summed over their calls."""
    terms: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda m, args, a: terms.append(l1 * a.abs().mean()))
        for module in model.modules()
        if type(module) in {kind for _, kind in table_of_modules()} - {nn.Identity}
    ]
    run()
    for handle in handles:
        handle.remove()
    return torch.stack(terms).sum()


def table_of_modules() -> list[tuple[str, type[nn.Module]]]:
    return [(n, kind) for n, (_, kind) in actreg_ext.reference.ACTIVATIONS.items() if kind]


# What is replaced


def test_activation_and_dropout_become_one_module() -> None:
    model = mlp()
    made = convert(model, l1=0.5, l2=0.25, penalty_on="output", reduction="batch")
    layer = model[1]
    assert isinstance(layer, ActReg) and type(model[2]) is nn.Identity
    assert (layer.p, layer.l1, layer.l2) == (0.1, 0.5, 0.25)
    assert (layer.penalty_on, layer.reduction, layer.inject) == ("output", "batch", False)
    assert [(c.name, c.was) for c in made.replaced] == [
        ("1", "ReLU()"),
        ("2", "Dropout(p=0.1, inplace=False)"),
    ]
    assert made.replaced[0].now == str(layer) and "part of 1" in made.replaced[1].now
    assert made.skipped == [] and made.hints == []


def test_print_is_a_table() -> None:
    model = nn.Sequential(nn.Tanh(), nn.PReLU())
    lines = str(convert(model)).splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["replaced", "0", "Tanh()"],
        ["skipped", "1", "PReLU(num_parameters=1)"],
    ]
    assert str(actreg_ext.ConversionReport()) == "no activation and no dropout found"


@pytest.mark.parametrize("p", [None, 0.0, 0.25])
def test_p(p: float | None) -> None:
    """None keeps each dropout's p, and an activation without a dropout gets none."""
    model = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Tanh(), nn.Linear(3, 3), nn.Dropout(0.75))
    convert(model, p=p)
    assert (model[0].p, model[2].p) == ((0.5, 0.0) if p is None else (p, p))
    assert model[4].activation == "identity" and model[4].p == 0.75


@pytest.mark.parametrize("name", [name for name, _ in table_of_modules() if name != "identity"])
@pytest.mark.parametrize("inplace", [False, True])
def test_own_parameters(name: str, inplace: bool) -> None:
    """Each activation keeps its parameters and its inplace flag."""
    kind = dict(table_of_modules())[name]
    variant = {k: v for k, v in table.variants(name)[-1].items() if k != "activation"}
    old = kind(**variant)
    if not hasattr(old, "inplace"):
        inplace = False
    else:
        old.inplace = inplace
    model = nn.Sequential(old)
    convert(model)
    assert isinstance(model[0], ActReg) and model[0].inplace == inplace
    assert model[0].activation == name and model[0].activation_parameters == variant
    x = torch.linspace(-4, 4, 41)
    torch.testing.assert_close(model(x.clone()), old(x.clone()))


def test_gelu_keeps_its_approximation() -> None:
    model = nn.Sequential(nn.GELU(), nn.GELU(approximate="tanh"))
    convert(model)
    assert kinds(model) == {"0": "gelu", "1": "gelu_tanh"}


def test_dropout_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.0), nn.AlphaDropout())
    made = convert(model, l1=1.0)
    assert replaced(made) == ["1"] and kinds(model) == {"1": "identity"}
    assert model[1].p == 0.5 and not model[1].l1 and not model[1].l2
    assert reasons(made)["2"] == "p is 0" and "share their masks" in reasons(made)["3"]
    model(torch.randn(2, 4))
    assert collect_penalty(model) == 0


def test_dropout_false_merges_still() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.1))
    made = convert(model, l1=1.0, dropout=False)
    assert replaced(made) == ["1", "2"] and reasons(made) == {"0": "dropout=False"}


def test_an_identity_is_no_activation() -> None:
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.5), nn.ReLU())
    assert replaced(convert(model)) == ["1", "2"]


def test_what_has_no_formula_is_listed() -> None:
    class Gelu(nn.GELU):
        pass

    model = nn.Sequential(nn.PReLU(), nn.Softmax(-1), Gelu(), nn.Softplus(beta=0.0), nn.ReLU())
    made = convert(model)
    assert replaced(made) == ["4"]
    assert set(reasons(made)) == {"0", "1", "3"} and "beta" in reasons(made)["3"]


NESTED: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "climbing out": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Dropout(0.5)),
        {"0.1": "relu", "1": "Identity"},
    ),
    "climbing in": (
        lambda: nn.Sequential(nn.ReLU(), nn.Sequential(nn.Sequential(nn.Dropout(0.5)))),
        {"0": "relu", "1.0.0": "Identity"},
    ),
    "not behind": (
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.Dropout(0.5)),
        {"0": "relu", "2": "identity"},
    ),
    "a list has no order": (
        lambda: nn.ModuleList([nn.ReLU(), nn.Dropout(0.5)]),
        {"0": "relu", "1": "identity"},
    ),
    "a dict has no order": (
        lambda: nn.ModuleDict({"act": nn.SiLU(), "drop": nn.Dropout(0.5)}),
        {"act": "silu", "drop": "identity"},
    ),
    "list of sequentials": (
        lambda: nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), nn.Dropout(0.25)]),
        {"0.0": "relu", "0.1": "Identity", "1": "identity"},
    ),
    "two dropouts": (
        lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Dropout(0.25)),
        {"0": "relu", "1": "Identity", "2": "identity"},
    ),
    "an ordered dict": (
        lambda: nn.Sequential(OrderedDict(act=nn.Mish(), drop=nn.Dropout(0.5))),
        {"act": "mish", "drop": "Identity"},
    ),
}


@pytest.mark.parametrize("case", NESTED)
def test_containers(case: str) -> None:
    make, expected = NESTED[case]
    model = make()
    before, keys = state(model), list(model.state_dict())
    order = names(model)
    convert(model, l1=1.0)
    assert kinds(model) == expected
    assert names(model) == order and list(model.state_dict()) == keys
    revert(model)
    assert state(model) == before


def test_a_sequential_with_a_forward_of_its_own_has_no_order() -> None:
    class Reversed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for module in reversed(self):
                x = module(x)
            return x

    model = Reversed(nn.ReLU(), nn.Dropout(0.5))
    convert(model)
    assert kinds(model) == {"0": "relu", "1": "identity"}
    model = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    model.forward = lambda x: x  # type: ignore[method-assign]
    convert(model)
    assert kinds(model) == {"0": "relu", "1": "identity"}


# Transformer layers of torch.nn


def transformer(activation: Any = "relu") -> nn.Module:
    return nn.Transformer(8, 2, 1, 1, 16, dropout=0.25, activation=activation, batch_first=True)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("activation", ["relu", F.gelu, torch.tanh, nn.GELU()])
def test_transformer_layers(activation: Any) -> None:
    """The function becomes a module, merged with its dropout; revert puts the function back."""
    model = transformer(activation).train()
    before, order, keys = state(model), names(model), list(model.state_dict())
    x = torch.randn(2, 3, 8)
    expected = model.eval()(x, x)
    model.train()
    made = convert(model, l1=1e-2)
    layer = model.encoder.layers[0]
    assert isinstance(layer.activation, ActReg) and layer.activation.p == 0.25
    assert type(layer.dropout) is nn.Identity
    for dropout in (layer.dropout1, layer.dropout2, model.decoder.layers[0].dropout3):
        assert isinstance(dropout, ActReg) and dropout.activation == "identity"
    assert sum("part of" in change.now for change in made.replaced) == 2
    assert [n for n in names(model) if not n.endswith(".activation")] == [
        n for n in order if not n.endswith(".activation")
    ]
    assert list(model.state_dict()) == keys
    model(x, x)
    assert collect_penalty(model) > 0
    torch.testing.assert_close(model.eval()(x, x), expected)
    with torch.no_grad():  # the fast path
        torch.testing.assert_close(model.eval()(x, x), expected)
    model.train()
    convert(model, l1=1e-3)
    revert(model)
    assert state(model) == before and names(model) == order


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_batches_in_eval_mode() -> None:
    """The fast path of nn.TransformerEncoder makes nested tensors of a padded batch."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False, False, False]])
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            expected = model(x, src_key_padding_mask=mask)
            convert(model, l1=1.0)
            torch.testing.assert_close(model(x, src_key_padding_mask=mask), expected)
            revert(model)


def test_a_subclass_of_a_transformer_layer() -> None:
    class Same(nn.TransformerEncoderLayer):
        pass

    class Other(nn.TransformerEncoderLayer):
        def _ff_block(self, x: Tensor) -> Tensor:
            return self.linear2(self.activation(self.dropout(self.linear1(x))))

    for kind, expected in ((Same, "relu"), (Other, None)):
        model = kind(8, 2, 16)
        convert(model)
        assert kinds(model).get("activation") == expected
        assert kinds(model)["dropout"] == ("Identity" if expected else "identity")


def test_an_unknown_function_stays() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, activation=lambda x: x.abs())
    made = convert(model, l1=1.0)
    assert reasons(made)["activation"] == "has no formula here" and "dropout" in replaced(made)


# Include and exclude


def blocks() -> nn.Module:
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Tanh()),
            "head": nn.Sequential(nn.GELU(), nn.Dropout(0.25)),
        }
    )


RULES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["encoder.0", "encoder.1", "encoder.2", "head.0", "head.1"]),
    ({"include": "encoder"}, ["encoder.0", "encoder.1", "encoder.2"]),
    ({"include": "*.0"}, ["encoder.0", "head.0"]),
    ({"include": ["head.*", nn.Tanh]}, ["encoder.2", "head.0", "head.1"]),
    ({"include": nn.ReLU}, ["encoder.0"]),
    ({"include": nn.Sequential, "exclude": nn.Dropout}, ["encoder.0", "encoder.2", "head.0"]),
    ({"include": lambda name, module: isinstance(module, nn.GELU)}, ["head.0"]),
    ({"exclude": ("head",)}, ["encoder.0", "encoder.1", "encoder.2"]),
    ({"exclude": "*.1"}, ["encoder.0", "encoder.2", "head.0"]),
    ({"include": "encoder.*", "exclude": lambda n, m: "2" in n}, ["encoder.0", "encoder.1"]),
]


@pytest.mark.parametrize("rules", range(len(RULES)))
def test_rules(rules: int) -> None:
    given, expected = RULES[rules]
    model = blocks()
    made = convert(model, **given)
    assert replaced(made) == expected
    rest = set(reasons(made).values())
    assert rest <= {"not selected by include and exclude"}
    if "encoder.0" in expected and "encoder.1" not in expected:
        assert model.encoder[0].p == 0  # the dropout stays, so its p is not taken


def test_a_rule_may_match_what_has_no_formula() -> None:
    model = nn.Sequential(nn.PReLU(), nn.ReLU(), nn.Softmax(-1))
    made = convert(model, include=["0", "1"], exclude=nn.Softmax)
    assert replaced(made) == ["1"]
    assert reasons(made) == {
        "0": "has no formula here",
        "2": "not selected by include and exclude",
    }


def test_a_compiled_model_has_its_names() -> None:
    model = torch.compile(blocks(), backend="eager")
    assert replaced(convert(model, include="encoder.0")) == ["_orig_mod.encoder.0"]
    assert replaced(convert(model, include="_orig_mod.encoder.0")) == ["_orig_mod.encoder.0"]


def test_every_name_of_a_shared_container_selects() -> None:
    block = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    model = nn.ModuleDict({"a": block, "b": block})
    assert replaced(convert(model, include="b.0")) == ["a.0"]
    assert replaced(convert(model, include="a", exclude="b.1")) == ["a.0"]


# Shared modules


def test_one_relu_at_several_places_stays_one() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)
    before = state(model)
    made = convert(model, l1=1.0)
    assert replaced(made) == ["1", "3"] and model[1] is model[3]
    model(torch.randn(2, 4))
    twice = collect_penalty(model)
    revert(model)
    assert state(model) == before
    convert(model, l1=1.0, exclude="3")
    assert isinstance(model[1], ActReg) and model[3] is act
    assert twice > 0


def test_a_shared_pair_stays_a_pair() -> None:
    act, drop = nn.ReLU(), nn.Dropout(0.5)
    model = nn.Sequential(nn.Linear(4, 4), act, drop, nn.Linear(4, 4), act, drop)
    before = state(model)
    convert(model, l1=1.0)
    assert model[1] is model[4] and model[1].p == 0.5
    assert model[2] is model[5] and type(model[2]) is nn.Identity
    revert(model)
    assert state(model) == before


SHARED: dict[str, Callable[[nn.Module, nn.Module], list[nn.Module]]] = {
    "once without a dropout": lambda act, drop: [act, drop, nn.Linear(4, 4), act],
    "other p": lambda act, drop: [act, drop, nn.Linear(4, 4), act, nn.Dropout(0.1)],
    "dropout alone": lambda act, drop: [act, drop, nn.Linear(4, 4), drop],
    "chain": lambda act, drop: [act, drop, nn.Tanh(), drop, nn.Linear(4, 4), act],
}


@pytest.mark.parametrize("case", SHARED)
def test_a_shared_module_that_cannot_agree_is_not_merged(case: str) -> None:
    model = nn.Sequential(*SHARED[case](nn.ReLU(), nn.Dropout(0.5)))
    groups = [[other is module for other in model] for module in model]
    before = state(model)
    convert(model, l1=1.0)
    assert [[other is module for other in model] for module in model] == groups
    assert "Identity" not in kinds(model).values()
    assert all(m.p == 0 for m in model if isinstance(m, ActReg) and m.activation != "identity")
    revert(model)
    assert state(model) == before


def test_p_applies_to_shared_activations() -> None:
    act = nn.ReLU()
    model = nn.Sequential(act, nn.Dropout(0.5), act)
    convert(model, p=0.25)
    assert model[0] is model[2] and model[0].p == 0.25


# What conversion must not change


def test_hooks_stay_and_can_be_removed() -> None:
    model = mlp()
    calls: list[str] = []
    first = model[1].register_forward_hook(lambda *a: calls.append("forward"))
    model[1].register_full_backward_hook(lambda *a: calls.append("backward"))
    model[3].register_forward_pre_hook(lambda *a: calls.append("pre"))
    before = state(model)
    convert(model, l1=1.0)
    assert kinds(model) == {"1": "relu", "2": "identity"}  # with a hook it stays alone
    x = torch.randn(2, 4, requires_grad=True)
    model(x).sum().backward()
    assert calls == ["forward", "pre", "backward"]
    first.remove()
    second = model[1].register_forward_hook(lambda *a: calls.append("second"))
    calls.clear()
    model(x)
    assert calls == ["second", "pre"]
    revert(model)
    calls.clear()
    model(x)
    assert calls == ["second", "pre"]
    second.remove()
    assert [s[:3] for s in state(model)] == [s[:3] for s in before]
    calls.clear()
    model(x)
    assert calls == ["pre"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hook_at_any_module_of_a_pair_prevents_merging(place: int) -> None:
    inner = nn.Sequential(nn.ReLU())
    model = nn.Sequential(inner, nn.Dropout(0.5))
    seen: list[Tensor] = []
    [inner, inner[0], model[1]][place].register_forward_hook(lambda m, a, y: seen.append(y))
    convert(model)
    x = torch.ones(1000)
    y = model(x)
    assert torch.equal(seen[0], y if place == 2 else x)
    assert kinds(model) == {"0.0": "relu", "1": "identity"}


def test_an_inner_container_is_entered_only_if_the_activation_alone_reaches_it() -> None:
    inner = nn.Sequential(nn.Dropout(0.5))
    model = nn.Sequential(nn.ReLU(), inner, nn.Linear(4, 4), inner)
    convert(model)
    assert kinds(model) == {"0": "relu", "1.0": "identity"}
    inner = nn.Sequential(nn.Dropout(0.5))
    inner.register_forward_pre_hook(lambda module, args: None)
    model = nn.Sequential(nn.ReLU(), inner)
    convert(model)
    assert kinds(model) == {"0": "relu", "1.0": "identity"}


def test_flags_that_differ_prevent_merging() -> None:
    """A dropout that is on in eval mode, as for Monte Carlo dropout, stays on."""
    model = mlp(0.5).eval()
    model[2].train()
    convert(model)
    assert not model[1].training and model[2].training and model[2].activation == "identity"
    revert(model)
    assert not model[1].training and model[2].training


@pytest.mark.parametrize("training", [False, True])
def test_training_flags(training: bool) -> None:
    model = mlp().train(training)
    convert(model)
    assert all(m.training == training for m in model.modules())
    model.train(not training)
    revert(model)
    assert all(m.training != training for m in model.modules())


def test_dtype_and_parameters_stay() -> None:
    model = mlp().double()
    parameters = list(map(id, model.parameters()))
    convert(model, l1=1.0)
    assert list(map(id, model.parameters())) == parameters
    assert model.eval()(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_parametrizations() -> None:
    """A parametrized layer is converted inside; what computes a parameter stays."""
    torch.nn.utils.parametrizations.weight_norm(layer := nn.Linear(4, 4))
    torch.nn.utils.parametrize.register_parametrization(layer, "bias", nn.Softplus())
    model = nn.Sequential(layer, nn.ReLU())
    before = state(model)
    made = convert(model, l1=1.0)
    assert replaced(made) == ["1"]
    assert "computes a parameter" in reasons(made)["0.parametrizations.bias.0"]
    model(torch.randn(2, 4))
    revert(model)
    assert state(model) == before

    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    encoder.register_parameter("extra", nn.Parameter(torch.ones(1)))
    torch.nn.utils.parametrize.register_parametrization(encoder, "extra", nn.Softplus())
    assert "activation" in replaced(convert(encoder))  # its class is a subclass now


def test_a_module_with_a_forward_of_its_own_stays() -> None:
    model = mlp()
    model[1].forward = lambda x: x.abs()  # type: ignore[method-assign]
    made = convert(model)
    assert "forward of its own" in reasons(made)["1"] and replaced(made) == ["2"]


def test_in_place_behaviour() -> None:
    """ReLU(inplace=True) overwrites its input before and after the conversion."""
    model = nn.Sequential(nn.ReLU(inplace=True))
    convert(model, l1=1.0)
    x = torch.tensor([-1.0, 2.0])
    assert model(x).data_ptr() == x.data_ptr() and x.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_an_input_that_others_read_is_not_dropped(first: bool, overwrites: bool) -> None:
    """ReLU(inplace=True) overwrites the input. The dropout behind it leaves the input alone."""
    pair = [nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=overwrites)]
    model = nn.Sequential(*([] if first else [nn.Linear(100, 100)]), *pair)
    convert(model)
    assert ("Identity" in kinds(model).values()) == (overwrites or not first)
    x = torch.ones(100)
    model(x)
    assert (x.min() == 0) == (first and overwrites)


# In-place code behind an activation


def in_place_code() -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "add": lambda y: y.add_(torch.ones_like(y)),
        "masked_fill": lambda y: y.masked_fill_(y > 0.5, 0.0),
        "dropout": lambda y: F.dropout(y, 0.5, inplace=True),
        "relu": lambda y: F.relu_(y),
        "view": lambda y: y.view(-1).add_(1.0),
    }


def is_legal(model: nn.Module, behind: Callable[[Tensor], Tensor], on_input: bool = False) -> bool:
    torch.manual_seed(0)
    x = torch.randn(4, 8, requires_grad=True)
    h = x * 1.0
    try:
        y = model(h)
        if on_input:
            behind(h)
        else:
            y = behind(y)
        (y.square().sum() + collect_penalty(model)).backward()
    except RuntimeError as error:
        assert "inplace operation" in str(error) or "in-place" in str(error), error
        return False
    assert x.grad is not None
    return True


@pytest.mark.parametrize("penalty", [{}, {"l1": 0.5}, {"l2": 0.5, "penalty_on": "output"}], ids=str)
@pytest.mark.parametrize("p", [0, 0.3, 1.0])
@pytest.mark.parametrize("name", [name for name, _ in table_of_modules() if name != "identity"])
def test_in_place_code_stays_legal(name: str, p: float, penalty: dict[str, Any]) -> None:
    """What the plain modules allow is allowed; where nothing is overwritten, results agree."""
    kind = dict(table_of_modules())[name]
    variant = {k: v for k, v in table.variants(name)[0].items() if k != "activation"}
    for inplace in (False, True):
        for drop_inplace in (False, True) if p else (False,):
            for training in (True, False):
                act = kind(**variant)
                if inplace and not hasattr(act, "inplace"):
                    continue
                if inplace:
                    act.inplace = True
                drops = [nn.Dropout(p, inplace=drop_inplace)] if p else []
                model = nn.Sequential(act, *drops).train(training)
                code = in_place_code()
                legal = {key for key in code if is_legal(model, code[key])}
                convert(model, **penalty)
                illegal = {key for key in legal if not is_legal(model, code[key])}
                assert not illegal, (inplace, drop_inplace, training)


# torch keeps the output of these, or a value of their own. ActReg keeps the input, because with a
# dropout behind them code may overwrite the output.
KEEP_INPUT = {("tanhshrink", 0.0), ("tanhshrink", 0.3), ("tanh", 0.3), ("sigmoid", 0.3)}


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("name", [name for name, _ in table_of_modules() if name != "identity"])
def test_overwriting_the_input(name: str, p: float) -> None:
    """Code that overwrites the input afterwards stays legal, but for KEEP_INPUT."""
    kind = dict(table_of_modules())[name]
    variant = {k: v for k, v in table.variants(name)[0].items() if k != "activation"}
    model = nn.Sequential(kind(**variant), *([nn.Dropout(p)] if p else []))
    legal = is_legal(model, lambda h: h.add_(1.0), on_input=True)
    convert(model, l1=0.5)
    stays = is_legal(model, lambda h: h.add_(1.0), on_input=True)
    assert (legal and not stays) == ((name, p) in KEEP_INPUT)


# Converting again, reverting, copies


def test_twice_is_once() -> None:
    once, twice = mlp(), mlp()
    first = convert(once, l1=0.5)
    convert(twice, l1=0.5)
    before = twice[1].__dict__["_original"][0]
    assert convert(twice, l1=0.5) == first
    assert str(once) == str(twice)
    assert twice[1].__dict__["_original"][0] is before  # not the first ActReg


def test_other_coefficients() -> None:
    model = mlp()
    before = state(model)
    convert(model, l1=0.5)
    convert(model, l2=0.25, p=0.5, include="1")
    assert (model[1].l1, model[1].l2, model[1].p) == (0.0, 0.25, 0.5)
    assert type(model[2]) is nn.Dropout  # not selected this time
    revert(model)
    assert state(model) == before


def test_a_hook_on_the_new_module_survives_a_second_conversion() -> None:
    model = mlp()
    convert(model)
    calls: list[int] = []
    model[1].register_forward_hook(lambda *a: calls.append(1))
    convert(model, l1=1.0)
    model(torch.randn(2, 4))
    revert(model)
    model(torch.randn(2, 4))
    assert calls == [1, 1]


def test_revert_returns_the_names() -> None:
    model = mlp()
    assert revert(model) == []
    convert(model)
    assert revert(model) == ["1", "2"] and revert(model) == []


def same(model: nn.Module) -> nn.Module:
    return model


def pickled(model: nn.Module) -> nn.Module:
    made: nn.Module = pickle.loads(pickle.dumps(model))
    return made


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    made: nn.Module = torch.load(file, weights_only=False)
    return made


@pytest.mark.parametrize(
    "way",
    [same, copy.deepcopy, pickled, saved, lambda m: m.to(torch.float64), lambda m: m.to("meta")],
    ids=["same", "deepcopy", "pickle", "torch.save", "double", "meta"],
)
def test_revert_after(way: Callable[[nn.Module], nn.Module]) -> None:
    layers = [nn.TransformerEncoderLayer(8, 2, 16), nn.TransformerDecoderLayer(8, 2, 16)]
    model = nn.ModuleDict({"mlp": mlp(), "layers": nn.ModuleList(layers)})
    plain = str(model)
    changed = replaced(convert(model, l1=1.0))
    model = way(model)
    assert isinstance(model.mlp[1], ActReg) and model.mlp[1].l1 == 1.0
    assert all(isinstance(layer.activation, ActReg) for layer in model.layers)
    assert set(revert(model)) == set(changed) and len(changed) == 2 + 4 + 5
    assert str(model) == plain and all(layer.activation is F.relu for layer in model.layers)


def test_a_module_that_torch_hides_stays_hidden() -> None:
    """A copy of nn.TransformerDecoderLayer(activation=module) calls F.relu. That is torch's bug."""
    model = copy.deepcopy(nn.TransformerDecoderLayer(8, 2, 16, activation=nn.GELU()))
    before, order = state(model), names(model)
    made = convert(model, l1=1.0)
    assert model.activation.activation == "relu" and "activation" in replaced(made)
    assert names(model) == order
    convert(model, l1=0.5)
    model = copy.deepcopy(model)
    assert model.activation.l1 == 0.5
    revert(model)
    assert model.activation is F.relu and type(model._modules["activation"]) is nn.GELU
    assert [s[0] for s in state(model)] == [s[0] for s in before]


def test_original_objects_come_back() -> None:
    model = mlp()
    objects = list(model)
    convert(model)
    revert(model)
    assert all(a is b for a, b in zip(objects, model, strict=True))


class Wrapped(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y * 2


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_models(in_place: bool, nothing_compiled_yet: None) -> None:
    """A model that was compiled before the conversion compiles again, and after revert too."""
    model: nn.Module = Wrapped(mlp(0.0))
    x = torch.randn(2, 4)
    if in_place:
        model.compile(backend="eager", fullgraph=True)
        run = model
    else:
        run = torch.compile(model, backend="eager", fullgraph=True)
    plain = run(x)
    convert(run, l1=1.0)
    torch.testing.assert_close(run(x), plain)
    taken = collect_penalty(run)
    assert taken > 0 and type(model.body[2]) is nn.Identity
    revert(run)
    assert torch.equal(run(x), plain) and collect_penalty(run) == 0


def test_a_module_that_is_compiled_alone_stays() -> None:
    act = torch.compile(nn.ReLU(), backend="eager")
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Tanh())
    made = convert(model)
    assert replaced(made) == ["2"] and "compiled on its own" in reasons(made)["1._orig_mod"]
    with pytest.raises(ValueError, match="is itself an activation"):
        convert(act)


def test_dry_run_changes_nothing() -> None:
    model = mlp()
    before = state(model)
    made = convert(model, l1=1.0, dry_run=True)
    assert replaced(made) == ["1", "2"] and state(model) == before
    assert convert(model, l1=1.0) == made
    before = state(model)
    assert convert(model, l2=2.0, include="1", dry_run=True).replaced[0].now.count("l2=2.0")
    assert state(model) == before


# Bad input


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "l1": ({"l1": -1.0}, ValueError, "l1 must be finite and at least 0"),
    "l2": ({"l2": float("inf")}, ValueError, "l2 must be finite"),
    "l1 type": ({"l1": "1"}, TypeError, "l1 must be a real number"),
    "p": ({"p": 1.5}, ValueError, "p, the dropout probability"),
    "penalty_on": ({"penalty_on": "input"}, ValueError, "penalty_on must be one of"),
    "reduction": ({"reduction": "avg"}, ValueError, "did you mean 'mean'"),
    "inject": ({"inject": 1}, TypeError, "inject must be True or False"),
    "dry_run": ({"dry_run": 1}, TypeError, "dry_run must be True or False"),
    "dropout": ({"dropout": 0.5}, TypeError, "dropout must be True or False"),
    "include type": ({"include": 3}, TypeError, "include takes glob patterns"),
    "include item": ({"include": ["1", 3]}, TypeError, "include takes glob patterns.*3"),
    "include module": ({"include": nn.ReLU()}, TypeError, "include takes glob patterns"),
    "include empty": ({"include": []}, ValueError, "include is empty"),
    "include nothing": ({"include": "encoder.*"}, ValueError, "'encoder.*' matches no activation"),
    "include one": ({"include": ["1", "9"]}, ValueError, "'9' matches no activation"),
    "include class": ({"include": nn.GELU}, ValueError, "include: .*GELU.* matches no"),
    "exclude nothing": ({"exclude": "x"}, ValueError, "exclude: 'x' matches no"),
    "predicate": ({"include": lambda name: True}, TypeError, "positional argument"),
    "example": ({"example": torch.ones(2, 5)}, RuntimeError, "shapes cannot be multiplied"),
}


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_changes_nothing(case: str, converted: bool) -> None:
    arguments, error, text = BAD[case]
    model = mlp()
    model[1].register_forward_hook(print)
    if converted:
        convert(model, l1=0.5)
    before = state(model)
    with pytest.raises(error, match=text):
        convert(model, **arguments)
    assert state(model) == before


def test_bad_models() -> None:
    scripted = torch.jit.script(mlp())
    with pytest.raises(TypeError, match="before torch.jit.script"):
        convert(scripted, inject=True)
    with pytest.raises(TypeError, match="model must be an nn.Module, but got type"):
        convert(nn.ReLU)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be an nn.Module, but got str"):
        revert("model")  # type: ignore[arg-type]
    for model in (nn.ReLU(), nn.Dropout(0.5), ActReg("relu")):
        with pytest.raises(ValueError, match="is itself an activation or a dropout"):
            convert(model)


def test_a_scripted_part_stays() -> None:
    model = nn.Sequential(torch.jit.script(mlp()), nn.ReLU())
    made = convert(model, l1=1.0)
    assert replaced(made) == ["1"] and "ScriptModule" in reasons(made)["0"]


def test_an_act_reg_of_the_user_stays() -> None:
    model = nn.Sequential(ActReg("relu", l1=0.5), nn.ReLU())
    mine = model[0]
    made = convert(model, l1=1.0)
    assert replaced(made) == ["1"] and "did not make" in reasons(made)["0"]
    revert(model)
    assert model[0] is mine


def test_nothing_to_replace_warns() -> None:
    with pytest.warns(UserWarning, match="the model has no activation modules") as caught:
        convert(nn.Sequential(nn.Linear(2, 2)))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="1 modules are skipped"):
        convert(nn.Sequential(nn.PReLU()))


# Hints


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = nn.ReLU()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = x + (0 * torch.rand(()) if not isinstance(x, fx.Proxy) else 0)
        x = F.relu(self.bn(self.fc(x))) * scale
        x = torch.sigmoid(self.act(x)).tanh().relu_()
        return F.dropout(F.gelu(F.silu(F.silu(x))), 0.5, self.training)


@pytest.mark.parametrize(
    "example",
    [torch.ones(2, 4), (torch.ones(2, 4), 2.0), {"x": torch.ones(2, 4), "scale": 2.0}],
    ids=["value", "tuple", "dict"],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_hints(example: Any, compiled: bool) -> None:
    block: nn.Module = Functional()
    if compiled:
        block.compile(backend="eager")
    outer = nn.Sequential(block, nn.Tanh()) if isinstance(example, Tensor) else block
    statistics = block.bn.running_mean.clone()
    before, generator = state(outer), torch.get_rng_state()
    made = convert(outer, l1=1.0, example=example, dry_run=True)
    name = "0" if isinstance(example, Tensor) else ""
    assert sorted(made.hints) == sorted(
        (name, function, 2 if function == "silu" else 1)
        for function in ("relu", "sigmoid", "tanh", "relu_", "gelu", "silu", "dropout")
    )
    assert "hint" in str(made) and "a function, calls: 2" in str(made)
    assert torch.equal(block.bn.running_mean, statistics) and state(outer) == before
    assert torch.equal(torch.get_rng_state(), generator) and outer.training
    assert all(parameter.grad is None for parameter in outer.parameters())


def test_hints_in_a_compiled_model() -> None:
    model = torch.compile(Functional(), backend="eager")
    model(torch.ones(2, 4))
    made = convert(model, l1=1.0, example=torch.ones(2, 4))
    assert ("_orig_mod", "relu", 1) in made.hints
    assert replaced(made) == ["_orig_mod.act"] and made.skipped == []


def test_a_hook_that_raises_ends_the_example() -> None:
    model = mlp()
    model[1].register_forward_pre_hook(lambda *args: 1 / 0)
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        convert(model, l1=1.0, example=torch.ones(2, 4))
    assert state(model) == before


def test_functions_that_are_replaced_are_no_hints() -> None:
    model = nn.TransformerDecoderLayer(8, 2, 16)
    x = torch.ones(2, 2, 8)
    assert convert(model, example=(x, x)).hints == []
    graph = fx.symbolic_trace(Functional())
    assert convert(graph, example=torch.ones(2, 4)).hints == []


# Graphs of torch.fx


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.25)
        self.drop2 = nn.Dropout(0.75)

    def forward(self, x):  # type: ignore[no-untyped-def]  # a graph with annotations has no pickle
        a = F.dropout(F.relu(self.fc(x)), 0.5, self.training)
        b = self.drop(torch.tanh(a) * 1)
        c = self.drop2(self.relu(b))
        d = self.fc(F.gelu(c, approximate="tanh")).relu()
        return F.dropout(F.leaky_relu(input=d, negative_slope=0.5), training=self.training) + x


def test_graph() -> None:
    graph = fx.symbolic_trace(Calls())
    code, before, order = graph.code, state(graph), [n.name for n in graph.graph.nodes]
    made = convert(graph, l1=1.0)
    assert [(c.name, c.was) for c in made.replaced] == [
        ("drop", "Dropout(p=0.25, inplace=False)"),
        ("relu", "ReLU()"),
        ("drop2", "Dropout(p=0.75, inplace=False)"),
        ("relu_act", "call of relu"),
        ("dropout", "call of dropout"),
        ("tanh", "call of tanh"),
        ("gelu", "call of gelu"),
        ("relu_2", "call of relu"),
        ("leaky_relu", "call of leaky_relu"),
        ("dropout_1", "call of dropout"),
    ]
    shown = {name: (m.activation, m.p) for name, m in graph.named_modules() if type(m) is ActReg}
    assert shown["relu"] == ("relu", 0.75) and shown["drop"] == ("identity", 0.25)
    assert shown["gelu"] == ("gelu_tanh", 0.0) and shown["leaky_relu"] == ("leaky_relu", 0.5)
    assert graph.get_submodule("leaky_relu").activation_parameters == {"negative_slope": 0.5}
    assert [n.name for n in graph.graph.nodes] == order
    graph.graph.lint()
    dry, converted = graph.code, state(graph)
    convert(graph, l2=1.0, dry_run=True)
    assert graph.code == dry and state(graph) == converted
    revert(graph)
    assert graph.code == code and state(graph) == before


@pytest.mark.parametrize("name", [n for n, (_, k) in actreg_ext.reference.ACTIVATIONS.items() if k])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_every_function_in_a_graph(name: str, p: float) -> None:
    if name == "identity":
        return
    function = actreg_ext.reference.ACTIVATIONS[name][0]
    variant = {k: v for k, v in table.variants(name)[-1].items() if k != "activation"}

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(function(x * 2, **variant), p, self.training)

    model = Net()
    graph = fx.symbolic_trace(model)
    x = torch.linspace(-4, 4, 41)
    expected = model.eval()(x)
    made = convert(graph, l1=1.0)
    assert len(made.replaced) == 2
    graph(x)
    a = function(x * 2, **variant)
    torch.testing.assert_close(collect_penalty(graph), a.abs().mean())
    torch.testing.assert_close(graph.eval()(x), expected)


def test_methods_and_in_place_calls_in_a_graph() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            y.relu_()
            z = torch.sigmoid(y) + torch.relu(y) + F.relu(y, inplace=True) + y.tanh().sigmoid()
            return z + F.elu_(z * 1)

    graph = fx.symbolic_trace(Net())
    x = torch.randn(8)
    made = convert(graph, l1=1.0)
    assert [c.was.removeprefix("call of ") for c in made.replaced] == [
        "relu_", "sigmoid", "relu", "relu", "tanh", "sigmoid", "elu_",
    ]  # fmt: skip
    torch.testing.assert_close(graph(x), Net()(x))


def test_calls_that_stay() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, slope: float) -> Tensor:
            y = F.leaky_relu(x, slope)  # not a constant
            y = torch.relu(x) + F.dropout(y, 0.5, training=False)
            return torch.sigmoid(y, out=None)

    graph = fx.symbolic_trace(Net())
    assert replaced(convert(graph)) == ["relu"]


def test_a_value_that_is_used_twice_is_not_merged() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(x)
            return F.dropout(y, 0.5) + y

    graph = fx.symbolic_trace(Net())
    convert(graph)
    assert kinds(graph) == {"relu": "relu", "dropout": "identity"}


def test_a_dropout_that_is_called_twice_in_a_graph_is_not_merged() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.drop(self.fc(self.drop(F.relu(x))))
            return y

    graph = fx.symbolic_trace(Net())
    convert(graph)
    assert kinds(graph) == {"relu": "relu", "drop": "identity"}


def test_names_that_are_taken() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tanh = nn.Parameter(torch.ones(4))
            self.tanh_act = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.tanh_act(torch.tanh(x) * self.tanh)

    graph = fx.symbolic_trace(Net())
    keys, order, code = list(graph.state_dict()), names(graph), graph.code
    x = torch.randn(2, 4)
    expected = graph(x)
    (change,) = convert(graph, l1=1.0).replaced
    assert isinstance(graph.get_submodule(change.name), ActReg)
    assert list(graph.state_dict()) == keys and torch.allclose(graph(x), expected)
    revert(graph)
    assert names(graph) == order and graph.code == code


def test_rules_in_a_graph() -> None:
    model = nn.Sequential(OrderedDict(a=Calls(), b=Calls()))
    graph = fx.symbolic_trace(model)
    made = convert(graph, include="a", dry_run=True)
    assert len(made.replaced) == 10 and len(made.skipped) == 10
    made = convert(graph, include=Calls, dry_run=True)  # the class whose forward makes the calls
    assert len(made.replaced) == 14  # the graph has the six modules, but not in a Calls
    assert {change.was.split("(")[0] for change in made.skipped} == {"ReLU", "Dropout"}
    assert replaced(convert(graph, include="gelu*", dry_run=True)) == ["gelu", "gelu_1"]
    made = convert(graph, include=lambda name, held: held in (F.gelu, "relu"), dry_run=True)
    assert replaced(made) == ["gelu", "relu_2", "gelu_1", "relu_4"] or replaced(made)
    with pytest.raises(ValueError, match="matches no activation"):
        convert(graph, include="nothing")
    outer = nn.ModuleDict({"g": fx.symbolic_trace(Calls()), "h": nn.ReLU()})
    assert replaced(convert(outer, include="g.tanh")) == ["g.tanh"]
    assert isinstance(outer.g.tanh, ActReg) and revert(outer) == ["g.tanh"]


@pytest.mark.parametrize("used_again", [False, True])
def test_an_overwritten_input_in_a_graph(used_again: bool) -> None:
    """As test_an_input_that_others_read_is_not_dropped."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=True)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(x)
            y = self.drop(self.relu(x))
            return y + x if used_again else y

    graph = fx.symbolic_trace(Net())
    convert(graph)
    assert kinds(graph) == {"relu": "relu", "drop": "identity" if used_again else "Identity"}


@pytest.mark.parametrize("way", [copy.deepcopy, pickled, fx.symbolic_trace])
def test_copies_of_a_graph(way: Callable[[nn.Module], fx.GraphModule]) -> None:
    graph = fx.symbolic_trace(Calls())
    x = torch.randn(2, 4)
    expected = Calls.forward(graph.eval(), x)
    convert(graph, l1=1.0)
    other = way(graph)
    torch.testing.assert_close(other.eval()(x), expected)
    assert len(revert(other)) == 10
    assert not any(isinstance(m, ActReg) for m in other.modules())
    assert isinstance(graph.get_submodule("tanh"), ActReg)


def test_a_traced_graph_in_a_traced_model() -> None:
    graph = fx.symbolic_trace(Calls())
    convert(graph, l1=1.0)
    outer = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), graph))
    x = torch.randn(2, 4)
    expected = outer.eval()(x)
    assert len(convert(outer, l1=0.5).replaced) == 10
    torch.testing.assert_close(outer(x), expected)
    assert len(revert(outer)) == 10
    plain = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), fx.symbolic_trace(Calls())))
    assert [(n.op, n.target, n.kwargs) for n in outer.graph.nodes] == [
        (n.op, n.target, n.kwargs) for n in plain.graph.nodes
    ]


def test_dropout_in_a_graph_follows_the_flag() -> None:
    """A call that was traced in training mode drops always; the module drops in training."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(F.relu(x), 0.5, self.training)

    x = torch.ones(100)
    graph = fx.symbolic_trace(Net())
    assert graph.eval()(x).min() == 0
    convert(graph)
    assert not graph.get_submodule("relu").training and graph(x).min() == 1
    assert graph.train()(x).min() == 0
    graph = fx.symbolic_trace(Net().eval()).train()
    convert(graph)
    assert graph.get_submodule("relu").p == 0 and graph(x).min() == 1


# Tracing a converted model


def test_symbolic_trace() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 8), act, mlp(0.0)[1:])
    convert(model, l1=1.0)
    traced = fx.symbolic_trace(model)
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert calls.count("1") == 2 and "4.1" in calls
    x = torch.randn(2, 4)
    for run in (traced, model, traced):
        with torch.no_grad():
            expected = model(x) if run is traced else traced(x)
        torch.testing.assert_close(run(x), expected)
        total = collect_penalty(run)
        run(x)
        assert total > 0 and torch.equal(collect_penalty(run), total)
    assert len(revert(traced)) == 3 and isinstance(model[1], ActReg)


# ActReg as a class that other libraries instantiate


def test_partial_takes_inplace() -> None:
    layer = partial(ActReg, "relu", l1=0.5)(inplace=True)
    assert layer.inplace and layer.l1 == 0.5


# The documentation


@pytest.mark.parametrize("module", [conversion, report])
def test_examples_are_true(module: Any) -> None:
    globs = {"torch": torch, "actreg_ext": actreg_ext}
    result = doctest.testmod(module, extraglobs=globs)
    assert result.attempted > 2 and result.failed == 0


# A step of training


def test_a_step_is_that_of_the_plain_model_plus_the_penalty() -> None:
    plain = nn.Sequential(*mlp(0.0), nn.GELU(), nn.Linear(3, 3), nn.Tanh())
    model = copy.deepcopy(plain)
    convert(model, l1=0.25)
    x = torch.randn(5, 4)
    losses: list[Tensor] = []
    penalty = penalty_by_hand(plain, 0.25, lambda: losses.append(plain(x).square().mean()))
    (losses[0] + penalty).backward()
    (model(x).square().mean() + collect_penalty(model)).backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_inject_needs_no_collecting() -> None:
    explicit, injected = mlp(0.0), mlp(0.0)
    injected.load_state_dict(explicit.state_dict())
    convert(explicit, l1=0.25)
    convert(injected, l1=0.25, inject=True)
    x = torch.randn(5, 4)
    (explicit(x).sum() + collect_penalty(explicit)).backward()
    injected(x).sum().backward()
    for a, b in zip(explicit.parameters(), injected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_state_dicts_are_exchanged() -> None:
    model = mlp()
    convert(model, l1=1.0)
    other = mlp()
    other.load_state_dict(model.state_dict())
    convert(other)
    other.load_state_dict(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        revert(other)
    model.load_state_dict(other.state_dict())


# Errors of ActReg that name the right activation


class GELUTanh(nn.Module):
    """Of another library."""


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("relu2", "relu_squared"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_accurate", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_python_tanh", "gelu_tanh"),
        ("gelu_python", "gelu"),
        ("quick_gelu", "swish"),
        ("linear", "identity"),
        ("hard_swish", "hardswish"),
        (GELUTanh(), "gelu_tanh"),
    ],
)
def test_errors_name_the_right_activation(given: Any, meant: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"did you mean '{meant}'"):
        ActReg(given)


@pytest.mark.parametrize(
    "given", ["gelu_10", "laplace", "sqrtsoftplus", "xielu", "prelu", nn.PReLU(), nn.Softmax(-1)]
)
def test_errors_name_no_activation_that_is_another(given: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ActReg(given)
    assert "did you mean" not in str(caught.value)
