"""What a run of the course leaves to look at: leaderboard and one HTML page."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

from uss_utils.paths import atomic_file
from uss_utils.records import leaderboard, read_records, summarise

# In order of beauty; browsers bring the last where no other is installed.
MATH_CSS = """
math { font-family: "STIX Two Math", "Latin Modern Math", "Cambria Math",
       "Noto Sans Math", "DejaVu Math TeX Gyre", math; }
"""
CSS = (
    MATH_CSS
    + """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222;
       background: #fff; font: 16px/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.2; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 90%; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
pre { overflow-x: auto; margin: 0; font-size: 13px; line-height: 1.35; }
img { max-width: 100%; }
summary { cursor: pointer; color: #4c72b0; }
section { border-top: 2px solid #ddd; margin-top: 2rem; padding-top: 1rem; }
.jp-InputArea, .input_area, .highlight > pre { background: #f6f6f6; }
.jp-InputPrompt, .jp-OutputPrompt, .prompt, .anchor-link { display: none; }
.jp-Cell, .cell { margin: .8rem 0; }
.jp-OutputArea-output, .output_subarea { padding: .2rem .6rem; overflow-x: auto; }
.highlight > pre { padding: .5rem .7rem; }
.failed { color: #c44e52; font-weight: bold; }
"""
)
# Code fences and code spans may hold dollars: they are matched first and kept.
_MATH = re.compile(
    r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$",
    re.DOTALL,
)
# Commands that the converter passes through, some of them only after \\Big.
_PASSED = {
    "arg": "arg",
    "|": "‖",
    "lVert": "‖",
    "rVert": "‖",
    "lvert": "|",
    "rvert": "|",
}


def write_leaderboard(folder: Path) -> str:
    """Make ``leaderboard.md`` and ``.json`` of the records in ``folder/records``.

    Returns:
        The table as markdown; a sentence where there are no records yet.
    """
    records = read_records(folder / "records") if (folder / "records").is_dir() else []
    board = leaderboard(records)
    with atomic_file(folder / "leaderboard.md") as temporary:
        temporary.write_text(board + "\n", encoding="utf-8")
    with atomic_file(folder / "leaderboard.json") as temporary:
        temporary.write_text(json.dumps(summarise(records), indent=1) + "\n")
    return board


def write_page(results: Sequence[Any], folder: Path, preset: str, board: str) -> Path:
    """One HTML page that needs no other file and no network.

    Args:
        results: :class:`uss_utils.course.Result` of every notebook, in order.
        folder: where ``index.html`` goes.
        preset: named in the heading.
        board: the leaderboard as markdown.
    """
    rows = [
        [
            f'<a href="#{r.notebook}">{r.notebook}</a>',
            "done" if r.ok else '<span class="failed">failed</span>',
            f"{r.seconds:.1f}",
            f"{r.peak_mb:.0f}",
            _numbers(r.record),
        ]
        for r in results
    ]
    header = ["notebook", "state", "seconds", "peak MB", "recorded"]
    sections = [_section(result) for result in results]
    text = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">',
            f"<title>Course, preset {html.escape(preset)}</title>",
            f"<style>{CSS}{_highlighting()}</style></head>\n<body>",
            f"<h1>Course, preset {html.escape(preset)}</h1>",
            _table(header, rows),
            f"<h2>Leaderboard</h2>\n{markdown2html(board)}",
            *sections,
            "</body>\n</html>\n",
        ]
    )
    path = folder / "index.html"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    lines = "\n".join(f"<tr>{row}</tr>" for row in body)
    return f"<table>\n<tr>{head}</tr>\n{lines}\n</table>"


def _numbers(record: dict[str, Any] | None) -> str:
    if not record:
        return ""
    pairs = (
        f"{name} {value:.4g}"
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    return html.escape(", ".join(pairs))


def _section(result: Any) -> str:
    error = (
        f"<pre class='failed'>{html.escape(result.error)}</pre>" if result.error else ""
    )
    body = notebook_html(result.output) if result.output.is_file() else ""
    # Jumping to an anchor inside closed details opens them.
    return (
        f"<section><details><summary>{result.notebook}</summary>"
        f'<span id="{result.notebook}"></span>{error}\n{body}</details></section>'
    )


def notebook_html(path: Path) -> str:
    """An executed notebook as HTML fragment, its figures and formulas inside.

    Pictures that its text links to are not taken along.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas(cell.source)
    # Embedding linked pictures too would close every <details> before its content:
    # the solutions of the exercises would lie open.
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    # Links between notebooks become jumps within the page.
    return re.sub(r'href="(?:\./)?([\w-]+)\.ipynb"', r'href="#\1"', body)


def formulas(markdown: str) -> str:
    """Markdown with its TeX formulas as MathML, so that the page needs no script."""
    return _MATH.sub(_formula, markdown)


def _formula(match: re.Match) -> str:
    if match["code"]:
        return match["code"]
    drawn = mathml(match["block"] or match["inline"], block=bool(match["block"]))
    return f"\n\n<p>{drawn}</p>\n\n" if match["block"] else drawn


def mathml(tex: str, block: bool = False) -> str:
    """A TeX formula as MathML, which every browser draws itself.

    What the converter does not know stays as it is written, set as code.

    Args:
        tex: the formula without dollars.
        block: on a line of its own.
    """
    tex = " ".join(tex.split())
    try:
        drawn = convert(tex, display="block" if block else "inline")
    except Exception:  # its errors have nothing else in common
        return f"<code>{html.escape(tex)}</code>"
    drawn = re.sub(r"\\(\w+|\|)", lambda m: _PASSED.get(m[1], m[0]), drawn)
    return f"<code>{html.escape(tex)}</code>" if "\\" in drawn else drawn


def _highlighting() -> str:
    from pygments.formatters import HtmlFormatter

    return HtmlFormatter().get_style_defs(".highlight")
