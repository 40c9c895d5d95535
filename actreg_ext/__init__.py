"""An activation, L1 and L2 penalties on it, and dropout, in one pass over the tensor.

    >>> import torch, actreg_ext
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
    >>> report = actreg_ext.convert(model, l1=1e-4)
    >>> loss = model(torch.randn(2, 4)).square().mean() + actreg_ext.collect_penalty(model)
    >>> loss.backward()

- `convert` replaces the activations and dropouts of a model by `nn.ActReg`; `revert` undoes that.
- `collect_penalty` returns the sum of a model's penalties in this step; `discard_penalty` drops it.
- `record_penalties` records the penalties of all calls in a block, also for logging.
- `set_injection_scale`, `penalty_values` and `check_injection` are for `inject=True`, which adds
  the penalty's gradient in the backward and leaves the training loop as it is.
- `functional.act_reg` is the operator as a function, `functional.act_reg_` the same in place.
- `penalties` has penalties that are formulas of sums: weighted L1, KL to a target rate, Hoyer,
  group lasso, log; a controller that steers l1 to a share of active units; a count of dead units.
- `temporal_penalty` penalizes the difference between neighbouring time steps.
- `reference.act_reg` is the same operator in plain PyTorch: read it to learn what is computed.
- `dropout_mask` returns the mask of a seed; `activations` lists the names and their parameters.

`python -m actreg_ext doctor` checks the installation. `python -m actreg_ext demo` trains a small
network with and without regularization.
"""

from __future__ import annotations

from . import doctor as _doctor

__version__ = "0.1.0"  # pyproject.toml takes it from here

# The doctor must run where the rest of the package cannot be imported, so nothing is imported here
# while `python -m actreg_ext doctor` runs.
if not _doctor.is_running():
    if _reason := _doctor.why_unusable():
        raise ImportError(_reason, name=__name__)

    from . import functional, nn, penalties, reference
    from .conversion import convert, revert
    from .functional import act_reg, activations, dropout_mask
    from .injected import check_injection, penalty_values, set_injection_scale
    from .nn import ActReg, collect_penalty, discard_penalty
    from .records import record_penalties
    from .report import ConversionReport
    from .temporal import temporal_penalty

__all__ = [
    "ActReg",
    "ConversionReport",
    "act_reg",
    "activations",
    "check_injection",
    "collect_penalty",
    "convert",
    "discard_penalty",
    "dropout_mask",
    "functional",
    "nn",
    "penalties",
    "penalty_values",
    "record_penalties",
    "reference",
    "revert",
    "set_injection_scale",
    "temporal_penalty",
]
