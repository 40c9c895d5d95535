"""Random programs: what a program is, how it runs, and which results are right.

A program is a call of act_reg inside of steps such as vmap, grad, checkpoint or compile (steps.py).

Note [What a program may differ in]
The truth is reference.act_reg in float64 on the same numbers, run plainly: a Python loop over the
examples of each vmap, torch.autograd.grad for each derivative, and no other feature of PyTorch. The
results of the program under test must equal the truth up to rounding:

- Shapes, dtypes and the number of results are equal.
- The masks are equal: where dropout makes the true output 0, the output is exactly 0; where the
  true output is above 1/1000 in size, the output is not 0.
- A dense output keeps the memory order of the tensor that act_reg was given.
- The largest error of a result is at most ROUNDINGS * eps * max(1, the largest true number). All
  numbers in a program (inputs, weights, penalties times D) are about 1, so the terms of every
  result are about 1 too. Summing in another order, or rounding the output or a gradient to its
  dtype, makes an error far below this limit. In float64 the limit is twice as high, because the
  truth has rounding errors too.
- A larger error is accepted only where the program is ill-conditioned. The limit is then twice the
  error of eager PyTorch (the reference, run plainly in the program's dtype) plus ROUNDINGS times
  the change that a relative error of eps in x, output and penalty makes in the truth.

No input lies within 1/16 of a kink, because the derivatives on the two sides of a kink differ.

The mask counts positions in the tensor that act_reg is given: in memory order if the tensor is
dense, else row-major. Under vmap PyTorch may change this order, so the strategies make no step that
would do so.

A program may also raise an error. Two errors are right. act_reg_ raises one if the backward needs
the input; then `_C.kept` must say "input". And PyTorch raises errors of its own for some programs.
Then the same program with the reference must raise an error with the same words, or both errors
must ask for a bug report to PyTorch.
"""

from __future__ import annotations

import gc
import logging
import math
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from actreg_ext import _C, collect_penalty, reference
from actreg_ext.functional import act_reg, act_reg_
from actreg_ext.nn import ActReg
from tests.memory import Layout, in_order, lay_out, memory_order, placing_strides
from tests.steps import (
    FORWARD,
    HESSIANS,
    Derivative,
    Function,
    Results,
    Step,
    Tracer,
    Vmap,
    Wrapper,
)
from tests.tolerance import _ACCURATE

ROUNDINGS = 8
_DISPATCH_KEYS = (
    torch._C._dispatch_tls_local_include_set(),
    torch._C._dispatch_tls_local_exclude_set(),
)
# PyTorch's own hardsigmoid has no second derivative.
_TWICE_DIFFERENTIABLE = {"hardsigmoid": _ACCURATE["hardsigmoid"]}
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}


@dataclass(frozen=True)
class Call:
    """The call of act_reg.

    form: "function", "in place", "module" (an ActReg and collect_penalty) or "checkpointed module".
    before: the function in BEFORE that computes the input of act_reg from x.
    after: the function in AFTER that is applied to the output.
    times: the number of equal calls.
    seed: None, an int, or the pair (seed, offset), which becomes a tensor.
    """

    activation: str = "silu"
    parameters: tuple[float, ...] = ()  # (): the defaults
    l1: float = 0.0
    l2: float = 0.0
    p: float = 0.0
    training: bool = True
    penalty_on: str = "activation"
    reduction: str = "mean"
    seed: int | tuple[int, int] | None = 0
    form: str = "function"
    before: str = "nothing"
    after: str = "nothing"
    times: int = 1

    def options(self) -> dict[str, Any]:
        names = _C.activations()[self.activation]
        given = dict(zip(names, self.parameters, strict=True)) if self.parameters else {}
        same = ("activation", "l1", "l2", "p", "training", "penalty_on", "reduction")
        return {**{name: getattr(self, name) for name in same}, **given}

    def kinks(self) -> list[float]:
        """Where a derivative may jump: the kinks of all activations, and the parameters."""
        places = {0.0, 1.0, 3.0, 6.0, 0.5, *map(abs, self.parameters)}
        if self.activation == "softplus" and self.parameters:
            places.add(abs(self.parameters[1] / self.parameters[0]))
        return [sign * place for place in places for sign in (1, -1)]


