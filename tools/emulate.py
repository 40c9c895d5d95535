"""Run tests on the CUDA kernels without a GPU: make emulate [ARGS="-k dropout"].

emulate.py compiles the kernels' own source and csrc/torch/cuda.cpp for the CPU, against
tests/emulation. In a copy of the package these kernels replace the CPU's kernels, and the tests run
there unchanged.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from copies import EMULATION, ENVIRONMENT, ROOT, Copy, natives_beside_emulation
from torch.utils import cpp_extension

# About the CPU's kernels, about other builds, or about no kernels at all.
OTHERS = "instruction_sets ulp cuda fake_cuda gpu_check doctor layers registry pairs".split()
OTHERS += ["benchmarks", "benchmarks_gpu", "convert", "export", "models", "pages", "pending"]
OTHERS += ["records", "release", "setup"]
OTHERS += ["rows", "penalties", "ragged"]  # the general form has no CUDA kernels


def build() -> None:
    """Build the extension with the emulated kernels, where its sources have changed."""
    EMULATION.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = ENVIRONMENT["PATH"]
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count()))
    (EMULATION / "_C.so").unlink(missing_ok=True)  # linked with objects that ninja does not know
    folder = ROOT / "tests" / "emulation"
    flags = "-O1 -Wall -Werror -Wno-psabi -Wno-unknown-pragmas -DACTREG_DEVICE_MATH"
    cpp_extension.load(
        "_C",
        [str(source) for source in sorted(folder.glob("*.cpp"))],
        extra_cflags=flags.split(),
        extra_ldflags=natives_beside_emulation(),
        extra_include_paths=[str(folder / "include"), str(ROOT / "csrc")],
        build_directory=str(EMULATION),
        is_python_module=False,
    )


def main() -> int:
    build()
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder), EMULATION)
        ignored = [f"--ignore=tests/test_{name}.py" for name in OTHERS]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *ignored]
        environment = {**ENVIRONMENT, "PYTHONPATH": folder}
        return subprocess.run([*command, *sys.argv[1:]], cwd=copy.path, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
