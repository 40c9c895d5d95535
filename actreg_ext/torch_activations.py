"""The table of activations: for each name, PyTorch's function and PyTorch's module.

`reference` computes with the functions; `arguments` recognizes instances of the modules. The table
has its own file because both import it, and `reference` also imports `arguments`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# name -> (function of x and the parameters, in the registry's order; class of the same activation)
ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], type[nn.Module] | None]] = {
    "identity": (torch.clone, nn.Identity),  # a copy: the output must not be the input itself
    "relu": (F.relu, nn.ReLU),
    "relu6": (F.relu6, nn.ReLU6),
    "leaky_relu": (F.leaky_relu, nn.LeakyReLU),
    "elu": (F.elu, nn.ELU),
    "celu": (F.celu, nn.CELU),
    "selu": (F.selu, nn.SELU),
    "gelu": (F.gelu, nn.GELU),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), None),  # nn.GELU(approximate="tanh")
    "silu": (F.silu, nn.SiLU),
    "swish": (lambda x, beta: x * torch.sigmoid(beta * x), None),
    "mish": (F.mish, nn.Mish),
    "sigmoid": (torch.sigmoid, nn.Sigmoid),
    "logsigmoid": (F.logsigmoid, nn.LogSigmoid),
    "tanh": (torch.tanh, nn.Tanh),
    "tanhshrink": (F.tanhshrink, nn.Tanhshrink),
    "softplus": (F.softplus, nn.Softplus),
    "softsign": (F.softsign, nn.Softsign),
    "hardtanh": (F.hardtanh, nn.Hardtanh),
    "hardsigmoid": (F.hardsigmoid, nn.Hardsigmoid),
    "hardswish": (F.hardswish, nn.Hardswish),
    "hardshrink": (F.hardshrink, nn.Hardshrink),
    "softshrink": (F.softshrink, nn.Softshrink),
    "threshold": (F.threshold, nn.Threshold),
    "relu_squared": (lambda x: F.relu(x).square(), None),
}