BEFORE: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "times 1": lambda x: x * 1,
    "view of times 1": lambda x: (x * 1).transpose(0, -1),
    "transpose": lambda x: x.transpose(0, -1),
    "slice": lambda x: x[..., ::2],
    "expand": lambda x: x[None].expand(2, *x.shape),
    "linear": lambda x: F.linear(x, _weights(3, x.shape[-1], like=x), _bias(3, like=x)),
    "conv": lambda x: F.conv2d(x, _weights(3, x.shape[1], 1, 1, like=x), _bias(3, like=x)),
    "conv 3": lambda x: F.conv2d(
        x, _weights(3, x.shape[1], 3, 3, like=x), _bias(3, like=x), padding=1
    ),
}
AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda y: y,
    "linear": lambda y: F.linear(y, _weights(2, y.shape[-1], like=y)),
    "conv": lambda y: F.conv2d(y, _weights(2, y.shape[1], 1, 1, like=y)),
    "pool": lambda y: F.avg_pool2d(y, 2),
}
LAYERS = ("linear", "conv", "conv 3")  # PyTorch chooses the memory order of their results


def _weights(*shape: int, like: Tensor) -> Tensor:
    """Weights from -1, 0, 1, 2: they keep the layer's result away from the kinks.

    In front of a layer x is a multiple of 1/4 (see `Program.x`), and `_bias` is an odd multiple of
    1/8. So the result is an odd multiple of 1/8, while kinks are multiples of 1/4.
    """
    numbers = torch.arange(math.prod(shape), device=like.device)
    return ((numbers * 3 + 1) % 4 - 1).reshape(shape).to(like.dtype)


def _bias(length: int, like: Tensor) -> Tensor:
    return (torch.arange(length, device=like.device) / 4 - 0.125).to(like.dtype)


def _times(penalty: Tensor, weight: float) -> Tensor:
    """The product in the penalty's dtype: a 0-d tangent times a Python number would be float64."""
    return penalty * torch.full_like(penalty, weight)


