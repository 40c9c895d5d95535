"""The layers: who may include what, where formulas may stand, and how long a file may be."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
PACKAGE = sorted((ROOT / "actreg_ext").rglob("*.py"))
STANDARD = r"[a-z_0-9]+"  # a header of C++ itself has neither a slash nor a dot

# layer -> what its files may include in quotes and in angle brackets
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
# Names of torch that only a formula needs.
MATHS = set(
    "exp expm1 log log1p sigmoid tanh erf erfc sqrt rsqrt pow abs square sign sgn where clamp clip "
    "maximum minimum relu dropout bernoulli rand randn randint functional special".split()
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_of(path: Path) -> list[str]:
    """The lines that are code: no empty ones, no comments, no docstrings."""
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
    """So that no test here passes for want of files."""
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
    [p for p in PACKAGE if p.name != "reference.py" and p.parent.name == "actreg_ext"],
    ids=relative,
)
def test_the_package_has_no_maths_but_in_the_reference(path: Path) -> None:
    """Nothing named as torch's functions and methods of mathematics are; the demo is a user."""
    names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert not names & MATHS


def test_the_doctor_needs_nothing() -> None:
    """It has to run where torch or the extension is missing, so it imports them later."""
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
    """Lines of code; the list of the activations may be as long as it has to."""
    assert len(code_of(path)) <= 220
