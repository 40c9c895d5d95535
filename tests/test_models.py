"""`convert` on published architectures, and ActReg as the activation of other libraries."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import actreg_ext
from actreg_ext import ActReg, collect_penalty, convert, revert
from actreg_ext.known import _LIBRARIES, _PAIRS
from tests.libraries import library
from tests.published import MODELS, Published, image, tokens

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
L1 = 0.25
CLOSE = {"rtol": 1e-8, "atol": 1e-10}  # in float64: only the order of operations differs


class Pair:
    """A published model with p = 0 in float64, and a converted copy."""

    def __init__(self, published: Published) -> None:
        torch.manual_seed(0)
        self.plain = published.make(0.0).double()
        self.converted = copy.deepcopy(self.plain)
        self.report = convert(self.converted, l1=L1)
        self.published = published

    def run(self, model: nn.Module) -> Tensor:
        """The loss, or a number that depends on all outputs."""
        inputs = {
            name: value.double() if value.is_floating_point() else value
            for name, value in self.published.inputs().items()
        }
        output = model(**inputs)
        if getattr(output, "loss", None) is not None:
            return output.loss  # type: ignore[no-any-return]
        outputs = [output] if isinstance(output, Tensor) else list(output.to_tuple())
        tensors = [o for o in outputs if isinstance(o, Tensor)]
        return torch.stack([t.square().mean() for t in tensors]).sum()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small for more, and threads that wait for each other are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Pair(MODELS[request.param])


def by_hand(model: nn.Module, names: list[str], terms: list[Tensor]) -> list[Any]:
    """Append l1 * the mean of |a| to `terms` for every call of the activation modules."""
    return [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, a: terms.append(L1 * a.abs().mean())
        )
        for name in names
    ]


class Hardsigmoid(nn.Module):
    """The definition. torch's backward of hardsigmoid has 1/6 in float32, also for float64."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


@pytest.mark.parametrize("name", MODELS)
def test_what_is_replaced(name: str) -> None:
    """It is what a person would list, and revert puts everything back."""
    published = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = published.make(0.1)
    modules, keys = list(model.named_modules()), list(model.state_dict())
    report = convert(model, l1=L1)
    counts: Counter[str] = Counter()
    activations: dict[str, dict[str, None]] = {}
    for change in report.replaced:
        place = re.sub(r"(?<=^layer)\d+|\b\d+\b", "*", change.name)
        found = re.match(r"ActReg\((\w+)|(Identity)", change.now)
        assert found is not None
        counts[place] += 1
        activations.setdefault(place, {})[found[1] or found[2]] = None
    assert {k: (" and ".join(activations[k]), counts[k]) for k in counts} == published.replaced
    assert set(change.now for change in report.skipped) <= {"p is 0"}
    assert [n for n, _ in model.named_modules()] == [n for n, _ in modules]
    assert list(model.state_dict()) == keys
    revert(model)
    assert all(a[1] is b[1] for a, b in zip(model.named_modules(), modules, strict=True))


def test_outputs_are_equal(pair: Pair) -> None:
    with torch.no_grad():
        expected = pair.run(pair.plain.eval())
        torch.testing.assert_close(pair.run(pair.converted.eval()), expected, **CLOSE)
    assert collect_penalty(pair.converted) == 0


def test_training_is_that_of_the_original_plus_the_penalty(pair: Pair) -> None:
    """Two steps; the original's penalty is added up by hooks on its activations."""
    activations = [
        change.name
        for change in pair.report.replaced
        if change.now.startswith("ActReg(") and not change.now.startswith("ActReg(identity")
    ]
    plain, converted = copy.deepcopy(pair.plain).train(), copy.deepcopy(pair.converted).train()
    for name, module in list(plain.named_modules()):
        if isinstance(module, nn.Hardsigmoid):
            plain.set_submodule(name, Hardsigmoid())
    terms: list[Tensor] = []
    by_hand(plain, activations, terms)
    steps = [torch.optim.SGD(model.parameters(), 0.01) for model in (plain, converted)]
    for _ in range(2):
        terms.clear()
        losses = [pair.run(model) for model in (plain, converted)]
        penalties = [torch.stack(terms).sum(), collect_penalty(converted)]
        assert penalties[0] > 0
        torch.testing.assert_close(penalties[1], penalties[0], **CLOSE)
        for step, loss, penalty in zip(steps, losses, penalties, strict=True):
            step.zero_grad()
            (loss + penalty).backward()
            step.step()
        torch.testing.assert_close(losses[1], losses[0], **CLOSE)
    for a, b in zip(converted.parameters(), plain.parameters(), strict=True):
        assert torch.dist(a, b) <= 1e-6 * b.norm() + 1e-9


