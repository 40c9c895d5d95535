"""What is compared: the digits, the network and the three ways to regularize it.

This module knows nothing of ignite (training.py) or of how results are shown (report.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from .. import collect_penalty
from ..nn import ActReg


@dataclass(frozen=True)
class Setting:
    """Every number of the experiment; all variants share them."""

    units: int = 512
    batch: int = 256
    train_images: int = 512
    validation_images: int = 300
    learning_rate: float = 3e-3
    l1: float = 0.3
    l2: float = 0.3
    p: float = 0.5
    patience: int = 10
    max_epochs: int = 150

    def describe(self, seeds: int) -> str:
        """The network and what regularizes it, in one line."""
        return (
            f"Perceptron 64-{self.units}-{self.units}-10, batches of {self.batch}, {seeds} seeds; "
            f"l1 = {self.l1}, l2 = {self.l2}, p = {self.p} after both hidden layers."
        )


class PlainReg(nn.Module):
    """ReLU, L1 and L2 penalties and dropout as one writes them in PyTorch."""

    def __init__(self, l1: float, l2: float, p: float) -> None:
        super().__init__()
        self.l1, self.l2, self.p = l1, l2, p
        self.penalty: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Keep the penalty for the loss, return the output."""
        a = F.relu(x)
        if self.training:
            self.penalty = self.l1 * a.abs().mean() + self.l2 * a.square().mean()
        return F.dropout(a, self.p, self.training)


def plain_penalty(model: nn.Module) -> Tensor | float:
    """The sum of the penalties of all `PlainReg` modules, like `collect_penalty` for ActReg."""
    return sum((m.penalty for m in model.modules() if isinstance(m, PlainReg)), start=0.0)


@dataclass(frozen=True)
class Variant:
    """One way to regularize: the module after each hidden linear layer, and the penalty."""

    name: str
    layer: Callable[[Setting], nn.Module]
    penalty: Callable[[nn.Module], Tensor | float]


UNREGULARIZED = Variant("unregularized", lambda _: nn.ReLU(), lambda _: 0.0)
PLAIN = Variant("plain PyTorch", lambda s: PlainReg(s.l1, s.l2, s.p), plain_penalty)
FUSED = Variant(
    "ActReg", lambda s: ActReg("relu", l1=s.l1, l2=s.l2, p=s.p, reduction="mean"), collect_penalty
)
VARIANTS = (UNREGULARIZED, PLAIN, FUSED)


class Learner:
    """A fresh network with its optimizer; `step` is the training step that is also timed.

    The same seed gives every variant the same initial weights, because no variant adds parameters.
    """

    def __init__(self, variant: Variant, seed: int, setting: Setting, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(64, setting.units),
            variant.layer(setting),
            nn.Linear(setting.units, setting.units),
            variant.layer(setting),
            nn.Linear(setting.units, 10),
        ).to(device)
        self.regularizers = (self.model[1], self.model[3])
        self.penalty = variant.penalty
        # PyTorch's fastest Adam: the less time it takes, the clearer the variants differ.
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=setting.learning_rate, fused=True
        )

    def step(self, x: Tensor, y: Tensor) -> None:
        """Forward, backward and update on one batch."""
        self.model.train()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y) + self.penalty(self.model)
        torch.autograd.backward(loss)
        self.optimizer.step()


class Part(NamedTuple):
    """Images, each a row of 64 numbers from 0 to 1, and the digits that they show."""

    x: Tensor
    y: Tensor


class Digits(NamedTuple):
    """One split of the 1797 images: each seed has another split, all variants have the same."""

    train: Part
    validation: Part
    test: Part


def split_digits(seed: int, setting: Setting, device: torch.device) -> Digits:
    """Split the images at random; each part has the same proportions of the ten digits."""
    x, y = load_digits(return_X_y=True)
    x_train, x, y_train, y = train_test_split(
        x, y, train_size=setting.train_images, stratify=y, random_state=seed
    )
    x_validation, x_test, y_validation, y_test = train_test_split(
        x, y, train_size=setting.validation_images, stratify=y, random_state=seed
    )

    def part(x: object, y: object) -> Part:
        x = torch.as_tensor(x, dtype=torch.float32, device=device) / 16
        return Part(x, torch.as_tensor(y, device=device))

    return Digits(part(x_train, y_train), part(x_validation, y_validation), part(x_test, y_test))
