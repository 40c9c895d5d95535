"""setup.py: the PyTorch that an isolated build finds, what the metadata asks for, what is missing.

Each test runs setup.py for the metadata alone, in an empty environment such as a build tool makes,
with a PyTorch that is a few lines of Python: nothing is compiled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import setuptools

import actreg_ext

ROOT = Path(__file__).parents[1]
FAKE_TORCH = {
    "__init__.py": """
        from . import backends, cuda, version
        __version__ = version.__version__
    """,
    "backends.py": "class openmp:\n    is_available = staticmethod(lambda: False)",
    "cuda.py": "",
    "version.py": "__version__, cuda = '2.12.7+cpu', None",
    "utils/__init__.py": "",
    "utils/cpp_extension.py": """
        import os
        from setuptools import Extension as CppExtension
        from setuptools.command.build_ext import build_ext as BuildExtension
        Extension = CppExtension
        def CppExtension(name, sources, extra_compile_args, **options):
            return Extension(name, sources)
        def include_paths():
            return []
        def get_cxx_compiler():
            return os.environ.get("CXX", "c++")
    """,
}


def environment(folder: Path, torch: str | None = None) -> Path:
    """An environment of this Python with nothing but this PyTorch."""
    venv.create(folder, symlinks=True)
    if torch:
        for name, text in FAKE_TORCH.items():
            file = packages(folder) / "torch" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = (line.removeprefix(" " * 8) for line in text.strip("\n").splitlines())
            file.write_text("\n".join(lines).replace("2.12.7+cpu", torch))
    return folder


def packages(folder: Path) -> Path:
    return next(folder.glob("lib/python*/site-packages"))


class Build:
    """A copy of the project, and the environment of a build tool that has setuptools alone."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.folder = folder / "tree", folder
        shutil.copytree(
            ROOT / "actreg_ext",
            self.tree / "actreg_ext",
            ignore=shutil.ignore_patterns("_C.*.so", "demo", "__pycache__"),
        )
        for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
            shutil.copy(ROOT / name, self.tree)
        self.own = environment(folder / "own")
        for pattern in ("setuptools", "setuptools-*", "_distutils_hack"):
            for found in Path(setuptools.__file__).parents[1].glob(pattern):
                (packages(self.own) / found.name).symlink_to(found)

    def run(self, *path: Path, argv0: str = "-c", **more: str) -> str:
        """What setup.py prints, with these environments in PATH, as a build tool calls it."""
        # The compiler is true(1), which is never asked to compile.
        programs = [str(self.own / "bin"), *(str(p / "bin") for p in path), "/usr/bin", "/bin"]
        variables = {"PATH": os.pathsep.join(programs), "HOME": str(self.folder), "CXX": "true"}
        arguments = ["dist_info", "--output-dir", str(self.folder / "out")]
        (self.folder / "out").mkdir(exist_ok=True)
        program = f"import sys; sys.argv = {[argv0, *arguments]}; exec(open('setup.py').read())"
        done = subprocess.run(
            [self.own / "bin" / "python", "-c", program],
            cwd=self.tree,
            env={**variables, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert "Traceback" not in done.stdout and "actreg_ext: building" in done.stdout, done.stdout
        assert ("building needs" in done.stdout) == bool(done.returncode), done.stdout
        return done.stdout

    def metadata(self) -> Message:
        (file,) = self.folder.glob("out/*.dist-info/METADATA")
        return Parser().parsestr(file.read_text())

    def requirements(self) -> list[str]:
        lines = self.metadata().get_all("Requires-Dist") or []
        return [line for line in lines if line.startswith("torch")]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_a_wheel_asks_for_its_pytorch(build: Build, tmp_path: Path) -> None:
    active = environment(tmp_path / "active", "2.12.7+cpu")
    build.run(active)
    assert build.requirements() == ["torch==2.12.*"]
    assert build.metadata()["Version"] == actreg_ext.__version__


def test_a_published_wheel_names_its_pytorch(build: Build, tmp_path: Path) -> None:
    """From a source distribution, too, which brings a setup.cfg with an empty tag."""
    (build.tree / "setup.cfg").write_text("[egg_info]\ntag_build = \n")
    active = environment(tmp_path / "active", "2.12.7+cpu")
    build.run(active, ACTREG_TAG="1")
    assert build.metadata()["Version"] == f"{actreg_ext.__version__}+torch2.12"


def test_a_source_distribution_asks_for_any_pytorch(build: Build) -> None:
    done = subprocess.run(
        [build.own / "bin" / "python", "setup.py", "sdist"],
        cwd=build.tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = build.tree.glob("*.egg-info/PKG-INFO")
    build.folder.joinpath("out", "x.dist-info").mkdir(parents=True)
    shutil.copy(file, build.folder / "out" / "x.dist-info" / "METADATA")
    assert build.requirements() == ["torch>=2.11"]
    assert "requires-dist" in (build.metadata().get_all("Dynamic") or [])


def test_virtual_env_comes_first(build: Build, tmp_path: Path) -> None:
    """python -m build leaves VIRTUAL_ENV as the user has it."""
    active, conda = (environment(tmp_path / n, v) for n, v in (("a", "2.13.0"), ("c", "2.14.0")))
    said = build.run(conda, VIRTUAL_ENV=str(active), CONDA_PREFIX=str(conda))
    assert f"building for torch 2.13.0 of {packages(active)}" in said


def test_uv_hides_virtual_env(build: Build, tmp_path: Path) -> None:
    """It sets VIRTUAL_ENV to its own environment; what is activated is the next one in PATH."""
    active, conda = (environment(tmp_path / n, v) for n, v in (("a", "2.13.0"), ("c", "2.14.0")))
    said = build.run(active, VIRTUAL_ENV=str(build.own), CONDA_PREFIX=str(conda))
    assert f"building for torch 2.13.0 of {packages(active)}" in said


def test_conda_prefix(build: Build, tmp_path: Path) -> None:
    conda = environment(tmp_path / "conda", "2.14.0")
    (conda / "pyvenv.cfg").unlink()  # a Python without pyvenv.cfg is not in a virtual environment
    (conda / "bin" / "python").unlink()
    (conda / "bin" / "python").write_text(
        f'#!/bin/sh\nPYTHONPATH={packages(conda)} exec {sys.executable} -S -c "$3"\n'
    )
    (conda / "bin" / "python").chmod(0o755)
    said = build.run(VIRTUAL_ENV=str(build.own), CONDA_PREFIX=str(conda))
    assert f"building for torch 2.14.0 of {packages(conda)}" in said


def test_uv_takes_dot_venv(build: Build) -> None:
    """Only uv installs into .venv where nothing is activated."""
    environment(build.tree / ".venv", "2.14.0")
    assert "there is none for Python" in build.run()
    assert "torch 2.14.0 of" in build.run(UV_INTERNAL__BUILD_DIR=str(build.tree))


def test_pip_installs_into_its_own_environment(build: Build, tmp_path: Path) -> None:
    """Another environment that happens to be activated is not where pip installs."""
    active = environment(tmp_path / "active", "2.13.0")
    said = build.run(active, VIRTUAL_ENV=str(active), PIP_BUILD_TRACKER="/tmp/tracker")
    assert "there is none for Python" in said
    said = build.run(active, VIRTUAL_ENV=str(active), argv0="setup.py")
    assert "there is none for Python" in said


def test_another_python_is_not_taken(build: Build, tmp_path: Path) -> None:
    active = environment(tmp_path / "active", "2.13.0")
    (active / "bin" / "python").unlink()
    (active / "bin" / "python").write_text(f"#!/bin/sh\necho cpython-39\necho {packages(active)}\n")
    (active / "bin" / "python").chmod(0o755)
    assert "there is none for Python" in build.run(active, VIRTUAL_ENV=str(active))


def test_the_first_environment_decides(build: Build, tmp_path: Path) -> None:
    """Where the activated one has no PyTorch, that of another would be a guess."""
    active, conda = environment(tmp_path / "a"), environment(tmp_path / "c", "2.14.0")
    said = build.run(VIRTUAL_ENV=str(active), CONDA_PREFIX=str(conda))
    assert "there is none for Python" in said and "uv pip install ." in said


@pytest.mark.parametrize(
    ("compiler", "problem"),
    [("no-such-g++ -m64", "no-such-g++ is not in PATH"), ("false", "false does not run")],
)
def test_a_missing_compiler(build: Build, tmp_path: Path, compiler: str, problem: str) -> None:
    active = environment(tmp_path / "active", "2.13.0")
    said = build.run(active, CXX=compiler)
    for text in (problem, "apt install g++", "dnf install", "xcode-select", "cxx-compiler"):
        assert text in said


def test_missing_headers_of_python(build: Build, tmp_path: Path) -> None:
    active = environment(tmp_path / "active", "2.13.0")
    hide = "import sysconfig; sysconfig.get_path = lambda *_, **__: '/nowhere'\n"
    setup = build.tree / "setup.py"
    setup.write_text(setup.read_text().replace("import sysconfig\n", hide))
    said = build.run(active)
    assert "/nowhere has no Python.h" in said and "-dev" in said
