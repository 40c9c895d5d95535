"""The operator as a module: `ActReg` stores its penalty until `collect_penalty` takes it.

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

_MANY = 1000  # forwards without collect_penalty before a warning: their graphs fill the memory
_LOST = (
    "ActReg: reentrant checkpointing loses the penalty. The forward ran under torch.no_grad() and "
    "again in the backward pass, as torch.utils.checkpoint does with use_reentrant=True, so its "
    "penalty cannot be part of the loss. Call checkpoint(..., use_reentrant=False)."
)
_ESCAPED = (
    "collect_penalty: an ActReg ran inside a function transformed by torch.func (vmap, grad, ...), "
    "and the transform has ended. The penalty has no meaning outside of the transform, so it was "
    "dropped. Call collect_penalty inside that function."
)


class _Pending:
    """The penalties of one module's forwards that `collect_penalty` has not taken yet."""

    def __init__(self) -> None:
        self.penalty: Tensor | None = None
        self.forwards = 0
        self.compiled = False  # compiled code has added to the penalty
        self.lost = False  # nothing is pending, and the last training forward was under no_grad

    def add(self, penalty: Tensor) -> None:
        """Add to one running sum: torch.compile would compile again for each length of a list."""
        if self.penalty is not None:
            penalty = self.penalty.to(penalty.device) + penalty
        self.penalty = penalty

    def take(self) -> Tensor | None:
        """Return the sum, or None if there is none, and clear it."""
        penalty, self.penalty = self.penalty, None
        if not is_compiling():
            self.forwards = 0
        return penalty


class ActReg(nn.Module):
    r"""An activation with dropout and L1 and L2 penalties, which `collect_penalty` adds up.

    `forward` returns y, of the shape and dtype of x, and stores the penalty::

        y = dropout(act(x), p)
        penalty = (l1 * sum|t| + l2 * sum t^2) / D  # t: act(x) or y, see `penalty_on`

    With l1 = l2 = p = 0 the module is the activation alone. It replaces an activation and the
    `nn.Dropout` behind it; the second line has the same layers as the first, and a penalty::

        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1))
        nn.Sequential(nn.Linear(8, 8), ActReg("relu", l1=1e-4, p=0.1))

    Each forward in training mode with gradients enabled adds its penalty to the sum that
    `collect_penalty(model)` returns. A forward in eval mode, under `torch.no_grad()` or in an
    exported program adds nothing. A forward that activation checkpointing repeats
    (use_reentrant=False) counts once.

    Old checkpoints: the module has no parameters and no buffers. In an `nn.Sequential`, put
    `nn.Identity()` in the place of the `nn.Dropout`; then the other layers keep their names, and a
    state_dict of the old model loads.

    Activation checkpointing inside torch.compile(fullgraph=True) needs this setting of PyTorch:
    `torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True`.

    `actreg_ext.functional.act_reg` documents the formulas, the gradient, their sources and the
    memory for the backward. The module's repr shows what the backward keeps: `keeps=bits`, for
    example, or `keeps=output (half: input)` if float16 and bfloat16 keep something else.

    Args:
        activation: a name from `actreg_ext.activations()`, or an activation module of torch.nn such
            as `nn.LeakyReLU(0.2)`, of which only the parameters are used.
        l1: factor of sum |t|; finite, at least 0. The attributes l1, l2 and p may be changed at
            any time.
        l2: factor of sum t^2, without a factor 1/2; finite, at least 0.
        p: probability that an element is dropped in training, in [0, 1].
        penalty_on: "activation" (t = act(x), before dropout) or "output" (t = y, after dropout).
        reduction: the divisor D. "mean": the number of elements; "batch": size(0); "token": the
            number of elements / size(-1); "sum": 1.
        **activation_parameters: parameters of an activation given by name, named as in torch.

    Raises:
        TypeError: an argument has the wrong type, or a parameter is unknown.
        ValueError: a name is unknown, or a number is out of range.

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
        """Return y, and store the penalty for `collect_penalty`.

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
            # Nothing is stored in an exported program: collect_penalty cannot be called on it.
            # This reads the flag, because torch.compiler.is_exporting() is also true inside
            # torch.compile before torch 2.13.
            if torch.is_grad_enabled() and not torch.compiler._is_exporting_flag:
                pending.add(penalty)
                pending.compiled = True
            return
        in_backward = torch._C._current_graph_task_id() != -1
        if not torch.is_grad_enabled():
            if not in_backward:
                pending.lost = pending.penalty is None
        elif in_backward:  # activation checkpointing repeats a forward that was already counted
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
        # An attribute that was set to a bad value must not break the repr: forward raises for it.
        with contextlib.suppress(TypeError, ValueError):
            shown.append(f"keeps={self._kept()}")
        return ", ".join(shown)

    def _kept(self) -> str:
        """Return what the backward keeps for float32, and for the other dtypes that differ."""
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
        """Return the state for copy and pickle: all but the pending penalty, which has a graph."""
        return {**self.__dict__, "_pending": _Pending()}

    def _replicate_for_data_parallel(self) -> Any:
        """Give a replica of nn.DataParallel, which exists for one forward, its own pending sum."""
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
    """Return the sum of all penalties of `model` since the last call, and clear them.

    Equivalent to adding the `penalty` of every `act_reg` call that the ActReg modules of `model`
    have made; the sum is differentiable as these are. Call it once in each training step, after the
    forward::

        loss = criterion(model(x), target) + collect_penalty(model)
        loss.backward()

    Every forward counts once. A module that stands at two places of the model runs twice, so it
    contributes two penalties.

    The call removes the penalties from the modules, so their graphs are freed together with the
    loss. If you do not want the penalty of a training forward, still call `collect_penalty` after
    that forward and ignore the result. Otherwise the penalty goes into the next step. An example is
    a GAN: the generator's step runs the discriminator, but does not train it.

    Inside a function that torch.func transforms (vmap, grad), call both the model and
    `collect_penalty` in that function. `nn.DataParallel` is not supported, because the penalties of
    its replicas are lost: use `nn.parallel.DistributedDataParallel`.

    Args:
        model: the model, or any part of it.

    Returns:
        A 0-d tensor on the device of the first penalty. If there is nothing to collect, the result
        is 0 on the device of the model's first parameter (on the CPU if the model has none).

    Raises:
        TypeError: `model` is not an nn.Module.
        RuntimeError: a forward ran inside a torch.func transform that has ended. All pending
            penalties are dropped in this case.

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
    """Whether the penalty belongs to a torch.func transform that has ended."""
    level = torch._C._functorch.maybe_get_level(penalty)  # -1: of no transform; -2: of an ended one
    return level != -1 and not 0 < level <= (torch._C._functorch.maybe_current_level() or 0)


def _forget_repeated(total: Tensor, stores: list[_Pending]) -> None:
    """Make the backward of `total` drop the penalties of the forwards that it repeats.

    Activation checkpointing repeats forwards in the backward. In eager mode `ActReg._keep` sees
    that and adds nothing. Compiled code cannot see it, so its penalties are dropped afterwards.
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
        f"ActReg: one module has run {_MANY} training forwards without collect_penalty(model), so "
        f"their penalties and graphs fill the memory; call it in each step, or set l1 = l2 = 0",
        stacklevel=6,  # the line that calls the module
    )
