"""Copies of the tree with an extension of their own, in which tests can be run.

The extension is the one that setup.py has built, or the one of tests/emulation (emulate.py); of it
only what a changed source needs is compiled again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TAG = f"torch-{torch.__version__}-{sys.implementation.cache_tag}"
NATIVE = ROOT / "build" / TAG  # setup.py's
EMULATION = ROOT / "build" / "emulation" / TAG
ENVIRONMENT = {
    **os.environ,
    "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", ""),  # ninja
    "ATEN_CPU_CAPABILITY": "default",
    "OMP_NUM_THREADS": "1",  # two run side by side
    "PYTHONDONTWRITEBYTECODE": "1",
    "COLUMNS": "200",
}


def natives_beside_emulation() -> list[str]:
    """Return the objects that the emulation's extension shares with the one of setup.py."""
    objects = [p.relative_to(NATIVE).as_posix() for p in sorted(NATIVE.glob("csrc/**/*.o"))]
    replaced = {"csrc/torch/cpu.o", "csrc/torch/cpu_temporal.o"}
    return [str(NATIVE / p) for p in objects if p not in replaced and "cuda" not in p]


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(cwd)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, cwd=cwd, env=environment, timeout=600, **output)


class Copy:
    """A copy of the tree with the extension as it was last built there."""

    def __init__(self, path: Path, build: Path = NATIVE) -> None:
        self.path, self.folder = path, build
        listed = run(["git", "ls-files", "-z", "-co", "--exclude-standard"], ROOT).stdout
        for file in [*filter(None, listed.split("\0")), "actreg_ext/_build.py"]:
            if (ROOT / file).is_file():
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, path / file)
        (native,) = ROOT.glob("actreg_ext/_C.*.so")
        self.built = native if build == NATIVE else build / "_C.so"
        self.extension = path / "actreg_ext" / native.name
        self.restore()

    def restore(self) -> None:
        """Take the extension of the last build again."""
        shutil.copy2(self.built, self.extension)

    def build(self, sources: list[str]) -> None:
        """Compile these sources and link them with the objects of the others."""
        objects = []
        for entry in json.loads(run(["ninja", "-t", "compdb", "compile"], self.folder).stdout):
            output = Path(self.folder, entry["output"])
            source = str(Path(entry["file"]).relative_to(ROOT))
            if source in sources:
                command = entry["command"].replace("-O3", "-O1")
                ours = rf"{re.escape(str(ROOT))}/(csrc|build|tests)\b"
                command = re.sub(ours, rf"{self.path}/\1", command)
                output = self.path / output.relative_to(ROOT)
                command = command.replace(f"-o {entry['output']}", f"-o {output}")
                output.parent.mkdir(parents=True, exist_ok=True)
                self.expect(["sh", "-c", command])
            objects.append(str(output))
        if self.folder == EMULATION:
            objects += natives_beside_emulation()
        folder = Path(torch.__file__).parent / "lib"
        libraries = [str(p) for name in ("c10", "torch") for p in folder.glob(f"lib{name}*.so")]
        rpath = f"-Wl,-rpath,{folder}"
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        linked = ["-shared", *objects, "-o", str(self.extension), *libraries, rpath]
        self.extension.unlink()
        self.expect([*compiler, *linked])

    def expect(self, command: list[str]) -> None:
        done = run(command, self.path)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)[:300]} ...\n{done.stdout[-3000:]}")

    def failed_test(self, tests: str) -> str:
        """Run tests up to the first that fails; return its name, or nothing."""
        pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
        done = run([*pytest, *shlex.split(tests)], self.path)
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
        if done.returncode == 0 or (done.returncode == 1 and failed):
            return failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else ""
        raise RuntimeError(f"pytest {tests} ended with {done.returncode}\n{done.stdout[-3000:]}")
