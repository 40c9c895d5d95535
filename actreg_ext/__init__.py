"""Activation, L1 and L2 penalty on it, and dropout, in one pass over the tensor.

    >>> import torch, actreg_ext
    >>> from actreg_ext.nn import ActReg
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), ActReg("relu", l1=1e-4, p=0.1))
    >>> loss = model(torch.randn(2, 4)).square().mean() + actreg_ext.collect_penalty(model)
    >>> loss.backward()

`functional.act_reg` is the operator, `functional.act_reg_` the same in place, `nn.ActReg` the
module, `reference.act_reg` the same operator in plain PyTorch, to read. `collect_penalty` gathers
the penalties of a model, `dropout_mask` shows the mask a seed gives, `activations` lists the names.
`python -m actreg_ext doctor` looks at the installation, `python -m actreg_ext demo` trains a small
network.
"""

from __future__ import annotations

from . import doctor as _doctor

# The doctor explains what is wrong with an installation, so it runs where the rest cannot.
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


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("actreg_ext")
    except metadata.PackageNotFoundError:  # on the path without having been installed
        return "0+unknown"


__version__ = _version()
