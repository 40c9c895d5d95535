"""Helpers of the tests that need a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actreg_ext.functional import act_reg
from tests import table

ROOT = Path(__file__).parents[1]
PENALTIES = {"l1": 0.5, "l2": 0.25}
two_needed = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def require() -> None:
    """Skip the calling test file if there is no GPU."""
    if len(table.DEVICES) == 1:
        pytest.skip("needs a GPU and a build with its kernels", allow_module_level=True)


def generator(device: int = 0) -> torch.Generator:
    torch.cuda.init()
    return torch.cuda.default_generators[device]


def next_state() -> Tensor:
    """The {seed, offset} that the next call must draw from the generator."""
    return torch.tensor([generator().initial_seed(), generator().get_offset()])


def some_inputs() -> tuple[list[Tensor], list[Tensor]]:
    """Tensors whose kernels have grids of different sizes, and the penalties of the tensors."""
    xs = [torch.randn(n, device="cuda") for n in (2**20, 2**20 + 1, 2**18 + 5, 4097)]
    expected = [act_reg(x, **PENALTIES, p=0.5).penalty for x in xs]
    torch.cuda.synchronize()
    return xs, expected


def passes_alone(test: str) -> None:
    """Run a test in a new process, where nothing has been loaded or allocated before."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-5000:] + done.stderr
