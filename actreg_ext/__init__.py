"""An activation, L1 and L2 penalties on it, and dropout, in one pass over the tensor.

    >>> import torch, actreg_ext
    >>> from actreg_ext.nn import ActReg
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), ActReg("relu", l1=1e-4, p=0.1))
    >>> loss = model(torch.randn(2, 4)).square().mean() + actreg_ext.collect_penalty(model)
    >>> loss.backward()

- `nn.ActReg` is the module; `collect_penalty` returns the sum of a model's penalties.
- `functional.act_reg` is the operator as a function, `functional.act_reg_` the same in place.
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

    from . import functional, nn, reference
    from .functional import activations, dropout_mask
    from .nn import collect_penalty

__all__ = [
    "activations",
    "collect_penalty",
    "dropout_mask",
    "functional",
    "nn",
    "reference",
]
