"""The course as a book: every notebook and document as one site that needs no network.

Sphinx makes the pages of the notebooks as they were executed; nothing is run again and
nothing is written beside them. What is changed on the way is changed in a copy: links
find their pages or files, pictures from the network give way to their description, and
formulas become MathML, which browsers draw themselves.
"""

import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from pygments.lexers import get_lexer_by_name

import uss_utils
from uss_utils import notebooks, pages
from uss_utils.book_style import CSS, THEME
from uss_utils.paths import repo_root, runs_dir, temporary_folder
from uss_utils.publishing import KERNEL, clean_outputs, plain

TITLE = "Unsupervised segmentation"
# Documents beside the notebooks, in the order of the table of contents.
DOCUMENTS = ("data/README.md", "TROUBLESHOOTING.md", "CONTRIBUTING.md")
SETTINGS = {
    "project": TITLE,
    "language": "en",
    "root_doc": "index",
    # Other documents that a page links to are offered as they are.
    "include_patterns": ["index.md", "package.md", *DOCUMENTS, "notebooks/*.ipynb"],
    "extensions": ["myst_nb", "uss_utils.book"],
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "myst",  # tables in outputs
    "myst_enable_extensions": ["dollarmath", "html_image"],
    "myst_heading_anchors": 4,
    "html_theme": "furo",
    "html_theme_options": THEME,
    "html_title": TITLE,
    "html_math_renderer": "mathml",
    "html_static_path": ["_static"],
    "html_css_files": ["book.css"],
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_copyright": False,
    # Summaries are read from other pages, which browsers refuse without a server.
    "html_show_search_summary": False,
    "pygments_style": "friendly",
    # Publishers answer programs with "forbidden" though the page is there.
    "linkcheck_allow_unauthorized": True,
    "linkcheck_anchors": False,
    "linkcheck_report_timeouts_as_broken": True,
    "linkcheck_timeout": 20,
}
# A code fence or span, which is kept; else an image or a link.
_LINK = re.compile(
    r"(?P<code>```.*?```|(?<!\[)`[^`\n]+`)"
    r"|(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Book:
    """What was built.

    Attributes:
        start: the page to open.
        pages: number of pages made of notebooks, documents and modules.
        warnings: what Sphinx found wrong, one per entry; empty for a sound book.
    """

    start: Path
    pages: int
    warnings: list[str]


def write_book(
    out: str | Path | None = None, executed: str | Path | None = None
) -> Book:
    """Build the site.

    Args:
        out: folder of the site; ``book`` in the folder of runs when None. A book that
            lies there already is replaced, when the new one is complete.
        executed: folder of notebooks to show instead of the course's own of the same
            name, such as ``runs/scenes/notebooks``.

    Raises:
        ValueError: ``out`` holds something that is no book.
        FileNotFoundError: ``executed`` holds no notebook of the course.
        ImportError: Sphinx, MyST-NB or Furo is not installed.
    """
    out = Path(out) if out is not None else runs_dir() / "book"
    if out.exists() and not _replaceable(out):
        raise ValueError(
            f"{out} exists and is no book: name a new or empty folder with --out"
        )
    with temporary_folder(out) as work:
        _stage(work / "source", _chosen(executed))
        found, warnings = _sphinx(work, "html")
        if out.exists():
            out.replace(work / "old")
        (work / "html").replace(out)
    return Book(out / "index.html", found, warnings)


def broken_links(executed: str | Path | None = None) -> list[str]:
    """Ask for every address outside the book; needs the network, some minutes.

    Args:
        executed: as in :func:`write_book`.

    Returns:
        One line per address that does not answer: page, address, reason.

    Raises:
        FileNotFoundError: ``executed`` holds no notebook of the course.
        ImportError: Sphinx, MyST-NB or Furo is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _stage(work / "source", _chosen(executed))
        _sphinx(work, "linkcheck")
        lines = (work / "linkcheck" / "output.json").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    return sorted(
        f"{answer['filename']}: {answer['uri']} ({answer['info']})"
        for answer in answers
        if answer["status"] in ("broken", "timeout")
    )


def _replaceable(out: Path) -> bool:
    return out.is_dir() and (
        (out / "searchindex.js").is_file() or not any(out.iterdir())
    )


def _chosen(executed: str | Path | None) -> list[Path]:
    course = notebooks.find()
    if executed is None:
        return course
    ran = {path.name: path for path in Path(executed).glob("*.ipynb")}
    if not ran.keys() & {path.name for path in course}:
        raise FileNotFoundError(
            f"no notebooks of the course in {executed}: `make course` leaves them in "
            "runs/<preset>/notebooks"
        )
    return [ran.get(path.name, path) for path in course]


def _sphinx(work: Path, builder: str) -> tuple[int, list[str]]:
    """Build what lies in ``work/source`` into a folder named like the builder."""
    try:
        import furo  # noqa: F401
        import myst_nb  # noqa: F401
        from sphinx.application import Sphinx
        from sphinx.util.docutils import docutils_namespace, patch_docutils
    except ImportError as error:
        raise ImportError(
            f"the book needs {error.name}: pip install -e '.[book]'"
        ) from error
    heard = io.StringIO()
    # A second book in the same process begins with docutils as the first one did.
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            srcdir=work / "source",
            confdir=None,
            outdir=work / builder,
            doctreedir=work / "doctrees",
            buildername=builder,
            confoverrides=SETTINGS,
            status=None,
            warning=heard,
        )
        app.build()
    # Where the copies lay says nothing to anyone: name files as in the repository.
    text = plain(heard.getvalue()).replace(f"{work / 'source'}/", "")
    return len(app.env.found_docs), [line for line in text.splitlines() if line.strip()]


def setup(app: Any) -> dict[str, Any]:
    """Teach Sphinx formulas as MathML and Python with ``!`` and ``%``.

    Sphinx calls this for every extension it is told to use.
    """
    app.add_lexer("python", type(get_lexer_by_name("ipython3")))
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline_math(writer: Any, node: Any) -> None:
    from docutils.nodes import SkipNode

    writer.body.append(pages.mathml(node.astext()))
    raise SkipNode


def _block_math(writer: Any, node: Any) -> None:
    from docutils.nodes import SkipNode

    drawn = pages.mathml(node.astext(), block=True)
    writer.body.append(f'<div class="formula">{drawn}</div>')
    raise SkipNode


def _stage(source: Path, chosen: list[Path]) -> None:
    """Lay out what Sphinx reads: the repository's own tree, as far as it is shown."""
    root = repo_root()
    documents = [name for name in DOCUMENTS if (root / name).is_file()]
    chapters = [f"notebooks/{path.name}" for path in chosen]
    shown = {*documents, *chapters}
    for name, path in zip(chapters, chosen, strict=True):
        _stage_notebook(source, name, path, shown)
    for name in documents:
        text = (root / name).read_text(encoding="utf-8")
        _write(source / name, _relink(text, Path(name), shown, source))
    start = (root / "README.md").read_text(encoding="utf-8")
    contents = _contents("Notebooks", chapters)
    contents += _contents("Beside them", [*documents, "package.md"])
    _write(source / "index.md", _relink(start, Path("README.md"), shown, source))
    with (source / "index.md").open("a", encoding="utf-8") as file:
        file.write(contents)
    plan = f"# The package\n\n```text\n{uss_utils.__doc__}```\n"
    _write(source / "package.md", plan)
    _write(source / "_static" / "book.css", CSS)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _contents(caption: str, names: Iterable[str]) -> str:
    lines = "\n".join(names)
    return f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def _stage_notebook(source: Path, name: str, path: Path, shown: set[str]) -> None:
    notebook = nbformat.read(path, as_version=4)
    # Other programs' metadata names kernels, and widgets that nobody answers here.
    language = {"name": "python"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": language}
    )
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _relink(cell.source, Path(name), shown, source)
        elif cell.cell_type == "code":
            cell.outputs = _shown(cell.outputs)
    _write(source / name, nbformat.writes(notebook))


def _relink(text: str, page: Path, shown: set[str], source: Path) -> str:
    """Markdown whose links work in the book.

    Files that are no pages are copied to ``source`` and offered for download; a folder
    or a picture from the network leaves only its name.
    """

    def replace(match: re.Match) -> str:
        if match["code"] or not match["target"]:
            return match[0]
        if re.match(r"[a-z]+:", match["target"]):
            return match["text"] if match["image"] else match[0]
        root = repo_root()
        place = (root / page.parent / match["target"]).resolve()
        if not place.is_relative_to(root) or place.is_dir():
            return match["text"]
        name = place.relative_to(root).as_posix()
        if name == "README.md":
            link = "/".join([*[".."] * len(page.parent.parts), "index.md"])
            return f"[{match['text']}]({link}{match['anchor'] or ''})"
        if place.is_file() and name not in shown:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, source / name)
            if not match["image"]:
                return f"[{match['text']}](path:{match['target']})"
        return match[0]

    # Twice: a picture may stand inside a link.
    return _LINK.sub(replace, _LINK.sub(replace, text))


def _shown(outputs: list[Any]) -> list[Any]:
    """Outputs as readers see them: records lose the form meant for programs."""
    kept = clean_outputs(outputs)
    for output in kept:
        output.get("data", {}).pop("application/json", None)
    return kept
