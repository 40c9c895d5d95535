"""The notes of a release: python .github/release_notes.py v1.2.3 prints its part of CHANGELOG.md.

Stops if the tag is not the package's version, or if CHANGELOG.md has nothing about that version.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def notes(tag: str, root: Path = ROOT) -> str:
    """Return what stands in CHANGELOG.md under the heading of a version, such as ## [1.2.3]."""
    source = (root / "actreg_ext" / "__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.+?)"', source, re.MULTILINE)
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, and actreg_ext/__init__.py has version {version}")
    for part in re.split(r"^## ", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE):
        heading, _, text = part.partition("\n")
        if heading.startswith(f"[{version}]") and text.strip():
            return text.strip()
    raise SystemExit(f"CHANGELOG.md has nothing under the heading ## [{version}]")


if __name__ == "__main__":
    print(notes(*sys.argv[1:]))
