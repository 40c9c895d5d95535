"""The activations of other code that are activations here: classes, functions and pairs.

Classes of other libraries are known by module and name, so that none of them is imported.
No maths here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _C
from .torch_activations import ACTIVATIONS

Described = tuple[str, dict[str, Any]]

_PARAMETERS: dict[str, dict[str, float | None]] = _C.activations()
_QUICK_GELU: Described = ("swish", {"beta": 1.702})
# Library -> class -> what it computes. Checked in transformers 5.24 and timm 1.0.
_LIBRARIES: dict[str, dict[str, Described]] = {
    "transformers.activations": {
        "AccurateGELUActivation": ("gelu_tanh", {}),
        "FastGELUActivation": ("gelu_tanh", {}),
        "GELUActivation": ("gelu", {}),
        "GELUTanh": ("gelu_tanh", {}),
        "LinearActivation": ("identity", {}),
        "MishActivation": ("mish", {}),
        "NewGELUActivation": ("gelu_tanh", {}),
        "PytorchGELUTanh": ("gelu_tanh", {}),
        "QuickGELUActivation": _QUICK_GELU,
        "ReLUSquaredActivation": ("relu_squared", {}),
        "SiLUActivation": ("silu", {}),
    },
    "timm.layers": {
        "GELU": ("gelu", {}),
        "GELUTanh": ("gelu_tanh", {}),
        "HardSigmoid": ("hardsigmoid", {}),
        "HardSigmoidMe": ("hardsigmoid", {}),
        "HardSwish": ("hardswish", {}),
        "HardSwishMe": ("hardswish", {}),
        "Mish": ("mish", {}),
        "MishMe": ("mish", {}),
        "QuickGELU": _QUICK_GELU,
        "Sigmoid": ("sigmoid", {}),
        "Swish": ("silu", {}),
        "SwishMe": ("silu", {}),
        "Tanh": ("tanh", {}),
    },
}
# Copies of one class in transformers; before the name stands the model's.
_T5 = ("LongT5", "MT5", "NllbMoe", "Pop2Piano", "SwitchTransformers", "T5", "UMT5", "Udop")
_WAV2VEC2 = ("Data2VecAudio", "Hubert", "SEW", "UniSpeech", "UniSpeechSat", "Wav2Vec2", "WavLM")
# Modules whose forward calls one of their children right after another, and calls neither of them
# again: class -> (name of the activation, name of the dropout). An nn.Sequential needs no entry.
_PAIRS: dict[str, tuple[str, str]] = {
    "torch.nn.TransformerDecoderLayer": ("activation", "dropout"),
    "torch.nn.TransformerEncoderLayer": ("activation", "dropout"),
    "timm.layers.ConvMlp": ("act", "drop"),
    "timm.layers.GlobalResponseNormMlp": ("act", "drop1"),
    "timm.layers.Mlp": ("act", "drop1"),
    **{f"transformers.{model}DenseActDense": ("act", "dropout") for model in _T5},
    **{
        f"transformers.{model}FeedForward": ("intermediate_act_fn", "intermediate_dropout")
        for model in _WAV2VEC2
    },
}
_CALLING = ("forward", "_ff_block")  # the methods of these classes that call the pair


def _library_of(kind: type) -> str:
    """Return "torch.nn", "timm.layers", "transformers.activations" or "transformers", or ""."""
    module = kind.__module__
    if module.startswith("torch.nn.modules."):
        return "torch.nn"
    if module.startswith("timm.layers."):
        return "timm.layers"
    if module == "transformers.activations":
        return module
    return "transformers" if module.startswith("transformers.models.") else ""


def described(module: nn.Module) -> Described | None:
    """Return the name and the parameters of an activation module of a class that is known.

    None for a module of any other class, of a subclass too: it may compute something else.
    """
    kind = type(module)
    if kind is nn.GELU:
        return "gelu", {"approximate": module.approximate}
    for name, (_, known) in ACTIVATIONS.items():
        if kind is known:
            return name, {parameter: getattr(module, parameter) for parameter in _PARAMETERS[name]}
    return _LIBRARIES.get(_library_of(kind), {}).get(kind.__name__)


def accepted_classes() -> list[str]:
    """Return the names of the classes that `described` knows, for an error."""
    of_torch = [known.__name__ for _, known in ACTIVATIONS.values() if known is not None]
    return [*of_torch, *sorted({name for classes in _LIBRARIES.values() for name in classes})]


def same_as(name: str) -> str | None:
    """Return our name for what another library calls an activation, or None."""
    for classes in _LIBRARIES.values():
        if name in classes:
            return classes[name][0]
    return None


def pair_of(parent: nn.Module) -> tuple[str, str] | None:
    """Return the names of an activation and a dropout that `parent` calls one after the other.

    Also for a subclass that does not change how the two are called.
    """
    kind = type(parent)
    for base in kind.__mro__:
        pair = _PAIRS.get(f"{_library_of(base)}.{base.__name__}")
        if pair is not None:
            same = (getattr(kind, m, None) is getattr(base, m, None) for m in _CALLING)
            return pair if all(same) and not set(_CALLING) & set(parent.__dict__) else None
    return None


def is_activation_class(module: nn.Module) -> bool:
    """Whether a library calls the class of this module an activation."""
    module_name = type(module).__module__
    return (
        module_name == "torch.nn.modules.activation"
        and not isinstance(module, nn.MultiheadAttention)
    ) or module_name.startswith(("transformers.activations", "timm.layers.activations"))


def _gelu(approximate: str = "none") -> Described:
    return "gelu", {"approximate": approximate}


def _takes(name: str) -> Callable[..., Described]:
    """Return a function from the arguments of F.<name> to a description."""
    names = list(_PARAMETERS[name])

    def describe(*values: Any, inplace: bool = False, **named: Any) -> Described:
        if len(values) > len(names):  # a positional `inplace` or `out`
            raise TypeError(f"{name} takes {len(names)} parameters, but got {len(values)}")
        return name, {**dict(zip(names, values, strict=False)), **named}

    return describe


# Functional form -> (our activation from the arguments after the input). The name of a form that is
# always in place ends with "_".
FUNCTIONS: dict[Any, Callable[..., Described]] = {
    F.gelu: _gelu,
    torch.relu: _takes("relu"),
    torch.sigmoid: _takes("sigmoid"),
    torch.tanh: _takes("tanh"),
    F.relu: _takes("relu"),
    F.sigmoid: _takes("sigmoid"),
    F.tanh: _takes("tanh"),
    torch.selu: _takes("selu"),
    torch.celu: _takes("celu"),
    torch.hardshrink: _takes("hardshrink"),
    Tensor.relu: _takes("relu"),
    Tensor.sigmoid: _takes("sigmoid"),
    Tensor.tanh: _takes("tanh"),
    Tensor.hardshrink: _takes("hardshrink"),
    **{
        function: _takes(name)
        for name, (function, kind) in ACTIVATIONS.items()
        if kind is not None and name not in ("gelu", "identity")
    },
    **{
        getattr(holder, f"{name}_"): _takes(name)
        for holder in (torch, F, Tensor)
        for name in ACTIVATIONS
        if hasattr(holder, f"{name}_")
    },
}
# The same as methods of a tensor, as torch.fx records them.
METHODS: dict[str, Callable[..., Described]] = {
    name: _takes(name.removesuffix("_"))
    for name in ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardshrink")
}
DROPOUTS = (F.dropout, torch.dropout)


def described_function(function: Callable[..., Tensor]) -> Described | None:
    """Return the description of a function that a module holds as its activation."""
    try:
        return FUNCTIONS[function]() if function in FUNCTIONS else None
    except TypeError:  # unhashable
        return None
