"""The operator as a module, which keeps its penalty until `collect_penalty` asks for it.

No maths here: functional.py does the work.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from . import _C, arguments
from .functional import act_reg

__all__ = ["ActReg", "collect_penalty"]

_MANY = 1000  # forwards that nobody collected: their graphs fill the memory
_LOST = (
    "ActReg: its forward ran under torch.no_grad() and again in the backward pass, which is what "
    "torch.utils.checkpoint does with use_reentrant=True; the penalty of such a forward cannot "
    "reach the loss. Call checkpoint(..., use_reentrant=False)."
)
_ESCAPED = (
    "collect_penalty: an ActReg ran inside a function transformed by torch.func (vmap, grad, ...), "
    "which is over: its penalty means nothing here and has been dropped. Call collect_penalty "
    "inside that function."
)


class _Pending:
    """What the forwards of one module left to be collected."""

    def __init__(self) -> None:
        self.penalty: Tensor | None = None
        self.forwards = 0
        self.compiled = False  # compiled code has added to it
        self.lost = False  # the last training forward was under no_grad and nothing is pending

    def add(self, penalty: Tensor) -> None:
        """Add to one running sum: a list would compile again for each of its lengths."""
        if self.penalty is not None:
            penalty = self.penalty.to(penalty.device) + penalty
        self.penalty = penalty

    def take(self) -> Tensor | None:
        """Hand over the sum and forget it."""
        penalty, self.penalty = self.penalty, None
        if not is_compiling():
            self.forwards = 0
        return penalty


class ActReg(nn.Module):
    r"""y = where(keep, act(x) * s, 0), with l1 * sum|t| + l2 * sum t^2 over D for the loss.

    Stands where an activation and an `nn.Dropout` stood::

        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1))
        nn.Sequential(nn.Linear(8, 8), ActReg("relu", l1=1e-4, p=0.1))

    and with l1 = l2 = p = 0 it is the activation alone. It has no parameters and no buffers,
    and with `nn.Identity()` in the dropout's place the others keep their names, so that checkpoints
    load as before. `forward` returns y alone, of the shape and dtype of x; each forward
    in training mode with gradients enabled adds its penalty to what `collect_penalty(model)`
    returns. A forward in eval mode, under `torch.no_grad()` or in an exported program leaves
    nothing, and a forward that activation checkpointing repeats (use_reentrant=False) counts once.
    Where torch.compile(fullgraph=True) shall see a checkpoint around it, PyTorch asks for
    `torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True`, which is just that.

    `actreg_ext.functional.act_reg` has the formulas, the gradient and the sources, and what is kept
    of x for the backward: the input, the output, bits or nothing, which the module's repr says,
    for the half types (float16 and bfloat16) apart where it is something else.

    Args:
        activation: a name from `actreg_ext.activations()` or a torch.nn activation such as
            `nn.LeakyReLU(0.2)`, which is read and not kept.
        l1: factor of sum |t|; finite, at least 0. May be changed at any time, as l2 and p.
        l2: factor of sum t^2; finite, at least 0.
        p: probability of an element to be dropped in training, in [0, 1].
        penalty_on: "activation" (t is the activation) or "output" (t is y, after dropout).
        reduction: D: "mean" number of elements, "batch" size(0), "token" number / size(-1),
            "sum" 1.
        **activation_parameters: parameters of a named activation, as torch calls them.

    Raises:
        TypeError: an argument of the wrong kind or an unknown parameter.
        ValueError: an unknown name, or a number out of range.

    Example:
        >>> layer = ActReg("leaky_relu", l1=0.5, reduction="sum", negative_slope=0.25)
        >>> layer
        ActReg(leaky_relu(negative_slope=0.25), l1=0.5, reduction=sum, keeps=output (half: input))
        >>> layer(torch.tensor([-4.0, 2.0]))
        tensor([-1.,  2.])
        >>> collect_penalty(layer)
        tensor(1.5000)
    """

    def __init__(
        self,
        activation: str | nn.Module = "relu",
        l1: float = 0.0,
        l2: float = 0.0,
        p: float = 0.0,
        penalty_on: str = "activation",
        reduction: str = "mean",
        **activation_parameters: float | str,
    ) -> None:
        super().__init__()
        name, parameters = arguments.resolve(activation, activation_parameters, "ActReg")
        self.activation = name
        self.activation_parameters = dict(zip(arguments.DEFAULTS[name], parameters, strict=True))
        self.l1 = arguments.coefficient("l1", l1)
        self.l2 = arguments.coefficient("l2", l2)
        self.p = arguments.probability(p)
        self.penalty_on = arguments.choice("penalty_on", penalty_on, arguments.PENALTY_ON)
        self.reduction = arguments.choice("reduction", reduction, arguments.REDUCTIONS)
        self._pending = _Pending()

    def forward(self, input: Tensor) -> Tensor:
        """Return y and leave the penalty for `collect_penalty`.

        Args:
            input: x, a floating-point tensor of any shape.

        Returns:
            y, of the shape and dtype of x.
        """
        output, penalty = act_reg(
            input,
            self.activation,
            l1=self.l1,
            l2=self.l2,
            p=self.p,
            training=self.training,
            penalty_on=self.penalty_on,
            reduction=self.reduction,
            seed=None,
            **self.activation_parameters,
        )
        if self.training and (self.l1 or self.l2):
            self._keep(penalty)
        return output

    def _keep(self, penalty: Tensor) -> None:
        pending = self._pending
        if is_compiling():
            # An exported program has nobody to collect from it. The flag is read, because until
            # torch 2.13 torch.compiler.is_exporting() is also true in torch.compile.
            if torch.is_grad_enabled() and not torch.compiler._is_exporting_flag:
                pending.add(penalty)
                pending.compiled = True
            return
        in_backward = torch._C._current_graph_task_id() != -1
        if not torch.is_grad_enabled():
            if not in_backward:
                pending.lost = pending.penalty is None
        elif in_backward:  # activation checkpointing repeats a forward that has been counted
            if pending.lost:
                raise RuntimeError(_LOST)
        else:
            pending.lost = False
            if pending.penalty is not None and _has_escaped(pending.penalty):
                pending.penalty = None
            pending.add(penalty)
            pending.forwards += 1
            if pending.forwards == _MANY:
                _warn_uncollected()

    def extra_repr(self) -> str:
        """Return the activation, every option that is not its default, and what backward keeps."""
        parameters = ", ".join(f"{k}={v}" for k, v in self.activation_parameters.items())
        shown = [f"{self.activation}({parameters})" if parameters else self.activation]
        shown += [
            f"{name}={getattr(self, name)}" for name in ("l1", "l2", "p") if getattr(self, name)
        ]
        if self.penalty_on != "activation":
            shown.append(f"penalty_on={self.penalty_on}")
        if self.reduction != "mean":
            shown.append(f"reduction={self.reduction}")
        with contextlib.suppress(TypeError, ValueError):  # an attribute that forward will refuse
            shown.append(f"keeps={self._kept()}")
        return ", ".join(shown)

    def _kept(self) -> str:
        """Return what of x is kept for backward in float32, and in other types if they differ."""
        kept, *others = (
            _C.kept(
                dtype,
                self.activation,
                tuple(self.activation_parameters.values()),
                self.p if self.training else 0.0,
                self.penalty_on == "output",
                self.l1,
                self.l2,
            )
            for dtype in (torch.float32, torch.float64, torch.float16)
        )
        differing = [
            f"{name}: {other}"
            for name, other in zip(("float64", "half"), others, strict=True)
            if other != kept
        ]
        return f"{kept} ({', '.join(differing)})" if differing else kept

    def __getstate__(self) -> dict[str, Any]:
        """Return what copy and pickle take: everything but the pending penalty and its graph."""
        return {**self.__dict__, "_pending": _Pending()}

    def _replicate_for_data_parallel(self) -> Any:
        """Give a replica of nn.DataParallel, which lives for one forward, a store of its own."""
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._pending = _Pending()
        if self.training and (self.l1 or self.l2):
            warnings.warn(
                "ActReg: the penalties of nn.DataParallel's replicas cannot be collected; use "
                "nn.parallel.DistributedDataParallel",
                stacklevel=2,
            )
        return replica


def collect_penalty(model: nn.Module) -> Tensor:
    """Return the sum of the penalties of every ActReg in `model` since the last call; clear them.

    Equivalent to adding up the `penalty` of each `act_reg` call, differentiable like it. To be
    called once for each step, after the forward::

        loss = criterion(model(x), target) + collect_penalty(model)
        loss.backward()

    A module called twice counts twice; the same module at two places of the model is collected
    once. Nothing is kept afterwards, so no graph outlives the loss. Until then everything is: where
    the penalty of a training forward is not wanted (another network's step through this one), call
    this after it and leave the result. The copies that `nn.DataParallel` makes of a model cannot be
    collected from: use DistributedDataParallel. In a function that torch.func transforms call it
    there, beside the forward.

    Args:
        model: the model, or any part of it.

    Returns:
        A 0-d tensor, on the device of the first penalty. With nothing to collect a zero, on the
        device of the model's first parameter (the CPU without one).

    Raises:
        TypeError: `model` is not an nn.Module.
        RuntimeError: a forward ran inside a torch.func transform that is over. Nothing is pending
            any more then.

    Example:
        >>> model = nn.Sequential(ActReg("relu", l1=1.0, reduction="sum"), ActReg("tanh"))
        >>> y = model(torch.tensor([-1.0, 2.0]))
        >>> collect_penalty(model), collect_penalty(model)
        (tensor(2.), tensor(0.))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")
    total: Tensor | None = None
    stores = [module._pending for module in model.modules() if isinstance(module, ActReg)]
    taken = [store.take() for store in stores]
    penalties = [penalty for penalty in taken if penalty is not None]
    if not is_compiling() and any(map(_has_escaped, penalties)):
        raise RuntimeError(_ESCAPED)
    for penalty in penalties:
        total = penalty if total is None else total + penalty.to(total.device)
    if total is None:
        parameter = next(model.parameters(), None)
        return torch.zeros((), device="cpu" if parameter is None else parameter.device)
    if not is_compiling() and total.requires_grad and any(store.compiled for store in stores):
        _forget_repeated(total, stores)
    return total


def _has_escaped(penalty: Tensor) -> bool:
    """Whether a transform of torch.func made it that is over."""
    level = torch._C._functorch.maybe_get_level(penalty)  # -1: no transform's; -2: one's that ended
    return level != -1 and not 0 < level <= (torch._C._functorch.maybe_current_level() or 0)


def _forget_repeated(total: Tensor, stores: list[_Pending]) -> None:
    """Have the backward of `total` drop what the forwards that it repeats will leave.

    Compiled code cannot tell that checkpointing repeats it, as `ActReg._keep` does in eager mode.
    """

    def at_start(_: Tensor) -> None:
        penalties = [store.penalty for store in stores]

        def at_end() -> None:
            for store, penalty in zip(stores, penalties, strict=True):
                store.penalty = penalty

        torch.autograd.Variable._execution_engine.queue_callback(at_end)

    total.register_hook(at_start)  # type: ignore[no-untyped-call]


def _warn_uncollected() -> None:
    warnings.warn(
        f"ActReg: {_MANY} training forwards of one module without collect_penalty(model), which "
        f"takes their penalties and frees their graphs; call it in each step, or set l1 = l2 = 0",
        stacklevel=6,  # the caller of the module
    )
