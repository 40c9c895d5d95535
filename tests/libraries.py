"""Imports torchvision, timm and transformers for the tests, or skips the tests without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import pytest
import torch


@contextmanager
def without_torchvisions_operators() -> Iterator[None]:
    """Let torchvision import where its compiled operators do not load, as beside another PyTorch.

    Its models need none of these operators, but its import describes them to torch.library.
    """
    real = torch.library.register_fake

    def register_fake(op: Any, *args: Any, **options: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return real(op, *args, **options)

    torch.library.register_fake = register_fake
    try:
        yield
    finally:
        torch.library.register_fake = real


def library(name: str) -> ModuleType:
    """Import a library; skip the test if it is not installed."""
    with without_torchvisions_operators():
        with suppress(ImportError):  # the others import it too, some of them late
            import torchvision  # noqa: F401
        module: ModuleType = pytest.importorskip(name)
    return module
