"""The layers: which file may include what, which may hold formulas, and how long it may be."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
PACKAGE_ROOT = ROOT / "actreg_ext"
PACKAGE = sorted(PACKAGE_ROOT.rglob("*.py"))
STANDARD = r"[a-z_0-9]+"  # a header of C++'s library: no slash, no dot

# layer -> patterns of what its files may include: (in quotes, in angle brackets)
MAY_INCLUDE = {
    "core": (r"core/\w+\.h", STANDARD),
    "cpu": (r"(core|cpu)/\w+\.h", rf"{STANDARD}|immintrin\.h|arm_neon\.h"),
    "cuda": (r"(core|cuda)/\w+\.(h|cuh)", rf"{STANDARD}|cuda\w*\.h|cooperative_groups(/\w+)?\.h"),
    "torch": (
        r"(core|cpu|cuda|torch)/(?!activations|math|coefficients|dual)\w+\.h",
        rf"{STANDARD}|(ATen|c10|torch|pybind11)/.+\.h|sys/mman\.h",
    ),
}
TRANSCENDENTAL = r"\b(exp|exp2|expm1|log|log1p|log2|tanh|erf|erfc|pow|sqrt)f?\("
# The files of the package that may name mathematical functions of torch.
# The reference, and the penalties, which are formulas of the sums of `act_sums`.
WITH_MATHS = (
    "reference.py",
    "reference_mask.py",
    "torch_activations.py",
    "dead_units.py",
    "hoyer.py",
    "l1_controller.py",
    "penalties.py",
    "sum_penalty.py",
)
# The files that recognize torch's functions, and call none of them.
WITH_NAMES_OF_MATHS = ("known.py", "plan.py")
# Functions and methods of torch that only a formula needs.
MATHS = set(
    "exp expm1 log log1p sigmoid tanh erf erfc sqrt rsqrt pow abs square sign sgn where clamp clip "
    "maximum minimum relu dropout bernoulli rand randn randint functional special".split()
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_of(path: Path) -> list[str]:
    """The lines of code: without empty lines, comments and docstrings."""
    lines = path.read_text().splitlines()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse("\n".join(lines))):
            text = getattr(node, "body", [None])
            text = text[0] if isinstance(text, list) and text else None
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                lines[text.lineno - 1 : text.end_lineno] = [""] * (
                    (text.end_lineno or 0) - text.lineno + 1
                )
    return [line for line in lines if line.strip() and not re.match(r"\s*(#(?!\w)|//)", line)]


def test_there_are_layers() -> None:
    """The other tests here must not pass because there are no files."""
    assert {path.parent.name for path in NATIVE} >= {"core", "cpu", "torch"}
    assert {path.parent.name for path in NATIVE} <= MAY_INCLUDE.keys()
    assert len(NATIVE) > 15 and len(PACKAGE) > 8


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_includes(path: Path) -> None:
    quoted, bracketed = MAY_INCLUDE[path.parent.name]
    for line in path.read_text().splitlines():
        if included := re.match(r'\s*#\s*include\s+(?:"(.+)"|<(.+)>)', line):
            ours, theirs = included.groups()
            allowed = re.fullmatch(quoted, ours) if ours else re.fullmatch(bracketed, theirs)
            assert allowed, f"{relative(path)} must not include {ours or theirs}"


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_a_file_says_its_layer(path: Path) -> None:
    head = path.read_text().split("#", 1)[0]
    assert head.startswith("// ") and f"Layer: {path.parent.name}" in head


@pytest.mark.parametrize(
    "path", [p for p in NATIVE if p.parent.name in ("torch", "cuda", "cpu")], ids=relative
)
def test_formulas_stay_in_core(path: Path) -> None:
    assert not re.findall(TRANSCENDENTAL, "\n".join(code_of(path)))


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in PACKAGE
        if p.parent.name == "actreg_ext" and p.name not in WITH_MATHS + WITH_NAMES_OF_MATHS
    ],
    ids=relative,
)
def test_the_package_has_no_maths_but_in_the_reference(path: Path) -> None:
    """No name in these files is one of torch's mathematical functions (the demo is not tested)."""
    names = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) not in ("self", "module")  # an option: self.dropout
    }
    assert not names & MATHS


