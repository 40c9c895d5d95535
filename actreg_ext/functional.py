"""The operator as a function: check the arguments, then let dispatch.py make the call.

No maths here: reference.py says what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_unary

from . import _C, arguments, dispatch
from .arguments import PENALTY_ON, READY, REDUCTIONS, check, resolve
from .dispatch import needs_input, run, run_in_place
from .general import run_general, sums_of
from .ragged import is_ragged, through_values
from .reference import ActRegOutput, ActSums
from .rows import FLAT, Shard, check_all, needed

__all__ = [
    "ActRegOutput",
    "ActSums",
    "Shard",
    "act_reg",
    "act_reg_",
    "act_sums",
    "activations",
    "dropout_mask",
]

_INF = math.inf
_Result = TypeVar("_Result", ActRegOutput, ActSums)


def act_reg(
    input: Tensor,
    activation: str | nn.Module = "relu",
    *,
    l1: float | Tensor = 0.0,
    l2: float | Tensor = 0.0,
    p: float | Tensor = 0.0,
    training: bool = True,
    penalty_on: str = "activation",
    reduction: str = "mean",
    seed: int | Tensor | None = None,
    keep: str = "auto",
    channel_dim: int | None = None,
    row_weight: Tensor | None = None,
    shared_dims: Sequence[int] = (),
    dropout: str = "standard",
    shard: Shard | None = None,
    **activation_parameters: float | str,
) -> ActRegOutput:
    r"""Compute an activation, its L1 and L2 penalties and dropout in one pass over the input.

    Equivalent to these lines of PyTorch, with a dropout mask of its own (see below)::

        a = torch.nn.functional.<activation>(input, **activation_parameters)
        output = torch.nn.functional.dropout(a, p, training)
        t = a if penalty_on == "activation" else output
        penalty = (l1 * t.abs().sum() + l2 * t.square().sum()) / D  # D: see `reduction`

    One kernel computes both results. The backward, also in one kernel, computes::

        dx = act'(x) * (where(keep, s * dy, 0) + (c1 * sign(t) + 2 * c2 * t) * dt/da)

    Here dx, dy and dpenalty are the gradients of the loss with respect to the input x, the output y
    and the penalty; act' is the slope of the activation; c1 = l1 * dpenalty / D; c2 = l2 * dpenalty
    / D; sign(0) = 0. dt/da is 1 for penalty_on="activation". For "output" it is s for a kept
    element and 0 for a dropped one.

    Dropout: each element has 16 random bits. An element is kept if these bits, read as an integer,
    are below T = round((1 - p) * 65536), so p is rounded to a multiple of 1 / 65536. A kept element
    is multiplied by s = 65536 / T, so the mean output over all masks is exactly a (if p < 1). The
    bits depend only on the seed and on the element's position in memory. So one seed gives one
    mask: on every device, for any number of threads, and in `reference.act_reg`. The backward
    recomputes the mask; no mask is stored.

    Memory: the call keeps one tensor for the backward, and at most 16 bytes for seed and offset.
    The first row of this table that fits the call says which tensor. If the layer before keeps the
    input too, or the next layer the output, keeping it costs no extra memory.

    ===============  ==============================================================================
    kept             for
    ===============  ==============================================================================
    nothing          l1 = l2 = 0: identity
    1 bit per        l2 = 0: relu, relu6, hardsigmoid, threshold, hardtanh with min_val >= 0
    element          l1 = l2 = 0: leaky_relu, hardtanh, hardshrink, softshrink
    the output       p = 0: relu; in float32 and float64 also sigmoid, tanh
                     keep="auto", with a penalty, p = 0: identity, relu6, hardshrink; in float32
                     and float64 also logsigmoid, softplus, leaky_relu, hardtanh, softshrink
                     keep="auto", with penalty_on="output", p > 0: identity, relu; in float32 and
                     float64 also leaky_relu
    the input        everything else
    ===============  ==============================================================================

    With a tensor for l1, l2 or p, with row_weight, shared_dims, shard or dropout="alpha", no bits
    are kept, and with p > 0 the input.

    Some parameters need the input instead of bits or the output: softplus with a threshold below
    about 17 (in float64 about 37; the default is 20), the activation "threshold" with l1 and a
    threshold below 0, leaky_relu with a penalty and a negative_slope below 0. The repr of
    `nn.ActReg` shows what is kept. A kept output must not be modified in place before the backward.
    With keep="input" the output is kept only where torch's own activation keeps it too, so that
    code which may modify the activation's output in place may modify this output too.

    Shapes: the input may have any shape. A dense input (contiguous, transposed, channels_last)
    keeps its memory order; any other input is copied to a contiguous one first. The output has the
    input's shape and dtype. The penalty is 0-d and float32 (float64 for a float64 input).

    Args:
        input: x, a float32, float64, float16 or bfloat16 tensor.
        activation: a name from `actreg_ext.activations()`, or an activation module of torch.nn such
            as `nn.LeakyReLU(0.2)`. The module's parameters are used; its `inplace` is ignored.
        l1: factor of sum |t|; finite, at least 0. Or a float32 or float64 tensor, which may require
            a gradient: 0-d, or of shape [C] with one factor for each channel. Only the shape of a
            tensor is checked, not its values.
        l2: factor of sum t^2, without a factor 1/2 (as in Keras); a number or a tensor, as l1.
        p: probability that an element is dropped, in [0, 1]. p = 0 draws no random number; p = 1
            drops every element. A 0-d tensor is read on the device: nothing waits for the device or
            compiles again when its value changes.
        training: False turns dropout off. The penalty is computed in both cases.
        penalty_on: "activation" penalizes a, the value before dropout; "output" penalizes the
            value after dropout.
        reduction: the divisor D of the penalty. "mean": the number of elements; "batch": size(0);
            "token": the number of elements / size(-1); "sum": 1. An empty tensor has penalty 0.
        seed: None draws a seed from the default generator of the input's device, which
            `torch.manual_seed` sets. An int in [-2^63, 2^64 - 1] is the seed itself, with offset 0.
            An int64 tensor [seed, offset] gives a different mask for each offset; to capture a CUDA
            graph, the tensor must be on the GPU.
        keep: "auto" keeps the output for the backward where the table says so. "input" keeps the
            input there, unless torch's own activation keeps the output.
        channel_dim: the dimension of the channels, whose size is C. Needed for l1 or l2 of shape
            [C]: the penalty is then the sum over the channels c of l1[c] * sum |t| over channel c,
            and the same for l2.
        row_weight: the weight w of each row, a tensor of bool, integers or real numbers. It
            broadcasts to the input's shape, with size 1 in channel_dim. The penalty sums w * |t|
            and w * t^2, and "mean" divides by the sum of w over all elements, "token" by that sum /
            size(-1). A row of weight 0 is left out, even if it is infinite or NaN. The output does
            not depend on w. There is no gradient for w.
        shared_dims: dimensions along which one random number serves all elements. For an input of
            shape (N, C, H, W), (2, 3) is the dropout of nn.Dropout2d.
        dropout: "standard", or "alpha" as in nn.AlphaDropout, with the same mask.
        shard: `Shard(global_shape, offsets)`: the input is a block of a tensor of global_shape and
            begins there at the index `offsets`. The mask is that block of the whole tensor's mask.
        **activation_parameters: parameters of an activation given by name, named as in torch.

    Returns:
        ActRegOutput: a named tuple (output, penalty). Both are differentiable twice; for higher
            derivatives use `reference.act_reg`.

    Raises:
        TypeError: an argument has the wrong type, a parameter is unknown, or the input is not a
            tensor of one of the four dtypes. Of the tensors that are not strided, only jagged
            nested tensors are accepted.
        ValueError: a name is unknown, or a number is out of range.

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
    # Under tracing the operators inside are overridden, one by one, not act_reg as a whole.
    if has_torch_function_unary(input) and (is_ragged(input) or not is_compiling()):
        options: dict[str, Any] = dict(
            l1=l1,
            l2=l2,
            p=p,
            training=training,
            penalty_on=penalty_on,
            reduction=reduction,
            seed=seed,
            keep=keep,
            channel_dim=channel_dim,
            row_weight=row_weight,
            shared_dims=shared_dims,
            dropout=dropout,
            shard=shard,
            **activation_parameters,
        )
        return _overridden(act_reg, input, activation, options)
    rows = FLAT
    if not (  # the cheapest tests that accept the usual call; `check` examines any other call
        type(l1) is type(l2) is type(p) is float
        and 0.0 <= l1 < _INF
        and 0.0 <= l2 < _INF
        and 0.0 <= p <= 1.0
        and (training is True or training is False)
        and type(penalty_on) is type(reduction) is str
        and penalty_on in PENALTY_ON
        and reduction in REDUCTIONS
        and seed is None
        and keep == "auto"
        and channel_dim is None
        and row_weight is None
        and shared_dims == ()
        and dropout == "standard"
        and shard is None
        and isinstance(input, Tensor)
    ):
        general = (channel_dim, row_weight, shared_dims, dropout, shard)
        l1, l2, p, rows = check_all(
            input, l1, l2, p, training, penalty_on, reduction, seed, keep, general
        )
    if not training:
        p = 0.0
    if rows is not FLAT:
        rows = needed(rows, l1, l2, p)
    if type(activation) is str and not activation_parameters and activation in READY:
        parameters = READY[activation]
    else:
        activation, parameters = resolve(activation, activation_parameters)
    call: Any = (l1, l2, p, penalty_on, reduction, seed, keep == "input")
    if rows is FLAT:
        return run(input, activation, parameters, *call)
    return run_general(input, activation, parameters, rows, *call)


