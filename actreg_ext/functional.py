"""The operator as a function: checks, then one call into C++, or one registered op under tracing.

No maths here: reference.py says what is computed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_unary

from . import _C, arguments, ops
from .arguments import PENALTY_ON, READY, REDUCTIONS, check, check_input, resolve, rng_state
from .reference import ActRegOutput, composite, draw, memory_order

__all__ = ["ActRegOutput", "act_reg", "act_reg_", "activations", "dropout_mask"]

_DEVICES = {"cpu", "meta"} | ({"cuda"} if _C.build_info()["cuda"] else set())
_warned: set[str] = set()
# Names without a dot: each look-up counts in a call of one microsecond.
_forward = _C.forward
_INF = math.inf


def act_reg(
    input: Tensor,
    activation: str | nn.Module = "relu",
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    p: float = 0.0,
    training: bool = True,
    penalty_on: str = "activation",
    reduction: str = "mean",
    seed: int | Tensor | None = None,
    **activation_parameters: float | str,
) -> ActRegOutput:
    r"""Compute y = where(keep, act(x) * s, 0) and its L1 and L2 penalty in one pass over x.

    Equivalent to these lines, in one kernel, and with one more for the whole gradient::

        a = torch.nn.functional.<activation>(input, **activation_parameters)
        output = torch.nn.functional.dropout(a, p, training)
        t = a if penalty_on == "activation" else output
        penalty = (l1 * t.abs().sum() + l2 * t.square().sum()) / D

    The gradient, with c1 = l1 * dpenalty / D, c2 = l2 * dpenalty / D and sign(0) = 0, is

        dx = act'(x) * (keep ? s * dy : 0  +  (c1 * sign(t) + 2 * c2 * t) * dt/da).

    An element is kept when 16 random bits are below T = round((1 - p) * 65536), and s = 65536 / T,
    so the expected output is exactly a. The bits are a function of the seed and of the element's
    position in memory only, so the mask is the same on every device, for any number of threads, and
    in `reference.act_reg`; it is not stored.

    Kept for the backward, besides 16 bytes: the input, or less where that is enough. A bit for
    each element, where the slope has two values and no more than that is needed: relu, relu6,
    hardsigmoid, threshold without l2; leaky_relu, hardtanh, hardshrink, softshrink without l1 and
    l2. Nothing: identity without l1 and l2. The output, which the next layer keeps anyway and which
    must not be modified in place before the backward: relu, relu6, identity and hardshrink
    otherwise, and in float32 and float64 sigmoid, logsigmoid, tanh, softplus (float64: with a
    threshold from 38 on), leaky_relu, hardtanh and softshrink, at p = 0 or, relu, identity and
    leaky_relu, with the penalty on the output. (hardtanh with min_val >= 0 is as relu, threshold
    < 0 with l1 as gelu: the input.)

    Shapes: input any, dense in any memory order (channels_last stays so) or strided (made
    contiguous); output the same shape and dtype; penalty 0-d, float32, or float64 for float64.

    Args:
        input: x, a float32, float64, float16 or bfloat16 tensor.
        activation: a name from `actreg_ext.activations()`, or an activation of torch.nn such as
            `nn.LeakyReLU(0.2)`, whose parameters are taken (`inplace` is ignored).
        l1: factor of sum |t|; finite, at least 0.
        l2: factor of sum t^2 (no one half, as in Keras); finite, at least 0.
        p: probability of an element to be dropped, in [0, 1]. p = 0 draws no random number.
        training: if False no element is dropped; the penalty is computed all the same.
        penalty_on: "activation" (t = a, before dropout) or "output" (t = y, after it).
        reduction: what D is: "mean" the number of elements, "batch" size(0), "token" the number of
            elements / size(-1), "sum" 1. Of an empty tensor the penalty is 0.
        seed: None draws from the default generator of the input's device (torch.manual_seed rules);
            an int in [-2^63, 2^64 - 1]; or an int64 tensor {seed, offset}, for which many calls
            may share a seed and differ in the offset (to capture a CUDA graph: on that device).
        **activation_parameters: parameters of a named activation, as torch calls them.

    Returns:
        ActRegOutput: a named tuple (output, penalty), both differentiable, also twice.

    Raises:
        TypeError: an argument of the wrong kind, an unknown parameter, an input that is not a
            dense floating-point tensor.
        ValueError: an unknown name, or a number out of range.

    References:
        Keras' activity_regularizer; Merity et al., "Revisiting Activation Regularization for
        Language RNNs", arXiv:1708.01009; Srivastava et al., "Dropout", JMLR 15 (2014).

    Example:
        >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
        >>> output, penalty = act_reg(x, "relu", l1=0.5, l2=0.25, reduction="sum")
        >>> output.tolist(), penalty.item()
        ([0.0, 2.0, 3.0], 5.75)
        >>> (output.sum() + penalty).backward()
        >>> x.grad
        tensor([0.0000, 2.5000, 3.0000])
    """
    if has_torch_function_unary(input) and not is_compiling():  # tracing overrides each op
        return handle_torch_function(
            act_reg,
            (input,),
            input,
            activation,
            l1=l1,
            l2=l2,
            p=p,
            training=training,
            penalty_on=penalty_on,
            reduction=reduction,
            seed=seed,
            **activation_parameters,
        )
    if not (  # the usual call, told by the cheapest tests; `check` judges every other
        type(l1) is type(l2) is type(p) is float
        and 0.0 <= l1 < _INF
        and 0.0 <= l2 < _INF
        and 0.0 <= p <= 1.0
        and (training is True or training is False)
        and type(penalty_on) is type(reduction) is str
        and penalty_on in PENALTY_ON
        and reduction in REDUCTIONS
        and seed is None
        and isinstance(input, Tensor)
    ):
        l1, l2, p = check(input, l1, l2, p, training, penalty_on, reduction, seed)
    if not training:
        p = 0.0
    if type(activation) is str and not activation_parameters and activation in READY:
        parameters = READY[activation]
    else:
        activation, parameters = resolve(activation, activation_parameters)
    if is_dynamo_compiling() or not (input.is_cpu or input.device.type in _DEVICES):
        check_input(input)
        call = (input, activation, parameters, l1, l2, p, penalty_on, reduction, seed)
        if input.device.type not in _DEVICES:
            return _without_kernel(*call)
        return _traced(*call)
    try:
        state = None if seed is None or p == 0.0 else rng_state(seed, input)
        on_output = penalty_on == "output"
        return _forward(
            ActRegOutput, input, state, activation, parameters, p, on_output, l1, l2, reduction
        )
    except Exception:
        check_input(input)  # the op refuses the same inputs, before any work; this text is better
        raise


def _traced(
    x: Tensor,
    activation: str,
    parameters: tuple[float, ...],
    l1: float,
    l2: float,
    p: float,
    penalty_on: str,
    reduction: str,
    seed: int | Tensor | None,
) -> ActRegOutput:
    """Call the op under Dynamo: in torch.compile and in a strict torch.export.

    The seed comes from torch.randint and the op is pure: AOTAutograd merges two equal calls of a
    custom random op, which would give two layers one mask, and makes an exception for torch's own.
    The coefficients stay outside the op, where a changing float does not compile again; which of
    them are 0 does not. Without dropout too the op is faster than what torch.compile makes of the
    composite: 0.4 to 0.8 of its time for 2^22 elements
    (python -m benchmarks --places call --sizes 2^22).
    """
    state = None
    if p > 0:
        state = draw(x.device) if seed is None else rng_state(seed, x)
    # Which penalties there are is the op's to know: with fewer it may keep less for backward.
    on = None if l1 and l2 else [1.0, 0.0] if l1 else [0.0, 1.0] if l2 else [0.0, 0.0]
    on_output, order = penalty_on == "output", memory_order(x)
    output, sums = ops.forward(x, state, activation, parameters, p, on_output, on, reduction, order)
    penalty = l1 * sums[0] + l2 * sums[1] if on is None else (l1 or l2) * sums
    return ActRegOutput(output, penalty)


def _without_kernel(x: Tensor, *rest: Any) -> ActRegOutput:
    """Compute the reference, with one warning for each type of device."""
    device = x.device.type
    if device not in _warned and not is_compiling():
        _warned.add(device)
        warnings.warn(
            f"actreg_ext has no kernel for {device} tensors in this build and computes them in "
            f"plain PyTorch: the same results, more slowly (`python -m actreg_ext doctor`)",
            stacklevel=3,
        )
    return composite(x, *rest)


def act_reg_(
    input: Tensor,
    activation: str | nn.Module = "relu",
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    p: float = 0.0,
    training: bool = True,
    penalty_on: str = "activation",
    reduction: str = "mean",
    seed: int | Tensor | None = None,
    **activation_parameters: float | str,
) -> ActRegOutput:
    """Compute `act_reg` in place: the output overwrites the input, and no memory is allocated.

    Equivalent to `input.copy_(act_reg(input, ...).output)`, in one pass over half the memory. With
    a gradient to come it works where backward does not need the input (`act_reg` says where), as
    torch.relu_ does; everything else works without gradients, and under torch.compile. What was
    saved of the input by others is noticed by its version, as for every in-place operation of
    torch.

    Shapes: input any. Through a copy goes what is not dense, a view of a tensor that requires a
    gradient, and all of it under torch.compile and torch.func.

    Args:
        input: x, overwritten by y.
        activation: this and the others are those of `act_reg`.
        l1: factor of sum |t|.
        l2: factor of sum t^2.
        p: probability of an element to be dropped.
        training: if False no element is dropped.
        penalty_on: "activation" or "output".
        reduction: what D is.
        seed: as in `act_reg`; None draws by torch.randint, which on the CPU gives what `act_reg`
            draws.
        **activation_parameters: parameters of a named activation.

    Returns:
        ActRegOutput: (input, penalty).

    Raises:
        TypeError, ValueError: as `act_reg`.
        RuntimeError: backward would need the overwritten input, or torch does not allow to write
            to it (a leaf that requires a gradient, a tensor whose elements overlap).

    References:
        Those of `act_reg`; the rules are those of torch.nn.functional.relu_.

    Example:
        >>> x = torch.tensor([-1.0, 2.0])
        >>> output, penalty = act_reg_(x, "relu", l1=0.5)
        >>> output is x, x.tolist(), penalty.item()
        (True, [0.0, 2.0], 0.5)
    """
    options: dict[str, Any] = dict(
        l1=l1,
        l2=l2,
        p=p,
        training=training,
        penalty_on=penalty_on,
        reduction=reduction,
        seed=seed,
        **activation_parameters,
    )
    if has_torch_function_unary(input) and not is_compiling():
        return handle_torch_function(act_reg_, (input,), input, activation, **options)
    l1, l2, p = check(input, l1, l2, p, training, penalty_on, reduction, seed)
    name, parameters = resolve(activation, activation_parameters)
    needs_grad = input.requires_grad and torch.is_grad_enabled()

    def through_a_copy() -> ActRegOutput:
        # Of the input, because backward may need what is overwritten, and in the same order.
        layout = torch.preserve_format if memory_order(input) else torch.contiguous_format
        output, penalty = act_reg(input.clone(memory_format=layout), activation, **options)
        return ActRegOutput(input.copy_(output), penalty)

    if is_compiling():
        return through_a_copy()
    if not training:
        p = 0.0
    on_output = penalty_on == "output"
    if needs_grad and _C.kept(input.dtype, name, parameters, p, on_output, l1, l2) == "input":
        raise RuntimeError(
            f"act_reg_: with these penalties and p the gradient of {name!r} in {input.dtype} needs "
            f"the input, which would be overwritten; use act_reg"
        )
    if (
        input.device.type not in _DEVICES
        or input.is_neg()
        or (needs_grad and input._is_view())
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return through_a_copy()
    state = None if seed is None or p == 0 else rng_state(seed, input)
    penalty = _C.forward_(input, state, name, parameters, p, on_output, l1, l2, reduction)
    return ActRegOutput(input, penalty)


def dropout_mask(
    shape: int | Sequence[int],
    p: float,
    seed: int | Tensor | None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return keep = r(i) < round((1 - p) * 65536): the mask that `act_reg` uses, True where kept.

    Equivalent to `act_reg(torch.ones(shape), "identity", p=p, seed=seed).output != 0`, and computed
    so. Position i runs in contiguous order; for a channels_last input of shape (N, C, H, W) ask for
    the mask of shape (N, H, W, C) and permute it.

    Args:
        shape: the shape of the input.
        p: probability of an element to be dropped, in [0, 1].
        seed: as in `act_reg`; None draws one.
        device: where the mask is made; torch's default device if None.

    Returns:
        bool tensor of shape `shape`.

    Raises:
        TypeError: p or seed of the wrong kind.
        ValueError: p or seed out of range.

    Example:
        >>> dropout_mask((2, 4), p=0.5, seed=0)
        tensor([[False,  True, False, False],
                [False, False, False, False]])
    """
    p = arguments.probability(p)
    if seed is not None:
        arguments.check_seed(seed)
    ones = torch.ones(shape, dtype=torch.bfloat16, device=device)
    return act_reg(ones, "identity", p=p, seed=seed).output != 0


def activations() -> dict[str, dict[str, float | None]]:
    """Return {name: {parameter: default}} of every activation, from the C++ registry.

    A default of None means that the parameter has to be given. Names, parameters and defaults are
    those of torch.nn.functional.

    Example:
        >>> activations()["leaky_relu"]
        {'negative_slope': 0.01}
    """
    return _C.activations()
