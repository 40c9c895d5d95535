"""The texts of errors. Each says what was given, what is accepted, and which name may be meant.

The functions here return an exception; arguments.py raises it. Only a bad call comes here, so these
functions need not be fast.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn import functional

from . import known

# What other libraries, or other parts of torch, call our names: their name -> our name. "" is for
# what has no formula here, so that the error does not name a similar activation.
OTHER_NAMES = {
    "avg": "mean",
    "dropout": "p",
    "gelu_10": "",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "generator": "seed",
    "hard_mish": "",
    "hard_sigmoid": "hardsigmoid",
    "hard_swish": "hardswish",
    "laplace": "",
    "linear": "identity",
    "quick_gelu": "swish",
    "relu2": "relu_squared",
    "sqrtsoftplus": "",
    "xielu": "",
}


def not_one_of(argument: str, value: object, accepted: Iterable[str]) -> ValueError | TypeError:
    """Build the error for a value that is not one of the accepted names."""
    names = list(accepted)
    text = f"{argument} must be one of {', '.join(names)}, but got {shown(value)}"
    if isinstance(value, str):
        return ValueError(text + nearest(value, names))
    if isinstance(value, type) and issubclass(value, nn.Module):
        return TypeError(f"{text}; pass an instance: {value.__name__}(...)")
    return TypeError(text + nearest(getattr(value, "__name__", ""), names))


def unknown_module(module: nn.Module, accepted: Iterable[str]) -> TypeError:
    """Build the error for a module that known.py does not know."""
    names, other = list(accepted), type(module).__name__
    same = known.same_as(other)
    hint = f" (did you mean {same!r}?)" if same else nearest(other, names)
    if known.is_activation_class(module):  # of a library, so it is what was meant
        hint = ""
    return TypeError(
        f"activation must be a name or an instance of one of the torch.nn, timm "
        f"or transformers classes "
        f"{', '.join(names)} (exactly this class, because a subclass may compute something else), "
        f"but got {brief(module)}{hint}"
    )


def probability_as_dropout(value: object) -> TypeError:
    """Build the error for a dropout that is no name: it may be meant as the probability."""
    return TypeError(
        f"dropout must be 'standard' or 'alpha', but got dropout={brief(value)} "
        f"(did you mean 'p', the probability?)"
    )


def parameters_of_module(module: nn.Module, given: Mapping[str, object]) -> TypeError:
    """Build the error for parameters given together with a module, which has its own."""
    return TypeError(
        f"parameters are accepted only for an activation given by name, but got {listed(given)} "
        f"for {brief(module)}, which brings its own"
    )


def unknown_parameter(
    activation: str,
    name: str,
    value: object,
    accepted: Mapping[str, float | None],
    taker: str,
    options: Iterable[str],
) -> TypeError:
    """Build the error for a keyword that neither the activation nor `taker` accepts."""
    parameters = ", ".join(k if v is None else f"{k}={v}" for k, v in accepted.items())
    return TypeError(
        f"unknown argument {name}={brief(value)}: {activation} takes "
        f"{parameters or 'no parameters'}; {taker} takes {', '.join(options)}"
        f"{nearest(name, [*accepted, *options])}"
    )


def not_real(argument: str, value: object) -> TypeError:
    """Build the error for a value that is not a real number."""
    hint = " (if it has one element, pass tensor.item())" if isinstance(value, Tensor) else ""
    return TypeError(f"{argument} must be a real number, but got {shown(value)}{hint}")


def bad_input(input: object, dtypes: tuple[object, ...], argument: str = "input") -> TypeError:
    """Build the error for an input that is not a dense tensor of one of the dtypes."""
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    text = f"{argument} must be a dense (strided) tensor of dtype {names}, but got"
    if not isinstance(input, Tensor):
        return TypeError(f"{text} {shown(input)}")
    if input.is_quantized:
        return TypeError(f"{text} {input.dtype}: call .dequantize() first")
    if input.dtype not in dtypes:
        way = "pass .real or .abs()" if input.is_complex() else "convert it with .to(torch.float32)"
        return TypeError(f"{text} {input.dtype}: {way}")
    if input.is_nested:
        return TypeError(f"{text} a nested tensor: pass its .values(), or pad it")
    return TypeError(f"{text} layout {input.layout}: call .to_dense() first")


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the accepted name that is most similar, or ""."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    meant = OTHER_NAMES.get(name.lower(), name.lower())
    if name.lower() == "quick_gelu" and meant in by_lower:
        return " (did you mean 'swish' with beta=1.702?)"
    if not meant or hasattr(functional, meant) and meant not in by_lower:  # not "gelu" for "glu"
        return ""
    close = difflib.get_close_matches(meant, by_lower, n=1, cutoff=0.5)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def listed(values: Mapping[str, object]) -> str:
    """Return name=value, name=value, ..."""
    return ", ".join(f"{name}={brief(value)}" for name, value in values.items())


def shown(value: object) -> str:
    """Return a value as text, with its type; of a tensor, dtype and shape."""
    typed = isinstance(value, str | Tensor)
    return brief(value) if typed else f"{brief(value)} ({type(value).__name__})"


def brief(value: object) -> str:
    """Return a value as text of one line, 100 characters at most; of a tensor, dtype and shape."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
