"""What a training loop with `ActReg(inject=True)` calls: the scale, the values, the check.

No maths here. injection.py and csrc/torch/nodes.h inject.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import arguments, errors
from .collection import collect_penalty, modules_of
from .injection import Injection
from .nn import ActReg
from .pending import Pending


def set_injection_scale(
    model: nn.Module, scale: float | Tensor | torch.amp.GradScaler = 1.0, accumulation: int = 1
) -> None:
    """Set the factor of the gradients that `ActReg(inject=True)` modules add: scale / accumulation.

    The injected gradient is that of `scale / accumulation * penalty`. It must match what the loop
    does to its loss, because nothing multiplies the injected gradient afterwards:

    - with a `torch.amp.GradScaler`, pass the scaler: its current scale is read on the device in
      each backward, without synchronisation;
    - with gradient accumulation over N batches, whose losses are divided by N, pass
      accumulation=N: the gradient of the window is that of the mean loss.

    The scale is read when the backward runs. In compiled code and under torch.func it is read when
    the forward runs. A copy of the model (copy.deepcopy, pickle) keeps a scale that is a number.
    After any other scale the forward of the copy raises, until this is called for the copy.

    Args:
        model: the model; its modules with inject=True are set.
        scale: a number, a 0-d tensor (kept, not copied: change it in place), or a GradScaler.
        accumulation: the number of batches whose gradients add up to one step.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the scale is not finite or not 0-d, accumulation is below 1, or no module has
            inject=True.

    Example:
        >>> from actreg_ext.nn import ActReg
        >>> model = nn.Sequential(nn.Linear(4, 8), ActReg("relu", l1=1e-4, inject=True))
        >>> set_injection_scale(model, accumulation=4)
    """
    modules = _injecting(model)
    if isinstance(accumulation, bool) or not isinstance(accumulation, int):
        raise TypeError(f"accumulation must be an int, but got {errors.shown(accumulation)}")
    if accumulation < 1:
        raise ValueError(f"accumulation must be at least 1, but got {accumulation}")
    given: float | Tensor = 1.0
    if isinstance(scale, torch.amp.GradScaler):
        given = _scale_of(scale, model)
    elif isinstance(scale, Tensor):
        if scale.dim() != 0 or not scale.is_floating_point():
            raise ValueError(
                f"scale must be a 0-d floating-point tensor, but got {errors.shown(scale)}"
            )
        given = scale.detach()
    else:
        given = arguments.real("scale", scale)
        if not math.isfinite(given):
            raise ValueError(f"scale must be finite, but got {given}")
    for module in modules:
        injection = module._injection
        injection.accumulation = accumulation
        if isinstance(given, Tensor):
            injection.scale = given
        elif injection.is_own and injection.scale is not None:
            injection.scale.fill_(given)  # in place: a captured graph holds this tensor
        else:
            injection.scale = torch.full((), given)
        injection.is_own = not isinstance(given, Tensor)
        injection.is_lost = False


def _scale_of(scaler: torch.amp.GradScaler, model: nn.Module) -> float | Tensor:
    """Return the tensor in which a GradScaler holds its scale; 1 if the scaler is disabled."""
    if not scaler.is_enabled():
        return 1.0
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    scaler.scale(torch.ones((), device=device))  # makes the tensor, if this is the first use
    scale = scaler._scale
    assert isinstance(scale, Tensor)
    return scale


def penalty_values(model: nn.Module) -> dict[str, Tensor]:
    """Return the value of each injected penalty in the last training forward, for logging.

    Args:
        model: the model, or any part of it.

    Returns:
        {module name: 0-d tensor without gradient}; modules that have not run are left out.

    Raises:
        TypeError: `model` is not an nn.Module.
        ValueError: no module has inject=True; use `record_penalties` instead.

    Example:
        >>> from actreg_ext.nn import ActReg
        >>> layer = ActReg("relu", l1=0.5, reduction="sum", inject=True)
        >>> y = layer(torch.tensor([-1.0, 2.0]))
        >>> penalty_values(layer)
        {'': tensor(1.)}
    """
    injecting = set(map(id, _injecting(model)))
    values = {}
    for name, module in model.named_modules():
        if id(module) in injecting and module._injection.value is not None:
            values[name] = module._injection.value
    return values


class InjectionCheck(NamedTuple):
    """What `check_injection` found.

    Attributes:
        differing: {parameter name: largest difference of the two gradients, divided by the largest
            absolute gradient}, for the parameters whose gradients differ by more than rounding.
        message: what differs, and likely causes, as text.
    """

    differing: dict[str, float]
    message: str

    def __bool__(self) -> bool:
        """Whether the injected gradients are those of the explicit form."""
        return not self.differing


def check_injection(
    model: nn.Module, batch: Any, loss_fn: Callable[[Any], Tensor], tolerance: float = 1e-3
) -> InjectionCheck:
    """Compare the gradients of the injected form with those of the explicit form.

    Runs the model twice on one batch with the same random numbers: once as it is, and once with
    inject=False. Both losses include `collect_penalty(model)`. Gradients, buffers, the generators
    and pending penalties stay as they were. The scale of `set_injection_scale` is replaced by 1
    meanwhile.

    The injected form loses the gradient of a penalty if the module's output is not used, or is
    detached, on the way to the loss.

    Args:
        model: a model with inject=True modules, in training mode.
        batch: arguments of the model: a tuple, a dict or one value.
        loss_fn: takes the model's output and returns the loss, a 0-d tensor.
        tolerance: relative difference from which gradients count as different.

    Returns:
        InjectionCheck: true if nothing differs; `message` says what differs.

    Raises:
        TypeError: `model` is not an nn.Module, or `loss_fn` cannot be called.
        ValueError: no module has inject=True.

    Example:
        >>> from actreg_ext.nn import ActReg
        >>> model = nn.Sequential(nn.Linear(4, 8), ActReg("gelu", l1=0.1, inject=True))
        >>> print(check_injection(model, torch.randn(3, 4), torch.sum).message)
        the gradients of 2 parameters agree
    """
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be a function of the output, but got {errors.shown(loss_fn)}"
        )
    modules = _injecting(model)
    parameters = {n: t for n, t in model.named_parameters() if t.requires_grad}
    saved = [(module, module._injection) for module in modules]
    # What is pending stays pending, and what the check makes must not join it.
    pending = [(module, module._pending) for module in modules_of(model)]

    def gradients(inject: bool) -> list[Tensor | None]:
        for module, _ in pending:
            module._pending = Pending()
        for module in modules:
            module.inject = inject
            module._injection = Injection()
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        devices = sorted({t.device.index or 0 for t in parameters.values() if t.is_cuda})
        try:
            with torch.random.fork_rng(devices):
                loss = loss_fn(_call(model, batch)) + collect_penalty(model)
                return list(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])

    try:
        injected, explicit = gradients(True), gradients(False)
    finally:
        for module, injection in saved:
            module.inject = True
            module._injection = injection
        for found, store in pending:
            found._pending = store
    differing = {}
    for name, a, b in zip(parameters, injected, explicit, strict=True):
        difference = _difference(a, b)
        if difference > tolerance:
            differing[name] = difference
    if not differing:
        return InjectionCheck({}, f"the gradients of {len(parameters)} parameters agree")
    worst = sorted(differing, key=differing.__getitem__, reverse=True)[:5]
    listed = ", ".join(f"{name} ({differing[name]:.2g})" for name in worst)
    return InjectionCheck(
        differing,
        f"the gradients of {len(differing)} of {len(parameters)} parameters differ: {listed}. "
        f"If a penalty's gradient is missing, the output of its module is detached, or is not used "
        f"on the way to the loss. Use inject=False and collect_penalty there.",
    )


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    given = [t for t in (a, b) if t is not None]
    if not given:
        return 0.0
    first = a if a is not None else torch.zeros_like(given[0])
    second = b if b is not None else torch.zeros_like(given[0])
    largest = max(float(_largest(t)) for t in (first, second))
    return float(_largest(first.double() - second.double())) / largest if largest else 0.0


def _largest(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, math.inf) if t.numel() else torch.zeros(())


def _injecting(model: nn.Module) -> list[ActReg]:
    modules = [m for m in modules_of(model) if isinstance(m, ActReg) and m.inject]
    if not modules:
        raise ValueError("model has no ActReg with inject=True; use collect_penalty instead")
    return modules
