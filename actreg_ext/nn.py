"""The operator as a module: `ActReg` stores its penalty until `collect_penalty` takes it.

Who owns a stored penalty is in pending.py. No maths here: functional.py does the work.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.overrides import has_torch_function_unary

from . import arguments, dispatch, functional, rows, settings
from .collection import collect_penalty, discard_penalty
from .forwards import MODULES, Forward
from .injection import Injection, inject_penalty
from .pending import PenaltyModule, Pending
from .records import recorded, stack, watch
from .reference import denominator
from .settings import Ready
from .torch_activations import ACTIVATIONS
from .worlds import World, is_repeated_by_checkpoint

__all__ = ["ActReg", "collect_penalty", "discard_penalty"]

_LOST = (
    "ActReg: the penalty of this forward is lost. The forward runs inside a backward pass, as "
    "torch.utils.checkpoint lets it with use_reentrant=True, so its penalty cannot be part of the "
    "loss. Call checkpoint(..., use_reentrant=False), or ActReg(inject=True)."
)
_SCRIPT = (
    "torch.jit.script cannot compile ActReg, which is written in Python and calls an operator with "
    "a random state: use torch.jit.trace(model.eval(), example) or torch.export.export"
)
_ROOT = (
    "torch.fx.symbolic_trace keeps ActReg as one module of the traced model, so ActReg alone "
    "cannot be traced: trace a model that contains it, such as nn.Sequential(ActReg(...))"
)
_is_grad_enabled = torch.is_grad_enabled
_is_tracing = torch._C._is_tracing
_graph_task = torch._C._current_graph_task_id


class ActReg(PenaltyModule):
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
    (use_reentrant=False) counts once. With inject=True there is nothing to collect: the backward
    adds the penalty's gradient itself.

    In eval mode a traced or exported module (torch.export, torch.onnx, torch.jit.trace) is the
    activation of torch alone, so the program runs without this package. With dropout in training
    mode the program holds the operator `actreg::forward`, and needs the package.

    Old checkpoints: the module has no parameters and no buffers. In an `nn.Sequential`, put
    `nn.Identity()` in the place of the `nn.Dropout`; then the other layers keep their names, and a
    state_dict of the old model loads.

    Activation checkpointing inside torch.compile(fullgraph=True) needs this setting of PyTorch:
    `torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True`.

    `actreg_ext.functional.act_reg` documents the formulas, the gradient, their sources and the
    memory for the backward. The module's repr shows what the backward keeps: `keeps=bits`, for
    example, or `keeps=output (half: input)` if float16 and bfloat16 keep something else.

    Args:
        activation: a name from `actreg_ext.activations()`, or an activation module such as
            `nn.LeakyReLU(0.2)` or one of Hugging Face's, of which only the parameters are used.
        l1: factor of sum |t|; finite, at least 0. The attributes l1, l2 and p may be changed at
            any time.
        l2: factor of sum t^2, without a factor 1/2; finite, at least 0.
        p: probability that an element is dropped in training, in [0, 1].
        penalty_on: "activation" (t = act(x), before dropout) or "output" (t = y, after dropout).
        reduction: the divisor D. "mean": the number of elements; "batch": size(0); "token": the
            number of elements / size(-1); "sum": 1.
        keep: "auto" or "input": what the backward keeps, as in `act_reg`. With "input", and without
            a penalty, code that may modify the activation's output in place may modify this
            module's output too.
        inject: True: the backward through the output adds the penalty's gradient, and the training
            loop stays as it is. See `actreg_ext.set_injection_scale`.
        inplace: True: overwrite the input, as nn.ReLU(inplace=True) does. If the backward needs the
            input, the module copies it first.
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

    # What `convert` has replaced by this module, for `revert`; in a tuple, so that it is no child.
    _original: tuple[Any, ...] = ()

    def __init__(
        self,
        activation: str | nn.Module = "relu",
        l1: float = 0.0,
        l2: float = 0.0,
        p: float = 0.0,
        penalty_on: str = "activation",
        reduction: str = "mean",
        keep: str = "auto",
        shared_dims: Sequence[int] = (),
        dropout: str = "standard",
        inject: bool = False,
        inplace: bool = False,
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
        self.keep = arguments.choice("keep", keep, arguments.KEEP)
        self.shared_dims = rows.check_shared_dims(shared_dims)
        self.dropout = rows.check_dropout(dropout, penalty_on)
        self.inject = arguments.flag("inject", inject)
        self.inplace = arguments.flag("inplace", inplace)
        self._injection = Injection()
        self._pending = Pending()
        self._ready: Ready | None = None
        MODULES[id(self)] = self

    def forward(self, input: Tensor) -> Tensor:
        """Return y, and store the penalty for `collect_penalty`.

        Args:
            input: x, a floating-point tensor of any shape.

        Returns:
            y, of the shape and dtype of x.
        """
        if is_compiling() or has_torch_function_unary(input):
            return self._forward_overridden(input)
        ready = self._ready
        if ready is None or ready.given != self.activation_parameters:
            ready = settings.prepare(self)
        training = self.training
        if (
            self.inplace
            or watch.is_on
            or (ready.is_general and training)
            or _is_tracing()
            or not isinstance(input, Tensor)
            or not (input.is_cpu or input.device.type in dispatch.DEVICES)
        ):
            return self._forward_in_any_mode(input, ready)
        if ready.is_nothing if training else ready.is_nothing_in_eval:
            return input
        try:
            output, penalty = ready.train(input) if training else ready.evaluate(input)
        except Exception:
            arguments.check_input(input)  # raises for a bad input, with a better text
            raise
        if training and ready.has_penalty:
            if self.inject:
                return inject_penalty(self._injection, output, penalty)
            if _graph_task() == -1 and _is_grad_enabled():
                self._pending.add(penalty)
            else:
                self._store(penalty)
        return output

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; forward will check it."""
        if name in settings.NAMES:
            self.__dict__["_ready"] = None
        super().__setattr__(name, value)

    def _forward_overridden(self, input: Tensor) -> Tensor:
        """Run forward where torch.compile traces it, or a mode or a subclass of Tensor sees it.

        The attributes are read as they are: numbers that vary stay symbolic in a compiled program.
        """
        if _is_proxy(input):
            leaf: Tensor = _leaf(self, input)
            return leaf
        plain = self._without_operator(input)
        if plain is not None:
            return plain
        output, penalty, sums = self._run(input, self.activation_parameters)
        return self._finish(output, penalty, sums)

    def _forward_in_any_mode(self, input: Tensor, ready: settings.Ready) -> Tensor:
        """Run forward in place, traced by torch.jit, for a record, or without a kernel."""
        arguments.check_input(input)
        plain = self._without_operator(input)
        if plain is not None:
            return plain
        p = ready.p if self.training else 0.0
        if watch.wants_sums or (ready.is_general and self.training):
            return self._finish(*self._run(input, ready.given))
        _, l1, l2, reduction, keep_input = ready.rest
        call = (input, ready.name, ready.parameters, l1, l2, p, self.penalty_on, reduction, None)
        if self.inplace:
            output, penalty = dispatch.run_in_place(*call, keep_input)
        else:
            output, penalty = dispatch.run(*call, keep_input)
        return self._finish(output, penalty, None)

    def _without_operator(self, input: Tensor) -> Tensor | None:
        """Return the output in eval mode where the operator is not needed, else None.

        An exported program has operators of torch alone.
        """
        if self.training or watch.is_on:
            return None
        if self.activation == "identity":
            return input
        if not dispatch.is_exporting():
            return None
        name, parameters = arguments.resolve(self.activation, self.activation_parameters, "ActReg")
        output = ACTIVATIONS[name][0](input, *parameters)
        return input.copy_(output) if self.inplace else output

    def _run(
        self, input: Tensor, parameters: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return output, penalty and, if a record wants them, the sums."""
        copies = self.inplace and _is_grad_enabled() and input.requires_grad
        x = dispatch.copy_of(input) if copies else input  # the backward may need the input
        options: dict[str, Any] = dict(penalty_on=self.penalty_on, keep=self.keep, **parameters)
        options |= dict(p=self.p, training=self.training)
        options |= dict(shared_dims=self.shared_dims, dropout=self.dropout)
        sums = None
        if watch.wants_sums:  # the sums do not depend on l1 and l2
            output, sums = functional.output_and_sums(x, self.activation, **options)
            penalty = (self.l1 * sums[0] + self.l2 * sums[1]) / denominator(input, self.reduction)
        else:
            options |= dict(l1=self.l1, l2=self.l2, reduction=self.reduction)
            output, penalty = functional.act_reg(x, self.activation, **options)
        return (input.copy_(output) if self.inplace else output), penalty, sums

    def _finish(self, output: Tensor, penalty: Tensor, sums: Tensor | None) -> Tensor:
        counts = self.training and bool(self.l1 or self.l2)
        if counts and self.inject:
            injected = inject_penalty(self._injection, output, penalty, made_together=sums is None)
            # The caller of an operation in place may go on with the input.
            output = output.copy_(injected) if self.inplace and injected is not output else injected
        if watch.is_on or (counts and not self.inject):
            self._store(penalty, sums)
        return output

    def _store(self, penalty: Tensor, sums: Tensor | None = None) -> None:
        """Store the penalty of a forward: in the module's list, and in the records."""
        # An injected penalty is recorded without its gradient, which the backward adds already.
        trains = self.training and _is_grad_enabled() and not self.inject
        counts = trains and bool(self.l1 or self.l2)
        if is_compiling():
            # Nothing is stored in an exported program: collect_penalty cannot be called on it.
            if not torch.compiler._is_exporting_flag and (counts or watch.is_on):
                penalty = penalty if trains else penalty.detach()
                self._pending.add_compiled(penalty, sums, counts)
            return
        if counts:
            if _graph_task() != -1:
                if not is_repeated_by_checkpoint():
                    raise RuntimeError(_LOST)
                return  # activation checkpointing repeats a forward that was already counted
            forward = self._pending.add(penalty, is_recorded=bool(stack.records))
        elif stack.records and _graph_task() == -1:  # checkpointing repeats forwards in a backward
            penalty = penalty if trains else penalty.detach()
            forward = Forward(penalty, World.current(), 0, is_recorded=True)
        else:
            return
        if stack.records:
            forward.sums = sums
            recorded(self, forward)

    def extra_repr(self) -> str:
        """Return the activation, every option that is not its default, and what backward keeps."""
        return settings.shown(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copy and pickle, without what belongs to a step or to a loop."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        for name in ("_pending", "_ready"):
            state.pop(name)
        state["_injection"] = self._injection.state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state from __getstate__; the copy has no pending penalty."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._injection = Injection.from_state(state["_injection"])
        self._pending = Pending()
        self._ready = None
        MODULES[id(self)] = self

    def __prepare_scriptable__(self) -> Any:
        """Refuse torch.jit.script, which calls this."""
        raise RuntimeError(_SCRIPT)

    def _replicate_for_data_parallel(self) -> Any:
        """Give a replica of nn.DataParallel, which exists for one forward, its own list."""
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._pending = Pending()
        if self.training and (self.l1 or self.l2) and not self.inject:
            warnings.warn(
                "ActReg: the penalties of nn.DataParallel's replicas cannot be collected; use "
                "nn.parallel.DistributedDataParallel, or ActReg(inject=True)",
                stacklevel=2,
            )
        return replica


def _is_proxy(input: object) -> bool:
    """Whether torch.fx.symbolic_trace traces the call."""
    fx = sys.modules.get("torch.fx")
    return fx is not None and isinstance(input, fx.Proxy)


def _leaf(module: ActReg, input: Any) -> Any:
    """Record the call as one of the module itself, as torch.fx does for the modules of torch.nn."""
    tracer = input.tracer
    if tracer.root is module:
        raise RuntimeError(_ROOT)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), {})