def test_states_are_exchanged(pair: Pair) -> None:
    plain, converted = pair.plain, pair.converted
    assert list(plain.state_dict()) == list(converted.state_dict())
    converted.load_state_dict(plain.state_dict())
    plain.load_state_dict(converted.state_dict())


@pytest.mark.parametrize("name", [name for name, m in MODELS.items() if m.compiles])
def test_compiled(name: str, nothing_compiled_yet: None) -> None:
    pair = Pair(MODELS[name])
    model = pair.converted.train()
    expected = pair.run(model) + collect_penalty(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    actual = pair.run(compiled) + collect_penalty(compiled)
    torch.testing.assert_close(actual, expected, **CLOSE)
    actual.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# The activations of other libraries


def test_hugging_faces_activations() -> None:
    """Every activation of ACT2FN that has a formula here is taken, with its values."""
    activations = library("transformers").activations
    x = torch.linspace(-6, 6, 61, dtype=torch.float64)
    unknown = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = {name: activations.ACT2FN[name] for name in activations.ACT2CLS}
    for name, module in made.items():
        try:
            layer = ActReg(module)
        except TypeError:
            unknown.add(name)
            continue
        torch.testing.assert_close(layer(x), module(x), rtol=1e-8, atol=1e-8)
        model = nn.Sequential(module)
        convert(model, l1=L1)
        assert isinstance(model[0], ActReg), name
    assert unknown == {"gelu_10", "laplace", "prelu", "sqrtsoftplus", "xielu"}
    assert repr(ActReg(made["quick_gelu"])).startswith("ActReg(swish(beta=1.702)")


def test_timms_activations() -> None:
    """Every activation class of timm that has a formula here is taken, with its values."""
    activations = library("timm").layers.activations
    memory_efficient = library("timm").layers.activations_me
    x = torch.linspace(-6, 6, 61, dtype=torch.float64)
    unknown, known = set(), set()
    for module in (activations, memory_efficient):
        for name, kind in vars(module).items():
            ours = isinstance(kind, type) and issubclass(kind, nn.Module)
            if not ours or kind.__module__ != module.__name__:
                continue
            try:
                layer = ActReg(kind())
            except TypeError:
                unknown.add(name)
                continue
            known.add(name)
            torch.testing.assert_close(layer(x), kind()(x.clone()), rtol=1e-8, atol=1e-8)
    assert unknown == {"HardMish", "HardMishMe", "PReLU"}
    assert known == set(_LIBRARIES["timm.layers"])


@pytest.mark.parametrize("name", [name for name in _PAIRS if not name.startswith("torch.")])
def test_known_pairs(name: str) -> None:
    """The source of the class calls the activation, then the dropout, and neither of them again."""
    act, drop = _PAIRS[name]
    package, _, kind = name.rpartition(".")
    folder = Path(str(library(package.partition(".")[0]).__file__)).parent
    pattern = "layers/*.py" if package == "timm.layers" else "models/*/modeling_*.py"
    (source,) = (
        text
        for path in folder.glob(pattern)
        if f"class {kind}(" in (text := path.read_text(encoding="utf-8"))
    )
    body = source.partition(f"class {kind}(")[2].partition("\nclass ")[0]
    forward = body.partition("def forward(")[2]
    calls = [call for call in re.findall(r"self\.(\w+)\(", forward) if call in (act, drop)]
    assert calls == [act, drop]
    lines = forward.splitlines()
    (index,) = (i for i, line in enumerate(lines) if f"self.{act}(" in line)
    assert f"self.{drop}(" in lines[index + 1]


def test_timms_inplace_flag() -> None:
    activations = library("timm").layers.activations
    model = nn.Sequential(activations.Swish(inplace=True), activations.Tanh())
    convert(model)
    assert model[0].inplace and not model[1].inplace


# ActReg in models that others build


def test_act_layer_of_timm() -> None:
    timm = library("timm")
    act = partial(ActReg, "relu", l1=L1)
    model = timm.create_model("test_resnet", num_classes=5, act_layer=act)
    layers = [module for module in model.modules() if isinstance(module, ActReg)]
    assert len(layers) == 12 and all(layer.l1 == L1 for layer in layers)
    assert any(layer.inplace for layer in layers)
    model(image()).sum().backward()
    assert collect_penalty(timm.layers.Mlp(4, act_layer=act)) == 0


def test_activation_layer_of_torchvision() -> None:
    ops = library("torchvision").ops
    act = partial(ActReg, "relu", l1=L1)
    conv = ops.Conv2dNormActivation(3, 4, activation_layer=act)
    perceptron = ops.MLP(4, [8, 4], activation_layer=act, inplace=True, dropout=0.1)
    for model, x in ((conv, image()), (perceptron, torch.randn(2, 4))):
        assert any(isinstance(m, ActReg) and m.inplace for m in model.modules())
        model(x)
        assert collect_penalty(model) > 0


def test_hidden_act_of_hugging_face() -> None:
    t = library("transformers")
    t.activations.ACT2FN["relu_reg"] = (ActReg, {"activation": "relu", "l1": L1})
    try:
        config = t.LlamaConfig(
            num_hidden_layers=1, num_attention_heads=2, hidden_size=16, intermediate_size=32,
            vocab_size=32, hidden_act="relu_reg",
        )  # fmt: skip
        model = t.LlamaForCausalLM(config)
    finally:
        del t.activations.ACT2FN["relu_reg"]
    assert isinstance(model.model.layers[0].mlp.act_fn, ActReg)
    model(tokens())
    assert collect_penalty(model) > 0


# Tracing


def test_feature_extractor() -> None:
    """create_feature_extractor traces a converted model, with each ActReg as a leaf."""
    feature_extraction = library("torchvision").models.feature_extraction
    model = MODELS["resnet"].make(0.0)
    convert(model, l1=L1)
    x = image()
    extractor = feature_extraction.create_feature_extractor(model, {"layer2": "y", "layer1": "z"})
    model(x)
    model.eval(), extractor.eval()
    assert extractor(x)["y"].shape == (2, 128, 4, 4)
    model.train(), extractor.train()
    collect_penalty(model)
    extractor(x)
    penalty = collect_penalty(extractor)
    traced = fx.symbolic_trace(model)
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert calls.count("relu") == 1 and calls.count("layer1.0.relu") == 2
    torch.testing.assert_close(traced(x), model(x))
    assert 0 < penalty < collect_penalty(model)


def test_a_traced_resnet_is_converted() -> None:
    model = MODELS["resnet"].make(0.0).eval()
    traced = fx.symbolic_trace(model)
    code, expected = traced.code, model(image())
    report = convert(traced, l1=L1)
    assert len(report.replaced) == 5
    torch.testing.assert_close(traced(image()), expected)
    revert(traced)
    assert traced.code == code


def test_a_feature_extractor_has_two_graphs() -> None:
    """Its calls of functions stay, because a change of one graph would not reach the other."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.act(x)).tanh()

    feature_extraction = library("torchvision").models.feature_extraction
    model = feature_extraction.create_feature_extractor(Net(), ["tanh"])
    report = convert(model, l1=L1)
    assert [change.name for change in report.replaced] == ["act", "drop"]
    assert type(model.drop) is ActReg  # not merged, as the other graph may use the activation
    assert [(c.name, c.now) for c in report.skipped] == [("tanh", "the module has several graphs")]


# Hints


def test_whispers_functions_are_hints() -> None:
    """Whisper calls F.gelu behind its convolutions and F.dropout."""
    published = MODELS["whisper"]
    report = convert(published.make(0.1), l1=L1, example=published.inputs(), dry_run=True)
    hints = {(hint.name, hint.function): hint.calls for hint in report.hints}
    assert hints["model.encoder", "gelu"] == 2
    assert hints["model.decoder.layers.0", "dropout"] > 0
    assert not any(name.endswith("activation_fn") for name, _ in hints)


def test_densenets_functions_are_hints() -> None:
    models = library("torchvision").models
    model = models.DenseNet(4, (1, 1), 8, num_classes=5)
    report = convert(model, l1=L1, example=image())
    assert [tuple(hint) for hint in report.hints] == [("", "relu", 1)]
    traced = fx.symbolic_trace(models.DenseNet(4, (1, 1), 8, num_classes=5))
    assert convert(traced, l1=L1, example=image()).hints == []
    assert isinstance(traced, fx.GraphModule) and actreg_ext.revert(traced)
