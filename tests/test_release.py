"""What a release is made of: the notes from CHANGELOG.md, the version, the workflows' settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import actreg_ext

ROOT = Path(__file__).parents[1]
NOTES = ROOT / ".github" / "release_notes.py"
CHANGES = """# Changelog

## [Unreleased]

## [1.10.0] - 2030-02-03

### Added

- Something.

## [1.1.0] - 2030-01-02

- The one before.
"""


def notes(tmp_path: Path, version: str, tag: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "actreg_ext").mkdir()
    (tmp_path / "actreg_ext" / "__init__.py").write_text(f'__version__ = "{version}"  # why\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGES)
    (tmp_path / ".github").mkdir()
    script = tmp_path / ".github" / NOTES.name
    script.write_text(NOTES.read_text())
    return subprocess.run([sys.executable, script, tag], capture_output=True, text=True)


def test_the_notes_of_a_release(tmp_path: Path) -> None:
    done = notes(tmp_path, "1.10.0", "v1.10.0")
    assert (done.returncode, done.stdout) == (0, "### Added\n\n- Something.\n")


@pytest.mark.parametrize(
    ("version", "tag", "says"),
    [
        ("1.10.0", "v1.1.0", "the tag is v1.1.0, and actreg_ext/__init__.py has version 1.10.0"),
        ("1.1", "v1.1", "nothing under the heading ## [1.1]"),
    ],
)
def test_a_release_without_notes(tmp_path: Path, version: str, tag: str, says: str) -> None:
    done = notes(tmp_path, version, tag)
    assert done.returncode == 1 and says in done.stderr and not done.stdout


def test_the_version_has_one_place() -> None:
    """CITATION.cff and pyproject.toml name none, so that none can be forgotten."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", actreg_ext.__version__)
    assert not re.search("^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r"^dynamic = .*version", project, re.MULTILINE)


def test_the_workflows_test_what_the_project_supports() -> None:
    """The oldest PyTorch of setup.py and every Python of cibuildwheel stand in the matrix."""
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    pythons = [f"3.{minor}" for minor in re.findall(r"cp3(\d+)-", project)]
    (oldest,) = re.findall(r'requires-python = ">=(.+?)"', project)
    assert len(pythons) == 5 and pythons[0] == oldest
    (matrix,) = re.findall(r"python: \[(.+)\]", workflow)
    assert re.findall(r'"(.+?)"', matrix) == pythons
    (torch,) = re.findall(r'ANY_TORCH = "torch>=(.+?)"', (ROOT / "setup.py").read_text())
    assert f'python: "{oldest}", torch: "{torch}.0"' in workflow
