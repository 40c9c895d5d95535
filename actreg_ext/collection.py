"""`collect_penalty` and `discard_penalty`: how a penalty gets from a model into the loss.

Who owns a penalty before that is in pending.py. No maths here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .pending import PenaltyModule, Pending, collected, take
from .records import stack, sum_of, sweep

_LOOSE = (
    "collect_penalty: in code that torch.compile traces, only the last few eager forwards of a "
    "module can be collected; call discard_penalty(model) before the compiled code, or "
    "collect_penalty outside of it"
)


def collect_penalty(model: nn.Module) -> Tensor:
    """Return the sum of the penalties of `model` in this training step, and clear them.

    Equivalent to adding the `penalty` of every `act_reg` call that the ActReg modules of `model`
    have made; the sum is differentiable as these are. Call it once in each training step, after the
    forward and before the backward::

        loss = criterion(model(x), target) + collect_penalty(model)
        loss.backward()

    Every forward of the step counts once. A module that stands at two places of the model runs
    twice, so it contributes two penalties. But if nothing uses the output of the first of them (a
    branch that was detached, for example), the first penalty is dropped like that of a skipped
    batch. Use `record_penalties` there: a record keeps every call.

    Threads: the call takes the forwards of all threads. If several threads train one model, each
    with its own loss, use `record_penalties`, which keeps the calls of its own thread.

    A step that was skipped does not leak into the next one. The penalty of a forward is dropped
    once a backward has freed the graph of that forward, or once nothing uses the output any more
    and the model has run again. If the program keeps the outputs of a skipped batch
    (in a list, or in the traceback of an exception), call `discard_penalty(model)`, or run the step
    inside a `record_penalties` block, which forgets its calls when it ends with an exception. Call
    `discard_penalty` too if only some modules run in each step and no other ActReg runs in all of
    them (a mixture of experts), and if inputs need no gradient: their penalties are constants.

    The penalties of a forward that is not trained, such as the discriminator in a GAN's generator
    step, would join the sum too if its output is in use: drop them with `discard_penalty`.

    Inside a function that torch.func transforms (vmap, grad), under FakeTensorMode and under
    make_fx, call both the model and `collect_penalty` in that function. `nn.DataParallel` is not
    supported, because the penalties of its replicas are lost: use
    `nn.parallel.DistributedDataParallel`.

    Args:
        model: the model, or any part of it.

    Returns:
        A 0-d tensor on the device of the first penalty. If there is nothing to collect, the result
        is 0 on the device of the model's first parameter (on the CPU if the model has none). If the
        backward of the newest forward has already run, the value is right, but its backward raises.
        If only the backward of older forwards has run, their penalties are dropped.

    Raises:
        TypeError: `model` is not an nn.Module.
        RuntimeError: the newest forward ran inside a transform that has ended. All pending
            penalties are dropped in this case.

    Example:
        >>> from actreg_ext.nn import ActReg
        >>> model = nn.Sequential(ActReg("relu", l1=1.0, reduction="sum"), ActReg("tanh"))
        >>> y = model(torch.tensor([-1.0, 2.0]))
        >>> collect_penalty(model), collect_penalty(model)
        (tensor(2.), tensor(0.))
    """
    modules = modules_of(model)
    if is_compiling():
        penalties = _take_compiled(modules)
    else:
        if stack.records:
            sweep()
        forwards, any_compiled = take([module._pending for module in modules])
        penalties = collected(forwards)
        del forwards  # would keep graphs
    if not penalties:
        parameter = next(model.parameters(), None)
        return torch.zeros((), device="cpu" if parameter is None else parameter.device)
    total = sum_of(penalties)
    if not is_compiling() and total.requires_grad and any_compiled:
        _forget_repeated(total, [module._pending for module in modules])
    return total


def discard_penalty(model: nn.Module) -> None:
    """Drop the penalties of `model` that `collect_penalty` has not taken.

    For a forward that is not trained, and for the begin of a step in a loop that skips batches.

    Args:
        model: the model, or any part of it.

    Raises:
        TypeError: `model` is not an nn.Module.

    Example:
        >>> from actreg_ext.nn import ActReg
        >>> layer = ActReg("relu", l1=1.0)
        >>> y = layer(torch.ones(3))
        >>> discard_penalty(layer)
        >>> collect_penalty(layer)
        tensor(0.)
    """
    modules = modules_of(model)
    if stack.records and not is_compiling():
        sweep()
    for module in modules:
        module._pending.clear()


def modules_of(model: nn.Module) -> list[PenaltyModule]:
    """Return the ActReg modules of a model; raise TypeError if it is not an nn.Module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")
    if is_compiling():
        return [module for module in model.modules() if isinstance(module, PenaltyModule)]
    # The same in the same order, but three times as fast as modules().
    found: list[PenaltyModule] = []
    seen: set[nn.Module] = set()
    todo: list[nn.Module | None] = [model]
    while todo:
        module = todo.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        if isinstance(module, PenaltyModule):
            found.append(module)
        if module._modules:
            todo.extend(reversed(module._modules.values()))
    return found


def _take_compiled(modules: list[PenaltyModule]) -> list[Tensor]:
    """Take all pending penalties, in code that torch.compile traces."""
    penalties = []
    for module in modules:
        pending = module._pending
        for made in pending.eager:
            if made.penalty is None:  # torch.compile cannot trace the class LoosePenalty
                raise RuntimeError(_LOOSE)
            penalties.append(made.penalty)
        pending.eager = []
        forward, pending.compiled = pending.compiled, None
        while forward is not None:
            penalties.append(forward.penalty)
            forward = forward.older
    return penalties


def _forget_repeated(total: Tensor, stores: list[Pending]) -> None:
    """Make the backward of `total` drop the penalties of the forwards that it repeats.

    Activation checkpointing repeats forwards in the backward. In eager mode `ActReg._store` sees
    that and adds nothing. Compiled code cannot see it, so its penalties are dropped afterwards.
    """

    def at_start(_: Tensor) -> None:
        before = [store.compiled for store in stores]

        def at_end() -> None:
            for store, newest in zip(stores, before, strict=True):
                store.compiled = newest

        torch.autograd.Variable._execution_engine.queue_callback(at_end)

    total.register_hook(at_start)  # type: ignore[no-untyped-call]
