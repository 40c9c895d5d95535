"""`python -m actreg_ext doctor`: what is installed, what is in use, and what to do about the rest.

Package layer. It has to work where the package itself does not: without torch, without the
compiled extension, and with one that was built for another torch. So nothing but the standard
library is imported at the top, and `actreg_ext/__init__.py` asks `why_unusable` first of all.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple


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
    """Return True while `python -m actreg_ext doctor` imports the package to find the doctor."""
    return sys.argv[:2] == ["-m", "doctor"]


def why_unusable() -> str | None:
    """Return None if actreg_ext works here, or one sentence: why not, and what to do.

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
        build = importlib.import_module("actreg_ext._build")
    except ImportError:
        here = Path(__file__).parents[1]
        return (
            f"actreg_ext in {here} is not built: {_rebuild()}, or, if it is installed too, "
            "start Python in another directory"
        )
    release, present = build.torch.split(".")[:2], torch.__version__.split(".")[:2]
    if release != present:
        return (
            f"actreg_ext was built for torch {build.torch}, and this is torch {torch.__version__}; "
            f"install a wheel of actreg_ext for torch {'.'.join(present)}, or "
            f"torch=={'.'.join(release)}.*, or build it again: {_rebuild()}"
        )
    try:
        importlib.import_module("actreg_ext._C")
    except ImportError as error:
        reason = f"actreg_ext cannot load its extension ({error})"
        if build.cuda is not None and _major(build.cuda) != _major(torch.version.cuda):
            reason = (
                f"actreg_ext was built for CUDA {build.cuda}, and this torch is built "
                f"{f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'}"
            )
        return f"{reason}; build it again: {_rebuild()}"
    return None


def examine() -> list[Finding]:
    """Return everything that the doctor looks at, in the order of the report."""
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    findings = [Finding("actreg_ext", _version() or "not installed"), Finding("python", system)]
    reason = why_unusable() or _import_error()
    if "torch" in sys.modules:
        findings.append(Finding("torch", str(importlib.import_module("torch").__version__)))
    if reason is None:
        findings += [_extension(), _instructions(), _threads(), _kernels(), _gpu(), _compiler()]
    else:
        findings.append(Finding("extension", "cannot be used", reason, usable=False))
    return [*findings, _demo()]


def report(findings: list[Finding]) -> list[str]:
    """Return the findings as lines: each advice under its finding, the verdict at the end."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.name:<{width}}  {finding.value}")
        if finding.advice:
            lines.append(f"{'':<{width}}  -> {finding.advice}")
    usable = all(finding.usable for finding in findings)
    return [*lines, "actreg_ext is ready." if usable else "actreg_ext cannot be used yet."]


def main() -> int:
    """Print the report and return 0 if actreg_ext can be used, 1 if not."""
    findings = examine()
    print("\n".join(report(findings)))
    return 0 if all(finding.usable for finding in findings) else 1


def _demo() -> Finding:
    if _version() is None:
        return Finding("demo", "its packages are not known before actreg_ext is installed")
    lines = metadata.requires("actreg_ext") or []  # such as: tqdm; extra == "demo"
    names = [re.split(r"[^\w.-]", line)[0] for line in lines if line.endswith(("'demo'", '"demo"'))]
    missing = " ".join(name for name in names if not any(metadata.distributions(name=name)))
    if missing:
        return Finding("demo", f"needs {missing}", f"pip install {missing}")
    return Finding("demo", "ready: python -m actreg_ext demo")


# The following describe an actreg_ext that can be imported.


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
    value = f"none: {build.cpu_only}"
    if torch.cuda.is_available():
        value += "; CUDA tensors run on actreg_ext.reference, which is slower"
    wanted = torch.version.cuda is not None or shutil.which("nvidia-smi") is not None
    if not wanted:
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
    if cuda.is_available():
        names = [cuda.get_device_name(device) for device in range(cuda.device_count())]
        return Finding("GPU", ", ".join(names))
    advice = "see whether the driver finds one: nvidia-smi" if _part("_build").cuda else ""
    return Finding("GPU", "none that torch can see", advice)


def _compiler() -> Finding:
    return Finding("nvcc", _nvcc() or "not found (needed only to build the CUDA kernels)")


def _import_error() -> str | None:
    """Return what goes wrong on importing the rest of the package."""
    try:
        importlib.import_module("actreg_ext.nn")
    except Exception as error:
        return f"actreg_ext cannot be imported ({error!r}); build it again: {_rebuild()}"
    return None


def _part(name: str) -> Any:
    """Return a part of the package that is made by the build."""
    return importlib.import_module(f"actreg_ext.{name}")


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = f"{home}/bin" if home else f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"
    return shutil.which("nvcc", path=path)


def _major(cuda: str | None) -> str:
    """Return the part of a CUDA version that libraries must share."""
    return (cuda or "").split(".")[0]


def _rebuild() -> str:
    """Return the command that builds this copy of actreg_ext again."""
    source = Path(__file__).resolve().parents[1]
    if (source / "setup.py").is_file():
        return f"pip install -e {shlex.quote(str(source))}"
    return "pip install --force-reinstall --no-deps --no-cache-dir .  (in the source of actreg_ext)"


def _version() -> str | None:
    try:
        return metadata.version("actreg_ext")
    except metadata.PackageNotFoundError:
        return None