@dataclass(frozen=True)
class Program:
    """A call of act_reg on one tensor x, and the steps around the call, the outermost first."""

    call: Call = Call()
    shape: tuple[int, ...] = (3,)
    layout: Layout = Layout()
    dtype: str = "float32"
    key: int = 0  # seed of the numbers in x
    steps: tuple[Step, ...] = ()
    traced_shape: tuple[int, ...] | None = None  # None: `shape`

    # The inputs of the call.

    @cached_property
    def vmaps(self) -> list[Vmap]:
        return [step for step in self.steps if isinstance(step, Vmap)]

    @cached_property
    def example_shape(self) -> tuple[int, ...]:
        """The shape of x in the innermost function."""
        shape = list(self.shape)
        for step in self.vmaps:
            if step.dim is not None:
                del shape[step.dim]
        return tuple(shape)

    @cached_property
    def weight(self) -> float:
        """A power of 2 near D: the penalty times this number has a gradient of about 1."""
        x = BEFORE[self.call.before](torch.empty(self.example_shape))
        return 2.0 ** round(math.log2(reference.denominator(x, self.call.reduction)))

    def x(self, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> Tensor:
        """The input in `dtype`, with numbers that are exact in the program's dtype too."""
        shape = self.shape if shape is None else shape
        generator = torch.Generator().manual_seed(self.key + len(shape))

        def values(length: int) -> Tensor:
            x = torch.randn(length, generator=generator, dtype=torch.float64) * 2
            if self.call.before in LAYERS:
                return (x.clamp(-2, 2) * 4).round().div(4).to(dtype)
            x = x.clamp(-4, 4).to(DTYPES[self.dtype]).double()
            for _ in range(3):
                for kink in self.call.kinks():
                    x = x.where((x - kink).abs() >= 1 / 16, kink + 1 / 8)
            return x.to(dtype)

        return lay_out(values, shape, self.layout)

    def seeds(self) -> tuple[Tensor, ...]:
        """A seed tensor with different numbers for each example, if a vmap has a `seed_dim`."""
        shape = [2]
        for step in reversed(self.vmaps):
            if step.seed_dim is not None:
                shape.insert(step.seed_dim, step.size)
        if len(shape) == 1:
            return ()
        generator = torch.Generator().manual_seed(self.key)
        return (torch.randint(-(2**62), 2**62, shape, generator=generator),)

    def seed(self) -> int | Tensor | None:
        return torch.tensor(self.call.seed) if isinstance(self.call.seed, tuple) else self.call.seed

    # The methods of steps.Context, which the steps call.

    def example(self, requires_grad: bool) -> tuple[Tensor, ...]:
        x = self.x(DTYPES[self.dtype], self.traced_shape)
        return x.detach().requires_grad_(requires_grad), *self.seeds()

    def reseed(self) -> None:
        torch.manual_seed(self.key)

    # How the program runs.

    def ours(self, call: Callable[..., Any] | None = None) -> Results:
        """The results of the program under test, or of the program with `call` for act_reg."""
        f = self._fused(call or (act_reg_ if self.call.form == "in place" else act_reg))
        for step in reversed(self.steps):
            f = step.ours(f, self)
        x = self.x(DTYPES[self.dtype])
        self.reseed()
        return f(x, *self.seeds())

    def plain(
        self, dtype: torch.dtype, noise: float = 0.0, key: int = 0, is_truth: bool = True
    ) -> Results:
        """The results of the reference, with only loops and torch.autograd.grad.

        `noise` is a relative error that is put into x, output and penalty, with random signs.
        """
        f = self._reference(noise, key)
        for step in reversed(self.steps):
            f = step.plain(f)
        accurate = _ACCURATE if is_truth and dtype == torch.float64 else {}
        accurate = {**_TWICE_DIFFERENTIABLE, **accurate}
        self.reseed()
        with mock.patch.dict(reference.ACTIVATIONS, accurate):
            results = f(self.x(dtype), *self.seeds())
        return tuple(t.detach() for t in results)

    def _fused(self, call: Callable[..., Any]) -> Function:
        options, own_seed, weight = self.call.options(), self.seed(), self.weight
        before, after = BEFORE[self.call.before], AFTER[self.call.after]
        if "module" in self.call.form and call is act_reg:
            return self._module()

        def f(x: Tensor, *seeds: Tensor) -> Results:
            results: Results = ()
            for _ in range(self.call.times):
                y, penalty = call(before(x), seed=seeds[0] if seeds else own_seed, **options)
                results += after(y), _times(penalty, weight)
            return results

        return f

    def _module(self) -> Function:
        options = self.call.options()
        layer = ActReg(**{k: v for k, v in options.items() if k != "training"})
        before, after, weight = BEFORE[self.call.before], AFTER[self.call.after], self.weight
        is_checkpointed = self.call.form == "checkpointed module"
        layer.train(self.call.training)

        def f(x: Tensor) -> Results:
            h = before(x)
            y = checkpoint(layer, h, use_reentrant=False) if is_checkpointed else layer(h)
            return after(y), _times(collect_penalty(layer).to(_accumulation(h)), weight)

        return f

    def _reference(self, noise: float, key: int) -> Function:
        options, own_seed, weight = self.call.options(), self.seed(), self.weight
        before, after = BEFORE[self.call.before], AFTER[self.call.after]
        order = self.order_after_layer() if self.call.before in LAYERS else None
        generator = torch.Generator().manual_seed(key)
        if "module" in self.call.form:  # in eval mode a module adds no penalty
            options = {**options, **({} if self.call.training else {"l1": 0.0, "l2": 0.0})}

        def noisy(t: Tensor) -> Tensor:
            signs = torch.randint(0, 2, t.shape, generator=generator) * 2 - 1
            return t * (1 + noise * signs) if noise else t

        def once(x: Tensor, *seeds: Tensor) -> Results:
            seed = seeds[0] if seeds else own_seed
            h = before(x)
            places = memory_order(h) if order is None else order
            h = in_order(h.resolve_neg(), places)
            state = torch.get_rng_state()
            y, penalty = reference.act_reg(noisy(h), seed=seed, **options)
            if noise:  # other noise for the penalty, so that it does not cancel in a gradient
                torch.set_rng_state(state)
                penalty = reference.act_reg(in_order(noisy(h), places), seed=seed, **options)[1]
            return after(noisy(y)), _times(noisy(penalty), weight)

        def f(x: Tensor, *seeds: Tensor) -> Results:
            return sum((once(x, *seeds) for _ in range(self.call.times)), ())

        return f

    def order_after_layer(self) -> tuple[int, ...]:
        """The memory order of the result of the layer `before`, in the program's dtype."""
        with torch.no_grad():
            x = self.x(DTYPES[self.dtype])
            if any(step.name() == "autocast" for step in self.steps):
                x = x.bfloat16()
            return memory_order(BEFORE[self.call.before](x))

    def kept(self) -> str:
        """What act_reg keeps for the backward."""
        c = self.call
        defaults = _C.activations()[c.activation].values()
        parameters = c.parameters or tuple(float(value or 0.0) for value in defaults)
        p = c.p if c.training else 0.0
        on_output = c.penalty_on == "output"
        return _C.kept(DTYPES[self.dtype], c.activation, parameters, p, on_output, c.l1, c.l2)

    def family(self) -> str:
        if any(isinstance(step, Tracer) for step in self.steps):
            names = " ".join(step.name() for step in self.steps)
            return next(
                f for f in ("inductor", "compile", "tracing") if f in names or f == "tracing"
            )
        derivatives = [step for step in self.steps if isinstance(step, Derivative)]
        if self.vmaps or any(step.is_functorch() for step in derivatives):
            return "functorch"
        return "autograd" if self.steps else "layout"


def _accumulation(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Disagreement(AssertionError):
    """A result is wrong; `kind` says what about it: shape, dtype, strides, mask or values."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@contextmanager
def _warnings_as_errors() -> Iterator[None]:
    """Raise an error for each warning, and suppress what PyTorch logs before it raises."""
    disabled = logging.root.manager.disable
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module="torch")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # A warning of compiled autograd, which reads the .grad of saved tensors.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        # A warning of torch.func.linearize.
        warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")
        try:
            yield
        finally:
            logging.disable(disabled)


def check(program: Program) -> None:
    """Assert Note [What a program may differ in]."""
    with torch._C._ForceDispatchKeyGuard(*_DISPATCH_KEYS):  # a failed trace may leave them changed
        _check(program)


def _check(program: Program) -> None:
    try:
        with _warnings_as_errors():
            got = program.ours()
    except Exception as error:
        if is_refused_rightly(program, error):
            return
        raise
    finally:
        if any(step.traces() for step in program.steps):
            tidy()
    truth = program.plain(torch.float64)
    if len(got) != len(truth):
        raise Disagreement("number of results", f"{len(got)} instead of {len(truth)}")
    _check_kinds(program, got, truth)
    _check_mask(program, got, truth)
    wrong = [
        (i, error, limit)
        for i, (g, t) in enumerate(zip(got, truth, strict=True))
        for error, limit in [_error(program, g, t)]
        if not error <= limit
    ]
    if wrong:
        limits = _limits_if_ill_conditioned(program, truth)
        for i, error, limit in wrong:
            if not error <= limit + limits[i]:
                raise Disagreement(
                    "values",
                    f"result {i} is off by {error:.3g}, more than {limit + limits[i]:.3g}:\n"
                    f"{got[i].detach()}\nis not\n{truth[i]}",
                )


def is_refused_rightly(program: Program, error: Exception) -> bool:
    """Whether Note [What a program may differ in] allows this exception."""
    if "which would be overwritten; use act_reg" in str(error):
        return program.call.form == "in place" and program.kept() == "input"

    def instead(x: Tensor, **options: Any) -> Any:
        y, penalty = reference.act_reg(x, **options)
        return (x.copy_(y) if program.call.form == "in place" else y), penalty

    _forget_frames(error)
    tidy()
    try:
        with _warnings_as_errors(), mock.patch.dict(reference.ACTIVATIONS, _TWICE_DIFFERENTIABLE):
            program.ours(instead)
    except Exception as other:
        _forget_frames(other)
        are_bugs = all("please report a bug to PyTorch" in str(e) for e in (error, other))
        return are_bugs or type(other) is type(error) and _words(other) == _words(error)
    finally:
        tidy()
    return False


def _forget_frames(error: BaseException | None) -> None:
    """Free what the frames of a failed trace hold, such as guards of the dispatcher.

    Otherwise Python's garbage collection would free the guards in the middle of a later program.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def tidy() -> None:
    """Undo what an exception leaves behind in PyTorch: compiled code, torch.func, forward mode."""
    torch._dynamo.reset()
    while torch._C._functorch.peek_interpreter_stack() is not None:
        torch._C._functorch.pop_dynamic_layer_stack()
    while forward_ad._current_level >= 0:
        forward_ad.exit_dual_level()
    with suppress(RuntimeError):  # a level that compiled code entered
        torch._C._exit_dual_level(level=0)


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()[:2]  # the first may only name the backend
    return re.sub(r"\d+|0x[0-9a-f]+", "#", " ".join(lines))[:100]


def _eps(program: Program) -> float:
    is_bfloat16 = any(step.name() == "autocast" for step in program.steps)
    return torch.finfo(torch.bfloat16 if is_bfloat16 else DTYPES[program.dtype]).eps


def _check_kinds(program: Program, got: Results, truth: Results) -> None:
    for i, (g, t) in enumerate(zip(got, truth, strict=True)):
        if g.shape != t.shape:
            raise Disagreement("shape", f"result {i} has {g.shape} instead of {t.shape}")
    if any(step.name() == "autocast" for step in program.steps):
        return
    allowed = {DTYPES[program.dtype], _accumulation(torch.empty(0, dtype=DTYPES[program.dtype]))}
    if any(step.name() in (*HESSIANS, *FORWARD) for step in program.steps):
        allowed.add(torch.float64)  # the loss; the tangent of a number times a 0-d tensor
    for i, g in enumerate(got):
        if g.dtype not in allowed:
            raise Disagreement("dtype", f"result {i} has {g.dtype}")
    if any(isinstance(step, (Derivative, Vmap)) for step in program.steps):
        return
    allowed.discard(torch.float64) if program.dtype != "float64" else None
    for output, penalty in zip(got[::2], got[1::2], strict=True):
        if output.dtype != DTYPES[program.dtype] or penalty.dtype != max(allowed, key=_bytes):
            raise Disagreement("dtype", f"output {output.dtype}, penalty {penalty.dtype}")
    if program.call.before not in LAYERS and program.call.after == "nothing":
        traced = any(isinstance(step, Tracer) for step in program.steps)
        if program.call.form == "in place" or traced:  # input's strides, compiler's choice
            return
        h = BEFORE[program.call.before](program.x(DTYPES[program.dtype]))
        expected = in_order(h.resolve_neg(), memory_order(h))
        if h.numel() > 0 and placing_strides(got[0]) != placing_strides(expected):
            raise Disagreement("strides", f"{got[0].stride()} instead of {expected.stride()}")


def _bytes(dtype: torch.dtype) -> int:
    return dtype.itemsize


def _check_mask(program: Program, got: Results, truth: Results) -> None:
    """Compare zeros, if the results are outputs and penalties: only dropout makes an output 0."""
    if program.call.after != "nothing":
        return
    if any(isinstance(step, Derivative) for step in program.steps):
        return
    for g, t in zip(got[::2], truth[::2], strict=True):
        if ((g != 0) & (t == 0)).any() or ((g == 0) & (t.abs() > 1e-3)).any():
            raise Disagreement("mask", f"{g.detach()}\nis not\n{t}")


def _error(program: Program, got: Tensor, truth: Tensor) -> tuple[float, float]:
    """The largest error, and its limit if the program is not ill-conditioned."""
    if got.numel() == 0:
        return 0.0, 0.0
    error = (got.detach().double() - truth).abs().max().item()
    of_both = 2 if program.dtype == "float64" else 1
    return error, of_both * ROUNDINGS * _eps(program) * max(1.0, truth.abs().max().item())


def _limits_if_ill_conditioned(program: Program, truth: Results) -> list[float]:
    """What is added to the limit of each result if the program is ill-conditioned."""
    eager = program.plain(DTYPES[program.dtype], is_truth=False)
    noisy = [program.plain(torch.float64, _eps(program), key) for key in range(4)]
    limits = []
    for i, t in enumerate(truth):
        if t.numel() == 0:
            limits.append(0.0)
            continue
        errors = [(n[i] - t).abs().max().item() for n in noisy]
        limits.append(2 * (eager[i].double() - t).abs().max().item() + ROUNDINGS * max(errors))
    return limits


def script(program: Program, error: BaseException) -> str:
    """A Python program that fails as this one did, if it is run in the root of this project."""
    names = [type(step).__name__ for step in program.steps]
    imported = sorted({"Derivative", *names} & set(names))
    lines = ["from tests.memory import Layout", "from tests.programs import Call, Program, check"]
    lines += [f"from tests.steps import {', '.join(imported)}"] if imported else []
    found = str(error).strip().replace("\n", "\n# ")
    lines += ["", f"# {type(error).__name__}: {found}", f"check({short(program)})"]
    return "\n".join(lines)


def short(value: Any) -> str:
    """The repr of a dataclass without the fields that have their defaults."""
    if isinstance(value, tuple) and any(isinstance(v, Step) for v in value):
        return f"({', '.join(map(short, value))},)"
    if not hasattr(value, "__dataclass_fields__"):
        return repr(value)
    shown = [
        f"{field.name}={short(getattr(value, field.name))}"
        for field in fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


__all__ = ["Call", "Layout", "Program", "Wrapper", "check", "replace", "script", "short"]