def act_sums(
    input: Tensor,
    activation: str | nn.Module = "relu",
    *,
    p: float | Tensor = 0.0,
    training: bool = True,
    penalty_on: str = "activation",
    seed: int | Tensor | None = None,
    keep: str = "auto",
    channel_dim: int | None = None,
    row_weight: Tensor | None = None,
    shared_dims: Sequence[int] = (),
    dropout: str = "standard",
    shard: Shard | None = None,
    **activation_parameters: float | str,
) -> ActSums:
    r"""Compute an activation, dropout, and the sums over the rows that penalties are made of.

    With `channel_dim` the input has C channels; the other dimensions are the rows. For t, the
    penalized value of `act_reg`, and w, the weight of each row::

        l1[c] = sum over rows of w * |t|      count[c] = number of rows with w != 0 and t != 0
        l2[c] = sum over rows of w * t^2      weight = the sum of w over all elements

    `act_reg` computes l1 * sum(l1) + l2 * sum(l2) of these sums. Other penalties are formulas of
    the same sums, and need no further pass over the activation: see `actreg_ext.penalties`. One
    kernel computes all results, and one kernel the whole gradient.

    Shapes: l1, l2 and count have shape [C]; without channel_dim they are 0-d. `weight` is 0-d.

    Args:
        input: x, as in `act_reg`.
        activation: as in `act_reg`.
        p: as in `act_reg`.
        training: as in `act_reg`.
        penalty_on: "activation" or "output": what t is.
        seed: as in `act_reg`.
        keep: as in `act_reg`.
        channel_dim: the dimension of the channels. None: the whole input is one channel.
        row_weight: w, as in `act_reg`.
        shared_dims: as in `act_reg`.
        dropout: as in `act_reg`.
        shard: as in `act_reg`.
        **activation_parameters: parameters of an activation given by name.

    Returns:
        ActSums: a named tuple (output, l1, l2, count, weight). output, l1 and l2 are differentiable
            twice; count and weight have no gradient.

    Raises:
        TypeError, ValueError: as for `act_reg`.

    References:
        As for `act_reg`; docs/operator.md.

    Example:
        >>> x = torch.tensor([[-1.0, 2.0], [3.0, 4.0]])
        >>> sums = act_sums(x, "relu", channel_dim=1)
        >>> sums.l1, sums.l2, sums.count
        (tensor([3., 6.]), tensor([ 9., 20.]), tensor([1, 2]))
    """
    if has_torch_function_unary(input) and (is_ragged(input) or not is_compiling()):
        named: dict[str, Any] = dict(
            p=p,
            training=training,
            penalty_on=penalty_on,
            seed=seed,
            keep=keep,
            channel_dim=channel_dim,
            row_weight=row_weight,
            shared_dims=shared_dims,
            dropout=dropout,
            shard=shard,
            **activation_parameters,
        )
        return _overridden(act_sums, input, activation, named)
    options = (channel_dim, row_weight, shared_dims, dropout, shard)
    _, _, p, rows = check_all(input, 0.0, 0.0, p, training, penalty_on, "sum", seed, keep, options)
    name, parameters = resolve(activation, activation_parameters)
    p = p if training else 0.0
    return sums_of(input, name, parameters, p, penalty_on, seed, keep == "input", rows)


