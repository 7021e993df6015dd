"""Files and make targets that the documentation names exist; spelling."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from uss_utils.paths import repo_root

ROOT = repo_root()
PAGES = sorted(
    path
    for pattern in ("*.md", "data/*.md", "notebooks/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TARGET = re.compile(r"\bmake ([a-z]+)\b")


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def code_of(text: str) -> str:
    """What stands in code fences and code spans."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda p: p.name)
def test_named_make_targets_exist(path):
    makefile = (ROOT / "Makefile").read_text()
    for target in TARGET.findall(code_of(text_of(path))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda p: p.name)
def test_named_source_files_exist(path):
    named = re.findall(
        r"`((?:uss_utils|tests|notebooks)/[\w/]+\.(?:py|ipynb|json))`", text_of(path)
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda p: p.name)
def test_spelling(path):
    # Only the text: pictures inside notebooks look like misspelt words.
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "--count", "-"],
        input=text_of(path),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
