"""Links, paths and commands that the documentation names exist."""

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
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)")
TARGET = re.compile(r"\bmake ([a-z]+)\b")


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def code_of(text: str) -> str:
    """What stands in code fences and code spans."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def local_links(text: str) -> list[str]:
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = LINK.findall(prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda p: p.name)
def test_local_links_lead_somewhere(path):
    text = text_of(path)
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    for link in local_links(text):
        file, _, anchor = link.partition("#")
        if file:
            assert (path.parent / file).exists(), link
        else:
            assert anchor in anchors, link


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


def test_every_command_of_the_readme_is_known():
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README.md yet")
    named = set(re.findall(r"python -m uss_utils ([a-z]+)", readme.read_text()))
    help_text = subprocess.run(
        [sys.executable, "-m", "uss_utils", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    unknown = {name for name in named if not re.search(rf"\b{name}\b", help_text)}
    assert unknown == set()


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
