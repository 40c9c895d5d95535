"""`convert` puts ActReg modules into a model, and `revert` takes them out again.

Which modules are activations is in known.py; graphs of torch.fx are in fx_conversion.py.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from . import errors, hints
from .fx_conversion import recompile
from .known import described
from .nn import ActReg
from .places import Filter, Rules
from .plan import Plan
from .report import ConversionReport
from .walk import sites


def convert(
    model: nn.Module,
    l1: float = 0.0,
    l2: float = 0.0,
    p: float | None = None,
    penalty_on: str = "activation",
    reduction: str = "mean",
    include: Rules = None,
    exclude: Rules = None,
    inject: bool = False,
    dry_run: bool = False,
    *,
    dropout: bool = True,
    example: Any = None,
) -> ConversionReport:
    """Replace the activations and dropouts of a model by `ActReg`, in place.

    The outputs stay the same (in eval mode up to rounding, see docs/accuracy.md), and each
    activation gets the penalty. Two lines change in a training script::

        actreg_ext.convert(model, l1=1e-4)
        loss = criterion(model(x), y) + actreg_ext.collect_penalty(model)

    What is replaced:

    - activation modules of torch.nn, Hugging Face transformers and timm whose formula is here;
    - an activation and the nn.Dropout behind it, in an nn.Sequential or in a known layer such as
      nn.TransformerEncoderLayer: one ActReg for both. An nn.Identity takes the dropout's place, so
      names and state_dict keys stay;
    - an nn.Dropout anywhere else, by `ActReg("identity", p=...)`, which has no penalty;
    - in a torch.fx.GraphModule also calls of functions, such as F.relu and F.dropout. A call of
      F.dropout that was traced in training mode then follows the training flag of the model.

    The new modules have the parameters, the inplace flag, the hooks and the training flag of the
    old ones. A module that stands at several places stays one module. Of a model that was converted
    before, the original modules are converted again, so the last call counts.

    An activation and its dropout stay two modules if one of them has hooks, if their training flags
    differ, or if a module is shared and its other places need another p.

    What changes for other code: `isinstance(module, nn.ReLU)` no longer finds the activation. Code
    that calls the modules of an nn.Sequential one by one gets the output of the dropout already
    from the activation. In eval mode without gradients nn.TransformerEncoderLayer runs its fast
    path, which calls no ActReg, so `record_penalties` sees no call there.

    Args:
        model: the model. It must not be an activation itself, and no torch.jit.ScriptModule.
        l1: factor of sum |t| in each activation's penalty, as in `act_reg`.
        l2: factor of sum t^2.
        p: the dropout probability of every activation. None: that of the nn.Dropout behind it, or
            no dropout if there is none.
        penalty_on: "activation" or "output", as in `act_reg`.
        reduction: "mean", "batch", "token" or "sum", as in `act_reg`.
        include: replace only these. A glob pattern of module names ("encoder.*.act"), a class, a
            function of (name, module), or a list of such. A pattern or class that matches a module
            also matches what is inside that module, and in a graph the calls that the forward of
            that module made. For a call the function gets the called function as the module.
        exclude: do not replace these; given like `include`.
        inject: as in `ActReg`: the backward adds the penalty's gradient, and the training loop
            stays as it is.
        dry_run: only report.
        dropout: also replace dropouts that follow no activation.
        example: arguments of the model: a tuple, a dict or one value. The model runs once in eval
            mode, and `report.hints` lists calls of activation functions, which are not modules.

    Returns:
        ConversionReport: what was replaced, what was skipped and why.

    Raises:
        TypeError: an argument has the wrong type, or the model is a ScriptModule.
        ValueError: a number is out of range, a rule matches nothing, or the model is itself an
            activation. The model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
        >>> print(convert(model, l1=1e-4))  # doctest: +ELLIPSIS
        replaced  1  ReLU()                         ActReg(relu, l1=0.0001, p=0.1, ...)
        replaced  2  Dropout(p=0.1, inplace=False)  Identity(): part of 1
        >>> revert(model)
        ['1', '2']
    """
    _check_model(model)
    options = dict(l1=l1, l2=l2, penalty_on=penalty_on, reduction=reduction, inject=inject)
    ActReg("relu", p=0.0 if p is None else p, **options)  # type: ignore[arg-type]  # checks them
    for name, value in {"dry_run": dry_run, "dropout": dropout}.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, but got {errors.shown(value)}")
    filters = Filter("include", include), Filter("exclude", exclude)
    plan = Plan(model, p, options, dropout, filters)
    plan.make()
    for rules in filters:
        rules.check()
    report = plan.report
    if example is not None:
        report.hints = hints.find(model, example, [site for site, _ in plan.new])
    if not report.replaced:
        _warn_nothing(report)
    if not dry_run:
        plan.apply()
    return report


def revert(model: nn.Module) -> list[str]:
    """Put back the modules that `convert` replaced, in place: the original objects.

    After a deepcopy or a pickle of the converted model these are the copies that came with it. The
    training flag and the hooks are those of the ActReg modules.

    Args:
        model: a converted model.

    Returns:
        The names of the places that were changed back; empty if the model was not converted.

    Raises:
        TypeError: `model` is not an nn.Module.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> report = convert(model, l1=1e-4)
        >>> revert(model)
        ['1']
        >>> model[1]
        ReLU()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")
    changed = [site for site in sites(model) if site.is_converted]
    for site in changed:
        site.restore()
    recompile(changed)
    return [site.name for site in changed]


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model is a torch.jit.ScriptModule, which cannot be changed: convert the model before "
            "torch.jit.script or torch.jit.trace"
        )
    inner = model._modules.get("_orig_mod", model)  # of torch.compile's OptimizedModule
    if inner is not None and (
        described(inner) is not None or isinstance(inner, ActReg | nn.Dropout)
    ):
        raise ValueError(
            f"model is itself an activation or a dropout ({errors.brief(model)}), which cannot be "
            f"replaced in place: write ActReg(...) instead"
        )


def _warn_nothing(report: ConversionReport) -> None:
    if report.skipped:
        text = f"convert replaces nothing: {len(report.skipped)} modules are skipped"
    else:
        text = "convert replaces nothing: the model has no activation modules"
    warnings.warn(
        f"{text}. Print the report; functions such as F.relu in a forward are not modules: pass "
        f"example= to list them, or convert torch.fx.symbolic_trace(model)",
        stacklevel=3,
    )
