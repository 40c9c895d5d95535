"""The kernels for AVX-512, AVX2 and the baseline: chosen at run time, with equal results."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension

from actreg_ext import _C, reference
from actreg_ext.functional import act_reg
from tests import table, tolerance

ROOT = Path(__file__).parents[1]
OPTIONS: dict[str, Any] = dict(l1=0.5, l2=0.25, p=0.3, reduction="sum", seed=7)
LENGTHS = (1, 3, 8, 17, 500, 1025, 16385, 100_003)

# Runs with one value of ATEN_CPU_CAPABILITY and saves the results.
WORKER = """
import sys, torch
from actreg_ext import _C, dropout_mask
from tests import test_instruction_sets as this
torch.save({
    "ours": _C.cpu_capability(),
    "torch's": torch.backends.cpu.get_cpu_capability(),
    "masks": [dropout_mask(n, 0.5, 3) for n in this.LENGTHS],
    "results": [tuple(row) for row in this.results()],
    "one thread": this.sums(1),
    "two threads": this.sums(2),
}, sys.argv[1])
"""


class Row(NamedTuple):
    """One row of the table, with the results of torch in the same process."""

    x: Tensor
    dy: Tensor
    ours: tuple[Tensor, Tensor]  # output, gradient
    eager: tuple[Tensor, Tensor]


def results() -> list[Row]:
    rows = []
    for dtype in table.DTYPES:
        x = table.random_inputs(dtype, "cpu", wide=False).requires_grad_()
        dy = table.random_gradients(x)
        for activation in table.PLAIN:
            both = [f(x, **activation, **OPTIONS) for f in (act_reg, reference.act_reg)]
            pairs = [(y.output.detach(), table.gradient(y, x, dy)) for y in both]
            rows.append(Row(x.detach(), dy, *pairs))
    return rows


def sums(threads: int) -> list[Tensor]:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100_003, generator=generator)
    return [act_reg(x.to(dtype), "gelu", **OPTIONS).penalty for dtype in table.DTYPES]


def built() -> list[str]:
    sets = _C.build_info()["instruction_sets"]
    assert isinstance(sets, list)
    return sets


def run(capability: str | None, path: Path) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    environment["PYTHONPATH"] = str(ROOT)
    if capability:
        environment["ATEN_CPU_CAPABILITY"] = capability.lower()
    command = [sys.executable, "-c", WORKER, str(path)]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    return torch.load(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The worker's results for the best instruction set of this machine and each lower one."""
    path = tmp_path_factory.mktemp("instruction_sets") / "results.pt"
    best = run(None, path)
    below = built()[built().index(best["ours"]) + 1 :]
    return {best["ours"]: best} | {capability: run(capability, path) for capability in below}


def test_all_sets_are_built() -> None:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    assert built() == (["AVX512", "AVX2", "DEFAULT"] if is_x86 else ["DEFAULT"])


def test_the_set_in_use(runs: dict[str, dict[str, Any]]) -> None:
    """The set in use is the best one of the processor, limited by ATEN_CPU_CAPABILITY."""
    assert "DEFAULT" in runs
    for asked, found in runs.items():
        limit = found["torch's"] if found["torch's"] in built() else "DEFAULT"
        assert found["ours"] == limit == asked


def test_masks_are_the_same(runs: dict[str, dict[str, Any]]) -> None:
    for i, n in enumerate(LENGTHS):
        ones = torch.ones(n, dtype=torch.float64)
        mask = reference.act_reg(ones, "identity", p=0.5, seed=3).output != 0
        for capability, found in runs.items():
            assert torch.equal(found["masks"][i], mask), (capability, n)


@pytest.mark.parametrize("dtype", table.DTYPES, ids=table.describe)
def test_results_are_accurate(runs: dict[str, dict[str, Any]], dtype: torch.dtype) -> None:
    setting = {k: OPTIONS[k] for k in ("l1", "l2", "p")} | {"penalty_on": "activation"}
    first = table.DTYPES.index(dtype) * len(table.PLAIN)
    for found in runs.values():
        for row, activation in enumerate(table.PLAIN, start=first):
            x, dy, (output, dx), (eager_output, eager_dx) = found["results"][row]
            truth = tolerance.true_output(activation, x, OPTIONS["p"], seed=7)
            slope = tolerance.true_gradient(activation, x, dy, setting, seed=7)
            tolerance.assert_output(output, eager_output, truth, x)
            tolerance.assert_gradient(dx, eager_dx, slope, x)


def test_sums_do_not_depend_on_threads(runs: dict[str, dict[str, Any]]) -> None:
    for capability, found in runs.items():
        assert found["one thread"] == found["two threads"], capability


def vector_objects(tmp_path: Path) -> list[Path]:
    """The object files of the build; new ones if there are none, as after `pip install .`."""
    objects = list(ROOT.glob("build/torch-*/csrc/cpu/avx*.o"))
    if objects:
        return objects
    flags = "-std=c++17 -O3 -fvisibility=hidden -fno-math-errno -fno-trapping-math -w".split()
    for source in ROOT.glob("csrc/cpu/avx*.cpp"):
        objects.append(tmp_path / f"{source.stem}.o")
        command = [cpp_extension.get_cxx_compiler(), *flags, f"-iquote{ROOT / 'csrc'}"]
        subprocess.run([*command, "-c", str(source), "-o", str(objects[-1])], check=True)
    return objects


def test_vector_code_stays_in_its_files(tmp_path: Path) -> None:
    """The object files define no weak symbols, and call no C++ functions of other files.

    The linker keeps one copy of a weak symbol for all files. That copy may contain AVX-512
    instructions, and then crashes on a processor without them.
    """
    nm = shutil.which("nm") or shutil.which("llvm-nm")
    assert nm, "this test reads object files with nm: install binutils"
    objects = vector_objects(tmp_path)
    assert {path.stem for path in objects} == {"avx2", "avx512"}
    for path in objects:
        listing = subprocess.run([nm, str(path)], check=True, capture_output=True, text=True)
        symbols = [line.split()[-2:] for line in listing.stdout.splitlines()]
        bad = [
            name
            for kind, name in symbols
            if kind in "WVwvu" or kind == "U" and name.lstrip("_").startswith("Z")
        ]
        assert not bad, f"{path}: {bad}"
