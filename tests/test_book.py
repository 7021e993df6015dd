"""The book: complete, sound, and nothing of it from the network."""

import http.server
import io
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from typer.testing import CliRunner

from uss_utils import book, notebooks
from uss_utils.__main__ import app
from uss_utils.publishing import WIDGET

pytest.importorskip("furo", reason="the book needs Sphinx, MyST-NB and Furo")

# What pages carry along: elements whose address the browser asks for by itself.
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src"}


@dataclass
class Page(HTMLParser):
    """Addresses, anchors, links of the contents, headings and text of a page."""

    path: Path
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    contents: list[str] = field(default_factory=list)
    details: int = 0

    def __post_init__(self):
        super().__init__()
        self.text = self.path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if LOADED.get(tag) in values:
            self.loaded.append(values[LOADED[tag]])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            if "reference internal" in values.get("class", ""):
                self.contents.append(values["href"])
        self.details += tag == "details"

    @property
    def title(self) -> str:
        (found,) = re.findall(r"<h1>(.*?)<a ", self.text, re.DOTALL)
        return re.sub("<.*?>", "", found)


@pytest.fixture(scope="module")
def leaves(site):
    folder = site.start.parent
    return {path: Page(path) for path in sorted(folder.glob("**/*.html"))}


def page_of(site, notebook):
    return site.start.parent / "notebooks" / f"{notebook.stem}.html"