def test_the_table_of_activations_is_only_a_table() -> None:
    """The file may name mathematical functions, so it must hold only imports and the dict."""
    _docstring, *statements = ast.parse((PACKAGE_ROOT / "torch_activations.py").read_text()).body
    imports = [s for s in statements if isinstance(s, ast.Import | ast.ImportFrom)]
    others = [s for s in statements if s not in imports]
    assert [ast.unparse(s.target) for s in others if isinstance(s, ast.AnnAssign)] == [
        "ACTIVATIONS"
    ]
    assert len(others) == 1


def module_name(path: Path) -> str:
    """For example "actreg_ext.demo.report", and "actreg_ext" for actreg_ext/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(module: str, source: str, is_package: bool, modules: set[str]) -> set[str]:
    """The modules of the package that a module imports, anywhere in its source.

    Imports inside functions and under `if TYPE_CHECKING:` count, because they only hide a circle.
    Two things do not count. Before it runs actreg_ext/nn.py, Python runs actreg_ext/__init__.py,
    which imports nn: by that rule every package would be a circle. And doctor.py calls importlib
    to find out whether the rest of the package can be imported at all.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = module.split(".")[: -node.level + is_package or None] if node.level else []
            origin = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:  # a module of that package, or a name in the package itself
                inner = f"{origin}.{alias.name}"
                found.add(inner if inner in modules else origin)
    return found & modules


def circle(sources: Mapping[str, str], packages: set[str]) -> list[str]:
    """A circle of imports as a list of modules that ends where it began; empty if there is none."""
    modules = set(sources)
    graph = {
        module: imports_of(module, source, module in packages, modules)
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


STUBS = sorted(PACKAGE_ROOT.glob("*.pyi"))  # of the compiled module _C, which has no .py
SOURCES = {module_name(path): path.read_text() for path in [*PACKAGE, *STUBS]}
PACKAGES = {module_name(path) for path in PACKAGE if path.name == "__init__.py"}


def test_the_package_has_no_circle_of_imports() -> None:
    assert circle(SOURCES, PACKAGES) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("errors", "from .arguments import DTYPES"),
        ("errors", "from . import arguments"),
        ("errors", "import actreg_ext.arguments"),
        ("errors", "from actreg_ext import arguments"),
        ("errors", "from actreg_ext.arguments import DTYPES as THE_DTYPES"),
        ("errors", "def late():\n    from .arguments import DTYPES"),
        ("errors", "if TYPE_CHECKING:\n    from .arguments import DTYPES"),
        ("arguments", "def late():\n    from .reference import ACTIVATIONS"),
        ("functional", "from . import collect_penalty"),  # of the package, which imports functional
        ("functional", "import actreg_ext"),
        ("functional", "from .nn import ActReg"),
        ("demo.timing", "from . import main"),
        ("demo.experiment", "from .report import console"),
        ("demo.experiment", "from ..demo import report"),
        ("nn", "from . import nn"),
    ],
)
def test_a_circle_of_imports_is_found(module: str, planted: str) -> None:
    module = f"actreg_ext.{module}"
    sources = SOURCES | {module: f"{SOURCES[module]}\n{planted}\n"}
    assert module in circle(sources, PACKAGES)


def test_the_doctor_needs_nothing() -> None:
    """The doctor runs even without torch or the extension, so its top must not import them."""
    tree = ast.parse((ROOT / "actreg_ext" / "doctor.py").read_text())
    imported = {
        name.name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import)
        for name in node.names
    } | {str(node.module).split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported and imported <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "path", [p for p in NATIVE + PACKAGE if p.name != "activations.h"], ids=relative
)
def test_files_are_short(path: Path) -> None:
    """At most 220 lines of code. Only the list of activations may be longer."""
    assert len(code_of(path)) <= 220
