"""The way of a call whose arguments are checked: eager, traced, exported, in place, no kernel.

Under tracing (torch.compile, torch.export) the call is one registered operator of torch.ops.
No maths here: reference.py says what is computed.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling

from . import _C, ops
from .arguments import check_input, rng_state
from .reference import (
    ActRegOutput,
    accumulation_dtype,
    composite,
    composite_sums,
    draw,
    memory_order,
)
from .torch_activations import ACTIVATIONS

DEVICES = {"cpu", "meta"} | ({"cuda"} if _C.build_info()["cuda"] else set())
_warned: set[str] = set()
# Plain names instead of attributes: a call takes about one microsecond, so each look-up counts.
_forward = _C.forward
_is_tracing = torch._C._is_tracing


def run(
    input: Tensor,
    activation: str,
    parameters: tuple[float, ...],
    l1: float,
    l2: float,
    p: float,
    penalty_on: str,
    reduction: str,
    seed: int | Tensor | None,
    keep_input: bool,
) -> ActRegOutput:
    """Compute `act_reg` from arguments that are already checked, except the input."""
    if p == 0.0 and is_exporting():
        if torch.compiler._is_exporting_flag:
            check_input(input)
            return composite(input, activation, parameters, l1, l2, p, penalty_on, reduction, seed)
        if not l1 and not l2:  # torch.jit.trace; with a penalty the operator divides it by D
            check_input(input)
            output = ACTIVATIONS[activation][0](input, *parameters)
            return ActRegOutput(output, output.new_zeros((), dtype=accumulation_dtype(output)))
    if is_dynamo_compiling() or not (input.is_cpu or input.device.type in DEVICES):
        check_input(input)
        call = (input, activation, parameters, l1, l2, p, penalty_on, reduction, seed)
        if input.device.type not in DEVICES:
            return _without_kernel(*call)
        return _traced(*call, keep_input)
    try:
        state = None if seed is None or p == 0.0 else rng_state(seed, input)
        on_output = penalty_on == "output"
        return _forward(
            ActRegOutput,
            input,
            state,
            activation,
            parameters,
            p,
            on_output,
            l1,
            l2,
            reduction,
            keep_input,
        )
    except Exception:
        check_input(input)  # raises for a bad input, with a better text than the operator's
        raise


def is_exporting() -> bool:
    """Whether the call is traced into a program for others: by torch.export or torch.jit.trace.

    Such a program should run where this package is not installed. So without dropout it gets
    operators of torch alone.
    """
    # This reads the flag, because torch.compiler.is_exporting() is also true inside torch.compile
    # before torch 2.13.
    return torch.compiler._is_exporting_flag or (not is_dynamo_compiling() and _is_tracing())


def output_and_sums(
    x: Tensor,
    activation: str,
    parameters: tuple[float, ...],
    p: float,
    penalty_on: str,
    keep_input: bool,
) -> tuple[Tensor, Tensor]:
    """Compute y and the tensor {sum |t|, sum t^2}, from arguments that are already checked."""
    if x.device.type not in DEVICES or (p == 0 and is_exporting()):
        sums = composite_sums(x, activation, parameters, p, penalty_on, None)
        return sums.output, torch.stack((sums.l1, sums.l2))
    state = draw(x.device) if p > 0 else None
    result: tuple[Tensor, Tensor] = ops.forward(
        x,
        state,
        activation,
        parameters,
        p,
        penalty_on == "output",
        None,
        "sum",
        memory_order(x),
        keep_input,
    )
    return result


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
    keep_input: bool,
) -> ActRegOutput:
    """Call the operator under Dynamo, that is, in torch.compile and in a strict torch.export.

    The seed comes from torch.randint, and the operator itself draws nothing. The reason is that
    AOTAutograd merges two equal calls of a custom random operator, so two layers would have the
    same mask. It never merges calls of torch's own random operators.

    l1 and l2 multiply the sums outside the operator: a float argument of an operator would compile
    again for each new value. The operator only gets which of them are 0.

    The operator is used without dropout too: it takes 0.4 to 0.8 of the time of the code that
    torch.compile makes of `reference.composite`, for 2^22 elements (python -m benchmarks --places
    call --sizes 2^22).
    """
    state = None
    if p > 0:
        state = draw(x.device) if seed is None else rng_state(seed, x)
    # 1 for a penalty that is on, 0 for one that is off: with fewer penalties the operator may keep
    # less for the backward. None: both are on, and the operator returns both sums.
    on = None if l1 and l2 else [1.0, 0.0] if l1 else [0.0, 1.0] if l2 else [0.0, 0.0]
    on_output, order = penalty_on == "output", memory_order(x)
    output, sums = ops.forward(
        x, state, activation, parameters, p, on_output, on, reduction, order, keep_input
    )
    penalty = l1 * sums[0] + l2 * sums[1] if on is None else (l1 or l2) * sums
    return ActRegOutput(output, penalty)


def _without_kernel(x: Tensor, *rest: Any) -> ActRegOutput:
    """Compute the reference in plain PyTorch."""
    warn_without_kernel(x)
    return composite(x, *rest)


def warn_without_kernel(x: Tensor) -> None:
    """Warn once for each type of device that has no kernel."""
    device = x.device.type
    if device in DEVICES or device in _warned or is_compiling():
        return
    _warned.add(device)
    warnings.warn(
        f"actreg_ext has no kernel for {device} tensors in this build, so plain PyTorch "
        f"is used: same results, but slower (`python -m actreg_ext doctor` says why)",
        stacklevel=5,
    )


def needs_input(
    x: Tensor,
    name: str,
    parameters: tuple[float, ...],
    l1: float,
    l2: float,
    p: float,
    penalty_on: str,
) -> bool:
    """Whether x requires a gradient that needs x itself, which a call in place overwrites."""
    on_output = penalty_on == "output"
    return (
        x.requires_grad
        and torch.is_grad_enabled()
        and _C.kept(x.dtype, name, parameters, p, on_output, l1, l2) == "input"
    )


def copy_of(x: Tensor) -> Tensor:
    """Return a copy of the input that has the same memory order, so it has the same mask."""
    layout = torch.preserve_format if memory_order(x) else torch.contiguous_format
    return x.clone(memory_format=layout)


def run_in_place(
    x: Tensor,
    name: str,
    parameters: tuple[float, ...],
    l1: float,
    l2: float,
    p: float,
    penalty_on: str,
    reduction: str,
    seed: int | Tensor | None,
    keep_input: bool,
) -> ActRegOutput:
    """Compute `act_reg_` from arguments that are already checked.

    Copies the input first where overwriting it is not possible. If the gradient needs the input,
    the node keeps a copy.
    """
    needs_grad = x.requires_grad and torch.is_grad_enabled()
    if (
        is_compiling()
        or _is_tracing()
        or x.device.type not in DEVICES
        or x.is_neg()
        or (needs_grad and x._is_view())
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    ):
        call = (copy_of(x), name, parameters, l1, l2, p, penalty_on, reduction, seed)
        output, penalty = run(*call, keep_input)
        return ActRegOutput(x.copy_(output), penalty)
    state = None if seed is None or p == 0 else rng_state(seed, x)
    on_output = penalty_on == "output"
    penalty = _C.forward_(x, state, name, parameters, p, on_output, l1, l2, reduction, keep_input)
    return ActRegOutput(x, penalty)