def _overridden(
    f: Callable[..., _Result], input: Tensor, activation: str | nn.Module, options: dict[str, Any]
) -> _Result:
    """Call f for a jagged tensor, or where a mode or a subclass of Tensor sees the call."""
    result: _Result
    if is_ragged(input):
        result = through_values(f, input, activation, options)
    else:
        result = handle_torch_function(f, (input,), input, activation, **options)
    return result


def output_and_sums(
    input: Tensor,
    activation: str | nn.Module,
    *,
    p: float,
    training: bool,
    penalty_on: str,
    keep: str,
    shared_dims: Sequence[int] = (),
    dropout: str = "standard",
    **activation_parameters: float | str,
) -> tuple[Tensor, Tensor]:
    """Return the output of `act_reg` and the tensor {sum |t|, sum t^2}, for a record."""
    options = (None, None, shared_dims, dropout, None)
    checked = check_all(input, 0.0, 0.0, p, training, penalty_on, "sum", None, keep, options)
    p, keep_input = p if training else 0.0, keep == "input"
    rows = needed(checked[-1], 0.0, 0.0, p)
    name, parameters = resolve(activation, activation_parameters)
    if rows is FLAT:
        return dispatch.output_and_sums(input, name, parameters, p, penalty_on, keep_input)
    sums = sums_of(input, name, parameters, p, penalty_on, None, keep_input, rows)
    return sums.output, torch.stack((sums.l1, sums.l2))


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
    """Compute `act_reg` in place: the output overwrites the input.

    Equivalent to these lines, in one pass and without memory for a second tensor::

        output, penalty = act_reg(input, activation, ...)
        input.copy_(output)

    If the input requires a gradient, the backward must not need the input, because the call
    overwrites it. So the call raises RuntimeError if the table in `act_reg` says "the input".
    Without gradients, and under torch.compile, every call works. If another operation has saved the
    input for its own backward, that backward raises an error, as after any other in-place operation
    of torch.

    Shapes: the input may have any shape. The results are always the same, but three kinds of calls
    copy the input first: the input is not dense, the input is a view of a tensor that requires a
    gradient, or the call runs under torch.compile, torch.func or forward-mode AD.

    Args:
        input: x, which y overwrites.
        activation: as in `act_reg`.
        l1: factor of sum |t|, as in `act_reg`.
        l2: factor of sum t^2, as in `act_reg`.
        p: probability that an element is dropped, as in `act_reg`.
        training: False turns dropout off.
        penalty_on: "activation" or "output", as in `act_reg`.
        reduction: "mean", "batch", "token" or "sum", as in `act_reg`.
        seed: as in `act_reg`. None draws a seed by torch.randint; on the CPU `act_reg` draws the
            same seed, on a GPU another one.
        **activation_parameters: parameters of an activation given by name.

    Returns:
        ActRegOutput: (input, penalty).

    Raises:
        TypeError, ValueError: as for `act_reg`.
        RuntimeError: the backward would need the overwritten input, or torch forbids writing to
            the input (a leaf that requires a gradient, a tensor whose elements overlap in memory).

    References:
        As for `act_reg`. torch.nn.functional.relu_ follows the same rules.

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
    if not training:
        p = 0.0
    if not is_compiling() and needs_input(input, name, parameters, l1, l2, p, penalty_on):
        raise RuntimeError(
            f"act_reg_: with these penalties and this p, the gradient of {name!r} in {input.dtype} "
            f"needs the input, which would be overwritten; use act_reg"
        )
    return run_in_place(input, name, parameters, l1, l2, p, penalty_on, reduction, seed, False)


def dropout_mask(
    shape: int | Sequence[int],
    p: float | Tensor,
    seed: int | Tensor | None,
    device: torch.device | str | None = None,
    *,
    shared_dims: Sequence[int] = (),
    shard: Shard | None = None,
) -> Tensor:
    """Return the dropout mask that `act_reg` uses for this seed: True where an element is kept.

    Equivalent to `act_reg(torch.ones(shape), "identity", p=p, seed=seed).output != 0`. As a
    formula, keep(i) = r(i) < round((1 - p) * 65536), where r(i) are the 16 random bits of the
    element at position i. docs/mask.md defines the bits and the position.

    Shapes: the mask is the one of a contiguous input of shape `shape`. For a channels_last input of
    shape (N, C, H, W), ask for the shape (N, H, W, C) and apply `.permute(0, 3, 1, 2)`.

    Args:
        shape: the shape of the input.
        p: probability that an element is dropped, in [0, 1].
        seed: as in `act_reg`. None draws a seed, so each call returns a new mask.
        device: the device of the mask; None is torch's default device.
        shared_dims: as in `act_reg`: along these dimensions the mask repeats.
        shard: as in `act_reg`: the mask is that block of the mask of the whole tensor.

    Returns:
        A bool tensor of shape `shape`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> dropout_mask((2, 4), p=0.5, seed=0)
        tensor([[ True,  True, False, False],
                [ True, False, False, False]])
    """
    if not isinstance(p, Tensor):
        p = arguments.probability(p)
    if seed is not None:
        arguments.check_seed(seed)
    ones = torch.ones(shape, dtype=torch.bfloat16, device=device)
    options: dict[str, Any] = dict(p=p, seed=seed, shared_dims=shared_dims, shard=shard)
    return act_reg(ones, "identity", **options).output != 0


def activations() -> dict[str, dict[str, float | None]]:
    """Return all activations as {name: {parameter: default}}.

    Names, parameters and defaults are those of torch.nn.functional. A default of None means that
    the caller must give the parameter.

    Example:
        >>> activations()["leaky_relu"]
        {'negative_slope': 0.01}
    """
    return _C.activations()