def prose_of(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


def tables_of(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    data = (out.get("data", {}) for cell in cells for out in cell.get("outputs", []))
    return [each["text/markdown"] for each in data if "text/markdown" in each]


class TestTheCourse:
    def test_sphinx_finds_nothing_wrong(self, site):
        assert site.warnings == []
        assert site.pages >= len(notebooks.find()) + 4

    def test_every_link_and_anchor_leads_somewhere(self, leaves):
        wrong = []
        for path, leaf in leaves.items():
            for link in [*leaf.links, *leaf.loaded]:
                parts = urlsplit(link)
                if parts.scheme or parts.netloc:
                    continue
                place = unquote(parts.path)
                target = (path.parent / place).resolve() if place else path
                if not target.is_file():
                    wrong.append(f"{path.name}: {link}")
                elif parts.fragment and target.suffix == ".html":
                    if unquote(parts.fragment) not in leaves[target].anchors:
                        wrong.append(f"{path.name}: {link}")
        assert wrong == []

    def test_pages_load_nothing_from_elsewhere(self, leaves):
        for path, leaf in leaves.items():
            assert leaf.loaded, path
            outside = [link for link in leaf.loaded if "//" in link]
            assert outside == [], path.name

    def test_pictures_show_something(self, site):
        pictures = list((site.start.parent / "_images").iterdir())
        assert len(pictures) > 50
        for path in pictures:
            with Image.open(path) as picture:
                low, high = picture.convert("L").getextrema()
            assert low < high, path.name

    def test_every_picture_of_the_notebooks_is_there(self, site, leaves):
        for notebook in notebooks.find():
            cells = nbformat.read(notebook, as_version=4).cells
            outputs = [o for cell in cells for o in cell.get("outputs", [])]
            kinds = [set(o.get("data", {})) for o in outputs]
            expected = sum(bool(k & {"image/png", "image/jpeg"}) for k in kinds)
            shown = leaves[page_of(site, notebook)].loaded
            assert sum("_images/" in link for link in shown) == expected

    def test_titles_and_order_are_the_notebooks(self, site, leaves):
        chapters = notebooks.find()
        for notebook in chapters:
            heading = prose_of(notebook)[0].splitlines()[0]
            title = leaves[page_of(site, notebook)].title
            assert title == heading.removeprefix("# ").replace("`", "")
        listed = [c for c in leaves[site.start].contents if c.startswith("notebooks/")]
        names = [f"notebooks/{n.stem}.html" for n in chapters]
        assert [name for name in dict.fromkeys(listed) if name in names] == names
        for name in ("data/README.html", "CONTRIBUTING.html", "package.html"):
            assert name in leaves[site.start].contents

    def test_formulas_are_drawn(self, site, leaves):
        drawn = 0
        for path, leaf in leaves.items():
            text = re.sub(r"<pre>.*?</pre>|<code.*?</code>", "", leaf.text, flags=re.S)
            assert "$$" not in text, path.name
            assert not re.search(r"\\(frac|sum|cdot|log|text)\b", text), path.name
            drawn += text.count("<math ")
        assert drawn > 200

    def test_solutions_are_collapsed(self, site, leaves):
        for notebook in notebooks.find():
            leaf = leaves[page_of(site, notebook)]
            texts = [*prose_of(notebook), *tables_of(notebook)]
            assert leaf.details == "".join(texts).count("<details")
            assert leaf.details >= 2 and "<details open" not in leaf.text
            # Code of a solution lies between the tags, not behind them.
            inside = re.findall(r"<details>.*?</details>", leaf.text, re.DOTALL)
            assert any('class="highlight"' in part for part in inside)

    def test_tables_in_outputs_are_tables(self, site, leaves):
        for notebook in notebooks.find():
            assert "| --- |" not in leaves[page_of(site, notebook)].text

    def test_search_knows_the_words(self, site):
        text = (site.start.parent / "searchindex.js").read_text(encoding="utf-8")
        index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
        # Words of headings are kept apart; one page alone is no list.
        found = [index[kind].get("hungarian", []) for kind in ("terms", "titleterms")]
        pages = sum(([one] if isinstance(one, int) else one for one in found), [])
        names = {index["docnames"][page] for page in pages}
        assert "notebooks/03_clustering_and_evaluation" in names

    def test_nothing_tells_where_it_was_built(self, site, leaves):
        for leaf in leaves.values():
            assert str(site.start.parent.parent) not in leaf.text


LABELLED = "![badge](https://example.org/badge.svg)"
README = f"""# Small

{LABELLED} [![both](https://example.org/b.svg)](https://example.org) 

[one](notebooks/00_one.ipynb), [licence](LICENSE), [code](src/), [data](data/README.md),
[notes](src/NOTES.md#part)

`[kept](nowhere.md)`
"""
PIXELS = Image.new("L", (2, 1), 255)
PIXELS.putpixel((0, 0), 0)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A repository of two notebooks; returns a function that builds its book."""
    root = tmp_path / "root"
    for name in ("notebooks", "data", "src"):
        (root / name).mkdir(parents=True)
    (root / "README.md").write_text(README)
    (root / "LICENSE").write_text("free")
    (root / "src" / "NOTES.md").write_text("# Notes")
    (root / "data" / "README.md").write_text("# Data\n\n[start](../README.md)\n")
    for name, text in (("00_one", "[two](01_two.ipynb)"), ("01_two", "$\\arg x$")):
        cells = [new_markdown_cell(f"# {name}\n\n{text}")]
        nbformat.write(new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(book, "repo_root", lambda: root)
    monkeypatch.setattr(notebooks, "notebooks_dir", lambda: root / "notebooks")
    monkeypatch.setenv("USS_RUNS", str(tmp_path / "runs"))
    return root


class TestLinks:
    def test_each_kind_goes_somewhere_sensible(self, small):
        before = {p: p.read_bytes() for p in small.glob("**/*") if p.is_file()}
        built = book.write_book()
        assert built.warnings == []
        start = Page(built.start)
        assert start.links.count("https://example.org") == 1
        assert "badge" in start.text and "badge.svg" not in start.text
        assert ">code<" not in start.text and "code, " in start.text
        assert "[kept](nowhere.md)" in start.text
        for name, text in (("LICENSE", "free"), ("NOTES.md", "# Notes")):
            (link,) = (link for link in start.links if name in link)
            assert (built.start.parent / link).read_text() == text
        data = Page(built.start.parent / "data" / "README.html")
        assert "../index.html" in data.links
        assert {p: p.read_bytes() for p in small.glob("**/*") if p.is_file()} == before

    def test_a_missing_page_is_named(self, small):
        with (small / "data" / "README.md").open("a") as file:
            file.write("\n[gone](gone.md)\n")
        (warning,) = book.write_book().warnings
        assert warning.startswith("data/README.md:5: ")
        assert "gone.md" in warning

    def test_warnings_are_a_failure_of_the_command(self, small):
        (small / "data" / "README.md").write_text("# Data\n\n[gone](gone.md)\n")
        result = CliRunner().invoke(app, ["book"])
        assert result.exit_code == 1
        assert "gone.md" in result.output and "index.html" in result.output

    def test_addresses_outside_are_asked(self, small):
        class Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/here" else 404)
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            (small / "README.md").write_text(f"# A\n\n<{address}/here>\n")
            assert book.broken_links() == []
            (small / "README.md").write_text(f"# A\n\n[text]({address}/gone)\n")
            (line,) = book.broken_links()
            server.shutdown()
        assert line.startswith(f"index.md: {address}/gone (404")


class TestOut:
    def test_a_book_is_replaced_as_a_whole(self, small, tmp_path):
        first = book.write_book()
        assert first.start == tmp_path / "runs" / "book" / "index.html"
        (first.start.parent / "stray.html").write_text("old")
        (small / "notebooks" / "01_two.ipynb").unlink()
        (small / "notebooks" / "00_one.ipynb").unlink()
        cells = [new_markdown_cell("# Three")]
        nbformat.write(new_notebook(cells=cells), small / "notebooks" / "03_c.ipynb")
        (small / "README.md").write_text("# Small\n")
        assert book.write_book().warnings == []
        kept = {path.name for path in first.start.parent.glob("**/*.html")}
        assert "03_c.html" in kept and not kept & {"stray.html", "00_one.html"}
        assert [p.name for p in (tmp_path / "runs").iterdir()] == ["book"]

    def test_a_folder_with_other_things_is_left_alone(self, small, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letter").write_text("dear")
        with pytest.raises(ValueError, match="is no book: name a new or empty"):
            book.write_book(tmp_path / "mine")
        with pytest.raises(ValueError, match="is no book"):
            book.write_book(tmp_path / "mine" / "letter")
        assert (tmp_path / "mine" / "letter").read_text() == "dear"

    def test_what_is_missing_is_named(self, small, monkeypatch):
        monkeypatch.setitem(sys.modules, "furo", None)
        with pytest.raises(
            ImportError, match=r"needs furo: pip install -e '\.\[book\]'"
        ):
            book.write_book()


class TestExecutedNotebooks:
    def test_they_take_the_place_of_the_courses(self, small, tmp_path):
        buffer = io.BytesIO()
        PIXELS.save(buffer, "png")
        view = {WIDGET: {"model_id": "1"}, "text/plain": "a widget"}
        record = {"application/json": {"miou": 1.0}, "text/plain": "miou 1.0"}
        outputs = [new_output("display_data", data) for data in (view, record)]
        outputs.append(new_output("stream", text="10 %\r100 %\n"))
        cells = [new_markdown_cell("# Ran"), new_code_cell("1", outputs=outputs)]
        notebook = new_notebook(cells=cells)
        notebook.metadata["widgets"] = {WIDGET.replace("view", "state"): {"state": {}}}
        (tmp_path / "ran").mkdir()
        nbformat.write(notebook, tmp_path / "ran" / "00_one.ipynb")
        built = book.write_book(executed=tmp_path / "ran")
        assert built.warnings == []
        text = (built.start.parent / "notebooks" / "00_one.html").read_text()
        assert "miou 1.0" in text and "100 %" in text
        assert "widget" not in text and "10 %\n" not in text
        assert "<math" in (built.start.parent / "notebooks" / "01_two.html").read_text()

    def test_a_folder_without_any_is_refused(self, small, tmp_path):
        with pytest.raises(
            FileNotFoundError, match="no notebooks of the course in .*make course"
        ):
            book.write_book(executed=tmp_path)
