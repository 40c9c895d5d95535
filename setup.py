"""Builds actreg_ext._C against the PyTorch that the environment already has.

Everything else about the package is in pyproject.toml. The switches are environment variables:

    ACTREG_CUDA        0 leaves the CUDA kernels out, 1 insists on them; unset: if possible
    ACTREG_TORCH_SITE  the site-packages directory that has torch, where setup.py does not find it
    ACTREG_TAG         1 names the PyTorch in the version (0.1.0+torch2.13), for published wheels
    WERROR             1 turns warnings into errors
    CXX, MAX_JOBS, CUDA_HOME, TORCH_CUDA_ARCH_LIST    as in every PyTorch extension
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import setup
from setuptools.command.egg_info import egg_info

ANY_TORCH = "torch>=2.11"  # what a source distribution asks for; a wheel asks for its own release

NO_TORCH = """
actreg_ext: building needs the PyTorch it will run with, and there is none for Python {python} in
  {places}
Install PyTorch first (https://pytorch.org/get-started), then one of
  pip install .                        # pip: looks in the environment that pip belongs to
  uv pip install .                     # uv and others: look in the activated environment
  pip install --no-build-isolation .   # any tool; setuptools and ninja must be installed, too
or point ACTREG_TORCH_SITE at the site-packages directory that has torch.
"""

NO_COMPILER = """
actreg_ext: building needs a C++ compiler, and {problem}. Install one:
  Debian, Ubuntu   sudo apt install g++
  Fedora, RHEL     sudo dnf install gcc-c++
  macOS            xcode-select --install
  conda            conda install -c conda-forge cxx-compiler
If yours has another name: CXX=NAME pip install .
"""

NO_HEADERS = """
actreg_ext: building needs the headers of Python {python}; {folder} has no Python.h. Install them:
  Debian, Ubuntu   sudo apt install python{python}-dev
  Fedora, RHEL     sudo dnf install python{python}-devel
  others           use a Python with headers: from conda, uv, pyenv or python.org
"""


def import_torch() -> ModuleType:
    """The torch of the environment that is being installed into, also from an isolated build."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        # An isolated build of pip runs this same interpreter and only hides its site directories.
        places = os.environ.get("ACTREG_TORCH_SITE", "").split(os.pathsep) + site.getsitepackages()
        if sys.prefix == sys.base_prefix:
            places.append(site.getusersitepackages())
        places += site_directories(active_environment())
        places = [place for place in dict.fromkeys(places) if os.path.isdir(place)]
        if not any(os.path.isfile(os.path.join(p, "torch", "version.py")) for p in places):
            python = "{}.{}".format(*sys.version_info)
            raise SystemExit(NO_TORCH.format(python=python, places="\n  ".join(places))) from None
        # Appended, so that the isolated setuptools wins; and all, for torch's dependencies.
        sys.path += [place for place in places if place not in sys.path]
        import torch
    where = os.path.dirname(os.path.dirname(os.path.abspath(torch.__file__)))
    print(f"actreg_ext: building for torch {torch.__version__} of {where}", file=sys.stderr)
    return torch


def active_environment() -> str:
    """The root of the environment that a tool installs into while it builds in one of its own.

    Empty where there is none, and for pip and setup.py, which run in the environment that they
    install into: any other one would be wrong. uv overwrites VIRTUAL_ENV, but what was activated
    stays in PATH. The order is uv's: a virtual environment, conda's, .venv in the project.
    """
    if "PIP_BUILD_TRACKER" in os.environ or os.path.basename(sys.argv[0]) == "setup.py":
        return ""
    roots = [os.environ.get("VIRTUAL_ENV", "")]
    programs = os.environ.get("PATH", "").split(os.pathsep)
    roots += [os.path.dirname(p) for p in programs if os.path.isfile(f"{p}/../pyvenv.cfg")]
    roots.append(os.environ.get("CONDA_PREFIX", ""))
    if "UV_INTERNAL__BUILD_DIR" in os.environ:
        roots.append(os.path.abspath(".venv"))
    own = os.path.realpath(sys.prefix)
    others = [root for root in roots if os.path.isdir(root) and os.path.realpath(root) != own]
    return others[0] if others else ""


def site_directories(root: str) -> list[str]:
    """Where the Python of an environment has its packages; none if it is not such a Python."""
    python = os.path.join(root, "bin", "python")
    if not (root and os.path.isfile(python)):
        return []
    ask = "import sys, sysconfig as s; print(s.get_config_var('SOABI'), *sys.path, sep='\\n')"
    abi, *path = output_of(python, "-I", "-c", ask).splitlines() or [""]
    same = abi == sysconfig.get_config_var("SOABI")
    return [place for place in path if same and place.endswith("-packages")]


def output_of(*command: str) -> str:
    """What a program prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def cuda_toolkit(torch_cuda: str | None) -> tuple[str, str]:
    """(root of the CUDA toolkit to build with, ""), or ("", why to build for the CPU alone)."""
    if os.environ.get("ACTREG_CUDA") == "0":
        return "", "ACTREG_CUDA=0"
    if torch_cuda is None:
        return "", "this PyTorch is built without CUDA"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = f"{home}/bin" if home else f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"
    nvcc = os.path.realpath(shutil.which("nvcc", path=path) or "")
    if not os.path.isfile(nvcc):
        return "", f"no nvcc was found; install CUDA {torch_cuda} or set CUDA_HOME"
    # nvcc may be a link, whose target lies in the toolkit, or a script, which only it sees through.
    top = re.search(r"TOP=(.+)", output_of(nvcc, "--dryrun", "_.cu"))
    root = os.path.realpath(top[1].strip()) if top else os.path.dirname(os.path.dirname(nvcc))
    release = re.search(r"release (\d+)", output_of(nvcc, "--version"))
    if release and release[1] != torch_cuda.split(".")[0]:
        return "", f"{root} is CUDA {release[1]}; set CUDA_HOME to a toolkit of CUDA {torch_cuda}"
    return root, ""


def cuda_architectures(toolkit: str, torch: ModuleType) -> str:
    """TORCH_CUDA_ARCH_LIST unless it is set: Ampere, Hopper, Blackwell, and this machine's GPUs.

    The code for 8.0 runs on every GPU of 8.x, that for 10.0 on 10.x, that for 12.0 on 12.x. nvcc
    knows 10.0 and 12.0 from release 12.8 on. For any other GPU after 9.0 the driver makes the code
    from the PTX of 9.0, at the first use of each dtype, which takes about ten seconds.
    """
    known = output_of(f"{toolkit}/bin/nvcc", "--list-gpu-arch").split()
    present = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    built = {(8, 0), (9, 0), (10, 0), (12, 0)}
    wanted = built | {c for c in present if c[0] not in {major for major, _ in built}}
    usable = sorted(c for c in wanted if f"compute_{c[0]}{c[1]}" in known)
    return ";".join(f"{c[0]}.{c[1]}" + "+PTX" * (c == (9, 0)) for c in usable)


def openmp_flags(torch: ModuleType, include_paths: list[str], compiler: str) -> list[str]:
    """What makes at::parallel_for, a template in a header, parallel in our translation units.

    For compiling alone: without the flag in linking, the symbols resolve to the runtime that
    libtorch has loaded, so that there is one pool of threads, which torch.set_num_threads sets.
    """
    if not torch.backends.openmp.is_available():
        return []
    if sys.platform == "darwin":  # PyTorch's wheels bring the header that Apple's compiler lacks
        bundled = any(os.path.isfile(os.path.join(path, "omp.h")) for path in include_paths)
        return ["-Xclang", "-fopenmp"] if bundled else []
    if "clang" in output_of(compiler, "--version"):  # calls LLVM's runtime; torch loads GCC's
        print(
            "actreg_ext: the build uses one thread, because Clang's OpenMP library is not the one "
            "that torch loads; for all threads build with GCC: CXX=g++",
            file=sys.stderr,
        )
        return []
    return ["-fopenmp"]


def require_compiler(command: str) -> None:
    """Stop with what to install if the compiler or Python's headers are missing."""
    program = shlex.split(command)[0]
    if shutil.which(program) is None:
        problem = f"{program} is not in PATH"
    elif subprocess.run([program, "--version"], capture_output=True).returncode:
        problem = f"{program} does not run"  # macOS has a placeholder for it
    else:
        problem = ""
    if problem:
        raise SystemExit(NO_COMPILER.format(problem=problem))
    folder = sysconfig.get_path("include")
    if not os.path.isfile(os.path.join(folder, "Python.h")):
        python = "{}.{}".format(*sys.version_info)
        raise SystemExit(NO_HEADERS.format(python=python, folder=folder))


def build_options() -> dict[str, Any]:
    """For setup(): the extension, the command that builds it, and the PyTorch it is bound to."""
    torch = import_torch()
    toolkit, cpu_only = cuda_toolkit(torch.version.cuda)
    if toolkit:
        os.environ["CUDA_HOME"] = toolkit  # before cpp_extension takes the parent of any nvcc
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_architectures(toolkit, torch)
    elif os.environ.get("ACTREG_CUDA") == "1":
        raise SystemExit(f"actreg_ext: ACTREG_CUDA=1, but there can be no CUDA kernels: {cpu_only}")
    else:
        print(f"actreg_ext: building for the CPU alone: {cpu_only}", file=sys.stderr)
    from torch.utils import cpp_extension

    # BuildExtension looks for ninja in PATH, which lacks an environment that is not activated.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count()))
    include_paths = cpp_extension.include_paths()
    compiler = cpp_extension.get_cxx_compiler()
    require_compiler(compiler)
    openmp = openmp_flags(torch, include_paths, compiler)
    werror = os.environ.get("WERROR") == "1"
    core = os.path.abspath("csrc")
    cxx = ["-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", *openmp]
    cxx += ["-Wall", "-Wextra", "-Wno-psabi"] + ["-Werror"] * werror
    # Other projects' headers are system headers: no warnings about them. Ours are found by
    # #include "..." alone: csrc/torch never hides a <torch/...>.
    cxx += [f"-isystem{path}" for path in [*include_paths, sysconfig.get_path("include")]]
    cxx += [f"-iquote{core}"]
    nvcc = ["-O3", "-Xcompiler=-fvisibility=hidden,-Wno-psabi", f"-I{core}"]
    nvcc += ["-Werror=all-warnings"] * werror

    cuda_sources = glob("csrc/cuda/*.cu") + glob("csrc/torch/cuda*.cpp")
    sources = {*glob("csrc/cpu/*.cpp"), *glob("csrc/torch/*.cpp"), *cuda_sources}
    make_extension = cpp_extension.CUDAExtension if toolkit else cpp_extension.CppExtension
    extension = make_extension(
        "actreg_ext._C",
        sorted(sources if toolkit else sources - {*cuda_sources}),
        define_macros=[("ACTREG_CUDA", None)] if toolkit else [],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
    )

    class BuildExtension(cpp_extension.BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            # One for each torch, for editable builds too: only what changed is compiled again.
            self.build_temp = f"build/torch-{torch.__version__}-{sys.implementation.cache_tag}"

        def run(self) -> None:
            super().run()
            root = Path("" if self.inplace else self.build_lib)
            (root / "actreg_ext" / "_build.py").write_text(
                '"""What this copy of actreg_ext was built for; written by setup.py."""\n\n'
                f"torch: str = {str(torch.__version__)!r}\n"
                f"cuda: str | None = {torch.version.cuda if toolkit else None!r}\n"
                f"cpu_only: str = {cpu_only!r}  # why cuda is None\n"
                f"threads: bool = {bool(openmp) or not torch.backends.openmp.is_available()}\n"
            )

    # The extension runs with this minor release of PyTorch alone, as doctor.why_unusable checks.
    release = ".".join(torch.__version__.split(".")[:2])

    class Metadata(egg_info):
        def finalize_options(self) -> None:
            if os.environ.get("ACTREG_TAG") == "1":
                self.tag_build = f"+torch{release}"
            super().finalize_options()

    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension, "egg_info": Metadata},
        "install_requires": [f"torch=={release}.*"],
    }


# Source distributions need no PyTorch. pip asks for dist_info before it downloads any dependency,
# so that a missing PyTorch is reported at once.
source_only = sys.argv[1:2] in (["egg_info"], ["sdist"])
setup(**({"install_requires": [ANY_TORCH]} if source_only else build_options()))
