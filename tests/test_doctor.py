"""`python -m actreg_ext doctor`, and what is said where actreg_ext cannot be used."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actreg_ext import _C, __main__, _build, doctor

ROOT = Path(__file__).parents[1]
LOOKED_AT = (
    "actreg_ext",
    "python",
    "torch",
    "extension",
    "instructions",
    "threads",
    "CUDA kernels",
    "GPU",
    "nvcc",
    "demo",
)


def finding(name: str) -> doctor.Finding:
    return {found.name: found for found in doctor.examine()}[name]


def test_everything_is_looked_at() -> None:
    findings = doctor.examine()
    assert tuple(found.name for found in findings) == LOOKED_AT
    assert all(found.value and found.usable for found in findings)


def test_the_report_says_what_is() -> None:
    assert torch.__version__ in finding("torch").value
    assert str(_C.build_info()["torch"]) in finding("extension").value
    assert finding("instructions").value.startswith(f"{_C.cpu_capability()} in use, of ")
    assert str(torch.get_num_threads()) in finding("threads").value


def test_advice_stands_under_its_finding() -> None:
    findings = [
        doctor.Finding("short", "good"),
        doctor.Finding("much longer", "bad", "do this", usable=False),
    ]
    assert doctor.report(findings) == [
        "short        good",
        "much longer  bad",
        "             -> do this",
        "actreg_ext cannot be used yet.",
    ]
    assert doctor.report(findings[:1])[-1] == "actreg_ext is ready."


def test_the_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert __main__.main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "actreg_ext is ready."
    monkeypatch.setattr(doctor, "why_unusable", lambda: "it is broken")
    assert __main__.main(["doctor"]) == 1
    assert "-> it is broken" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["docter"], ["doctor", "--verbose"]])
def test_wrong_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m actreg_ext" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capability", "advice"), [(None, ""), ("avx2", "unset ATEN_CPU_CAPABILITY")]
)
def test_a_limited_instruction_set(
    monkeypatch: pytest.MonkeyPatch, capability: str | None, advice: str
) -> None:
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    if capability:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
    found = finding("instructions")
    assert found.advice.endswith(advice) and bool(found.advice) == bool(advice)
    assert ("avx2" in found.value) == bool(capability)


def test_one_thread(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert finding("threads").value == "1, for 8 cores"
    assert "torch.set_num_threads(8)" in finding("threads").advice
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert finding("threads").advice == "unset OMP_NUM_THREADS"
    monkeypatch.setattr(_build, "threads", False)
    assert "OpenMP" in finding("threads").value and "CXX=g++" in finding("threads").advice


@pytest.mark.parametrize(
    ("torch_cuda", "why", "advice"),
    [
        (None, "this PyTorch is built without CUDA", "install PyTorch for CUDA"),
        ("13.0", "no nvcc was found", "set CUDA_HOME to a toolkit of CUDA 13.0"),
        ("13.0", "ACTREG_CUDA=0", "unset ACTREG_CUDA"),
    ],
)
def test_missing_cuda_kernels(
    monkeypatch: pytest.MonkeyPatch, torch_cuda: str | None, why: str, advice: str
) -> None:
    monkeypatch.setattr(_build, "cuda", None)
    monkeypatch.setattr(_build, "cpu_only", why)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    found = finding("CUDA kernels")
    assert why in found.value and found.advice.startswith(advice)
    assert "pip install" in found.advice and found.usable


@pytest.mark.parametrize("built_for", ["2.0.1+cpu", "99.0.0"])
def test_another_torch(monkeypatch: pytest.MonkeyPatch, built_for: str) -> None:
    """One sentence with both versions and the command that mends it."""
    monkeypatch.setattr(_build, "torch", built_for)
    reason = doctor.why_unusable()
    assert reason is not None and "\n" not in reason
    assert f"built for torch {built_for}, and this is torch {torch.__version__}" in reason
    assert "pip install" in reason
    assert f"torch=={'.'.join(built_for.split('.')[:2])}.*" in reason
    assert f"for torch {'.'.join(torch.__version__.split('.')[:2])}, or" in reason
    assert not finding("extension").usable


def test_a_patch_release_is_the_same_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor, _ = torch.__version__.split(".", 2)
    monkeypatch.setattr(_build, "torch", f"{major}.{minor}.99+cu999")
    assert doctor.why_unusable() is None


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("torch", "needs PyTorch"),
        ("actreg_ext._build", "is not built"),
        ("actreg_ext._C", "cannot load its extension"),
    ],
)
def test_missing_parts(monkeypatch: pytest.MonkeyPatch, broken: str, says: str) -> None:
    def import_module(name: str) -> object:
        if name == broken:
            raise ImportError("gone")
        return SimpleNamespace(torch=torch.__version__, __version__=torch.__version__, cuda=None)

    monkeypatch.setattr(importlib, "import_module", import_module)
    reason = doctor.why_unusable()
    assert reason is not None and says in reason and re.search("install", reason)


@pytest.mark.parametrize(
    ("torch_cuda", "says"), [(None, "without CUDA"), ("12.6", "for CUDA 12.6"), ("13.2", "gone")]
)
def test_another_cuda(monkeypatch: pytest.MonkeyPatch, torch_cuda: str | None, says: str) -> None:
    """The libraries of another CUDA are missing, which the loader reports as a file name."""
    import_module = importlib.import_module

    def without_extension(name: str) -> object:
        if name == "actreg_ext._C":
            raise ImportError("gone")
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", without_extension)
    monkeypatch.setattr(_build, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    reason = doctor.why_unusable()
    assert reason is not None and says in reason and "pip install" in reason
    assert ("built for CUDA 13.0" in reason) == (says != "gone")


@pytest.fixture
def broken_copy(tmp_path: Path) -> Path:
    """A directory with the package as it is, but built for a torch of long ago."""
    package = tmp_path / "actreg_ext"
    shutil.copytree(ROOT / "actreg_ext", package, ignore=shutil.ignore_patterns("*.so", "demo"))
    for extension in Path(_C.__file__).parent.glob("_C.*so"):
        (package / extension.name).symlink_to(extension)
    (package / "_build.py").write_text(
        "torch = '1.2.3'\ncuda = None\ncpu_only = ''\nthreads = True\n"
    )
    return tmp_path


def python(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=directory, capture_output=True, text=True
    )


def test_importing_a_broken_copy(broken_copy: Path) -> None:
    """One readable error, where there would be an undefined symbol; and the doctor still runs."""
    imported = python(broken_copy, "-c", "import actreg_ext")
    last = imported.stderr.splitlines()[-1]
    assert last.startswith("ImportError: actreg_ext was built for torch 1.2.3, and this is torch")
    examined = python(broken_copy, "-m", "actreg_ext", "doctor")
    assert examined.returncode == 1 and not examined.stderr
    assert "built for torch 1.2.3" in examined.stdout
    assert examined.stdout.splitlines()[-1] == "actreg_ext cannot be used yet."
