"""`python -m actreg_ext doctor`: what is installed, what is in use, and what to do about the rest.

Package layer. It has to work where the package itself does not: without torch, without the
compiled extension, and with one that was built for another torch. So nothing but the standard
library is imported at the top, and `actreg_ext/__init__.py` asks `why_unusable` first of all.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

DEMO_PACKAGES = {
    "ignite": "pytorch-ignite",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
}


class Finding(NamedTuple):
    """One line of the report: what was looked at, what was found, what to do about it.

    Attributes:
        name: What was looked at.
        value: What was found.
        advice: What to do about it, in one line with the command; empty if there is nothing to do.
        usable: False if actreg_ext cannot be used before that is done.
    """

    name: str
    value: str
    advice: str = ""
    usable: bool = True


def is_running() -> bool:
    """True while `python -m actreg_ext doctor` imports the package, on its way to the doctor."""
    return sys.argv[:2] == ["-m", "doctor"]


def why_unusable() -> str | None:
    """None if actreg_ext works here; otherwise one sentence: why not, and what to do.

    An extension that was built for another torch is not loaded: that would end in an undefined
    symbol or in a crash.
    """
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return (
            f"actreg_ext needs PyTorch, which cannot be imported ({error}): "
            "install it (https://pytorch.org/get-started), then actreg_ext again"
        )
    try:
        built_for = importlib.import_module("actreg_ext._build").torch
    except ImportError:
        here = Path(__file__).parents[1]
        return (
            f"actreg_ext in {here} is not built: {_rebuild()}, or, if it is installed too, "
            "start Python in another directory"
        )
    if built_for.split(".")[:2] != torch.__version__.split(".")[:2]:
        return (
            f"actreg_ext was built for torch {built_for}, and this is torch {torch.__version__}; "
            f"build it again: {_rebuild()}"
        )
    try:
        importlib.import_module("actreg_ext._C")
    except ImportError as error:
        return f"actreg_ext cannot load its extension ({error}); build it again: {_rebuild()}"
    return None


def missing_demo_packages() -> list[str]:
    """The packages that the demo needs and that are not installed, as pip calls them."""
    found = importlib.util.find_spec
    return [package for module, package in DEMO_PACKAGES.items() if found(module) is None]


def examine() -> list[Finding]:
    """Everything the doctor looks at, in the order of the report."""
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    findings = [Finding("actreg_ext", _version()), Finding("python", system)]
    reason = why_unusable() or _import_error()
    if "torch" in sys.modules:
        findings.append(Finding("torch", str(importlib.import_module("torch").__version__)))
    if reason is None:
        findings += [_extension(), _instructions(), _threads(), _kernels(), _gpu(), _compiler()]
    else:
        findings.append(Finding("extension", "cannot be used", reason, usable=False))
    missing = " ".join(missing_demo_packages())
    if missing:
        return [*findings, Finding("demo", f"needs {missing}", f"pip install {missing}")]
    return [*findings, Finding("demo", "ready: python -m actreg_ext demo")]


def report(findings: list[Finding]) -> list[str]:
    """The findings as lines of text, each advice under its finding, and the verdict at the end."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.name:<{width}}  {finding.value}")
        if finding.advice:
            lines.append(f"{'':<{width}}  -> {finding.advice}")
    usable = all(finding.usable for finding in findings)
    return [*lines, "actreg_ext is ready." if usable else "actreg_ext cannot be used yet."]


def main() -> int:
    """Prints the report; returns 0 if actreg_ext can be used, 1 if not."""
    findings = examine()
    print("\n".join(report(findings)))
    return 0 if all(finding.usable for finding in findings) else 1


# Each of the following describes an actreg_ext that works.


def _extension() -> Finding:
    info = _part("_C").build_info()
    return Finding("extension", f"built for torch {info['torch']} by {info['compiler']}")


def _instructions() -> Finding:
    built = ", ".join(_part("_C").build_info()["instruction_sets"])
    value = f"{_part('_C').cpu_capability()} in use, of {built}"
    wish = os.environ.get("ATEN_CPU_CAPABILITY")
    if wish is None:
        return Finding("instructions", value)
    advice = "for the best that this processor has: unset ATEN_CPU_CAPABILITY"
    return Finding("instructions", f"{value} (ATEN_CPU_CAPABILITY={wish})", advice)


def _threads() -> Finding:
    threads, cores = importlib.import_module("torch").get_num_threads(), os.cpu_count() or 1
    if not _part("_build").threads:
        return Finding("threads", "1, built without OpenMP", f"with GCC: CXX=g++ {_rebuild()}")
    if threads > 1 or cores == 1:
        return Finding("threads", f"{threads}, for {cores} cores")
    limited = "OMP_NUM_THREADS" in os.environ
    advice = "unset OMP_NUM_THREADS" if limited else f"in Python: torch.set_num_threads({cores})"
    return Finding("threads", f"1, for {cores} cores", advice)


def _kernels() -> Finding:
    build, torch = _part("_build"), importlib.import_module("torch")
    if build.cuda is not None:
        return Finding("CUDA kernels", f"built for CUDA {build.cuda}")
    value = f"none: {build.cpu_only}; CUDA tensors run on actreg_ext.reference"
    wanted = torch.version.cuda is not None or shutil.which("nvidia-smi") is not None
    if not wanted or "this version" in build.cpu_only:
        return Finding("CUDA kernels", value)
    if torch.version.cuda is None:
        first = "install PyTorch for CUDA (https://pytorch.org/get-started)"
    elif "ACTREG_CUDA" in build.cpu_only:
        first = "unset ACTREG_CUDA"
    else:
        first = f"set CUDA_HOME to a toolkit of CUDA {torch.version.cuda}"
    return Finding("CUDA kernels", value, f"{first}, then {_rebuild()}")


def _gpu() -> Finding:
    cuda = importlib.import_module("torch").cuda
    names = [
        cuda.get_device_name(i) for i in range(cuda.device_count() if cuda.is_available() else 0)
    ]
    if names:
        return Finding("GPU", ", ".join(names))
    advice = "see whether the driver finds one: nvidia-smi" if _part("_build").cuda else ""
    return Finding("GPU", "none that torch can see", advice)


def _compiler() -> Finding:
    return Finding("nvcc", _nvcc() or "not found (needed only to build the CUDA kernels)")


def _import_error() -> str | None:
    """What goes wrong on importing the rest of the package."""
    try:
        importlib.import_module("actreg_ext.nn")
    except Exception as error:
        return f"actreg_ext cannot be imported ({error!r}); build it again: {_rebuild()}"
    return None


def _part(name: str) -> Any:
    """A part of the package that is made by the build."""
    return importlib.import_module(f"actreg_ext.{name}")


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = f"{home}/bin" if home else f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"
    return shutil.which("nvcc", path=path)


def _rebuild() -> str:
    """The command that builds this copy of actreg_ext again."""
    source = Path(__file__).resolve().parents[1]
    if (source / "setup.py").is_file():
        return f"pip install -e {shlex.quote(str(source))}"
    return "pip install --force-reinstall --no-deps --no-cache-dir .  (in the source of actreg_ext)"


def _version() -> str:
    metadata = importlib.import_module("importlib.metadata")
    try:
        return str(metadata.version("actreg_ext"))
    except metadata.PackageNotFoundError:
        return "not installed"
