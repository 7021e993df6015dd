"""What documents and help texts say holds: links, commands, messages, tables."""

import ast
import re
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

import nbformat
import pytest
import typer

from uss_utils import __version__, boards, methods, notebooks, published, publishing
from uss_utils.__main__ import app
from uss_utils.course import OFFLINE_PRESETS
from uss_utils.datasets import DATASETS
from uss_utils.paths import repo_root

ROOT = repo_root()
PAGES = sorted(p for q in ("*.md", "data/*.md") for p in ROOT.glob(q))
BOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
COMMAND = re.compile(r"python -m uss_utils((?: +[^\n`]+)?)")
GROUP = typer.main.get_command(app)


def by_name(path):
    return path.name


def prose(path):
    """Text of a page; of a notebook its markdown."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def outside_fences(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


# ---------------------------------------------------------------------------- links


def anchors(path):
    """Of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", outside_fences(prose(path)), re.MULTILINE):
        bare = re.sub(r"[^\w\- ]", "", heading.lower()).strip()
        found.add(bare.replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", [*PAGES, *BOOKS], ids=by_name)
def test_links_and_their_anchors_lead_somewhere(path):
    text = outside_fences(prose(path))
    links = re.findall(r"\]\(([^)\s]+)", text)
    for link in links + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor and target.suffix in (".md", ".ipynb"):
            assert anchor in anchors(target), link


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_no_folder_of_a_machine(path):
    cell = nbformat.v4.new_code_cell(path.read_text(encoding="utf-8"))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert publishing.absolute_paths(notebook) == []


# ------------------------------------------------------------------------- commands


def leaves(group=GROUP, before=()):
    """Every command with its words, as ("data", "check")."""
    found = {}
    for name, command in group.commands.items():
        words = (*before, name)
        if hasattr(command, "commands"):
            found |= leaves(command, words)
        else:
            found[words] = command
    return found


COMMANDS = leaves()


def lines_in(text):
    """Command lines of the package in a text, without their comments."""
    return [
        shlex.split(rest, comments=True)
        for rest in COMMAND.findall(text.replace("\\\n", " "))
    ]


def split_command(words):
    """The command's own words, and its arguments."""
    for length in (2, 1):
        if tuple(words[:length]) in COMMANDS:
            return tuple(words[:length]), words[length:]
    raise AssertionError(f"no such command: {' '.join(words)}")


def parsed(words):
    """Name and parameters of a command line; fails where it does not parse."""
    name, arguments = split_command(words)
    try:
        context = COMMANDS[name].make_context(" ".join(name), list(arguments))
    except Exception as error:
        raise AssertionError(f"{' '.join(words)}: {error}") from error
    return " ".join(name), context.params


def check_names(name, given):
    """Methods, presets, settings, data sets and notebooks of an example exist."""
    method = given.get("method")
    settings = notebooks.parse_parameters(given.get("setting") or [])
    preset = given.get("preset")
    if method and method != "METHOD":
        kind = methods.load(method).Config
        config = kind.preset(preset) if preset else kind()
        assert settings.keys() <= {*vars(config)}, settings
    elif preset and preset not in OFFLINE_PRESETS:
        assert any(preset in methods.load(m).PRESETS for m in methods.METHODS), preset
    if name.startswith("data ") and "name" in given and given["name"] != "NAME":
        assert given["name"] in DATASETS
    for dataset in given.get("dataset") or []:
        assert dataset in DATASETS
    if name == "course":
        paths = notebooks.find(given["notebooks"] or None)
        notebooks.injected(paths, notebooks.parse_parameters(given["parameter"] or []))
    if name == "notebooks":
        notebooks.find(given["names"] or None)


@pytest.mark.parametrize("path", [*PAGES, *BOOKS], ids=by_name)
def test_commands_in_documents_parse(path):
    for words in lines_in(prose(path)):
        if not words or words == ["COMMAND"] or "--help" in words:
            continue
        if tuple(words) in COMMANDS:  # named without its arguments
            continue
        check_names(*parsed(words))


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_settings_in_documents_are_some_method_s(path):
    known = set()
    for name in methods.METHODS:
        known |= {*vars(methods.load(name).Config())}
    named = re.findall(r"(?:-s|--set) (\w+)=", prose(path))
    assert set(named) - {"FIELD"} <= known


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_teaches(words):
    """What it does, what it writes, examples that parse, what comes next."""
    command = COMMANDS[words]
    first, _, rest = command.help.partition("\n")
    assert first.endswith(".") and rest.strip(), "says no more than its name"
    text = f"{command.help}\n{command.epilog or ''}"
    examples = lines_in(text)
    assert any(split_command(line)[0] == words for line in examples), "no example"
    for line in examples:
        check_names(*parsed(line))
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} is not explained"


def test_examples_stand_unbroken_in_the_help():
    done = subprocess.run(
        [sys.executable, "-m", "uss_utils", "train", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "    python -m uss_utils train stego --seeds 3 -s n_train=100" in done.stdout


def test_the_list_of_commands_is_not_cut_off():
    for group in (GROUP, GROUP.commands["data"]):
        with group.make_context("uss_utils", [], resilient_parsing=True) as context:
            listed = group.get_help(context).partition("Commands:")[2]
        assert listed and "..." not in listed


def test_options_that_mean_the_same_are_called_the_same():
    flags = {}
    for words, command in COMMANDS.items():
        for parameter in command.params:
            if not parameter.opts[0].startswith("-"):
                continue
            name = parameter.name
            known = flags.setdefault(name, sorted(parameter.opts))
            assert sorted(parameter.opts) == known, (words, name)


def test_the_readers_of_commands_find_them():
    text = "a `python -m uss_utils data check camvid` b\n```\npython -m uss_utils x # y"
    assert lines_in(text) == [["data", "check", "camvid"], ["x"]]
    with pytest.raises(AssertionError, match="no such command: trains"):
        parsed(["trains", "stego"])
    with pytest.raises(AssertionError, match="No such option"):
        parsed(["train", "stego", "--sead", "3"])
    with pytest.raises(AssertionError):
        check_names(*parsed(["data", "check", "camvidd"]))


# --------------------------------------------------------------------------- README


def rows(text, column=0):
    """Cells of a column of every markdown table, headers and rules left out."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for line in table.splitlines()[2:]:
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.append(cells[column].strip())
    return found


def course_rows():
    _, inside, _ = publishing.between(ROOT / "README.md", publishing.COURSE)
    return inside


def test_the_course_table_lists_exactly_the_notebooks():
    listed = re.findall(r"\(notebooks/(\w+)\.ipynb\)", course_rows())
    assert listed == [path.stem for path in BOOKS]


def test_minutes_are_those_of_a_run():
    """Typed figures would drift away from what the committed notebooks recorded."""
    for name, said in zip(rows(course_rows()), rows(course_rows(), 2), strict=True):
        path = ROOT / re.search(r"notebooks/\w+\.ipynb", name)[0]
        recorded = notebooks.read_record(path).get("seconds")
        if recorded is not None:  # a kernel's start and end are not in it
            assert recorded / 60 - 0.5 <= float(said) <= recorded / 60 * 1.3 + 0.7, name


def test_reported_scores_are_the_package_s():
    _, inside, _ = publishing.between(ROOT / "README.md", publishing.PUBLISHED)
    assert inside.strip() == published.table().strip()


def test_scores_were_made_by_the_package():
    _, inside, _ = publishing.between(ROOT / "README.md", publishing.SCORES)
    headers = re.findall(r"^\| method .*$", inside, re.MULTILINE)
    known = {head.format(split="val") for head in boards.COLUMNS}
    known |= {"method", *boards.FACTS, "backbone", "seeds"}
    for header in headers:
        cells = [cell.strip() for cell in header.strip("|").split("|")]
        assert set(cells) <= known, "run `make notebooks`"
    assert headers


def test_every_preset_named_in_the_readme_is_one():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"\| method \| presets beside .*?\n\n", text, re.DOTALL)[0]
    for line in table.strip().splitlines()[2:]:
        method, words = (cell.strip() for cell in line.strip("|").split("|"))
        presets = methods.load(method).PRESETS
        known = " ".join(presets)
        for name in re.findall(r"`([\w-]+)`", words):
            assert name in presets or name in known, (method, name)


# ----------------------------------------------------------------- TROUBLESHOOTING


def messages():
    """Strings of the package as they are shown, "\0" where something is put in."""
    found = []
    for path in (ROOT / "uss_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "\0"
                    for part in node.values
                ]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def occurs(symptom, known):
    # "…" stands for whatever was put in, and for what is not worth repeating.
    chunks = [re.escape(chunk.strip()) for chunk in symptom.split("…") if chunk.strip()]
    pattern = re.compile(".*".join(chunks), re.DOTALL)
    return any(pattern.search(text) for text in known)


def test_messages_in_the_troubleshooting_page_exist():
    text = (ROOT / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
    known = messages()
    tables = re.findall(r"\| message \|.*?\n\n", text, re.DOTALL)
    assert len(tables) >= 6
    symptoms = [
        span
        for table in tables
        for row in rows(table)
        for span in re.findall("`(.+?)`", row)
    ]
    assert [s for s in symptoms if not occurs(s, known)] == []


def test_what_make_says_stands_in_the_troubleshooting_page():
    text = (ROOT / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for message in (
        "Python 3.10 or newer is needed",
        "Could not make .venv",
        "pydensecrf2 could not be installed",
    ):
        assert message in makefile and f"`{message}" in text


# ------------------------------------------------------------------- other documents


def test_citation_file_is_valid():
    """The fields that the Citation File Format 1.2.0 asks for, in their types."""
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0"
    assert content["type"] in ("software", "dataset")
    assert isinstance(content["message"], str) and isinstance(content["title"], str)
    known = {"cff-version", "message", "type", "title", "abstract", "authors"}
    known |= {"version", "license", "keywords", "date-released", "repository-code"}
    assert content.keys() <= known
    for author in content["authors"]:
        assert author.keys() <= {"name", "website", "alias"}, "an entity, no person"
    assert content["version"] == __version__, "quote it: YAML reads 0.1 as a number"
    assert content["license"] == "MIT"
    assert len(set(content["keywords"])) == len(content["keywords"]) > 0
    assert isinstance(content.get("date-released", date.today()), date)


def test_one_version_everywhere():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1] == __version__


def test_binder_installs_what_the_course_needs():
    yaml = pytest.importorskip("yaml")
    folder = ROOT / ".binder"
    content = yaml.safe_load((folder / "environment.yml").read_text(encoding="utf-8"))
    assert "pip" in content["dependencies"]
    script = folder / "postBuild"
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    assert script.stat().st_mode & 0o111, "Binder runs it: it has to be executable"
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install --no-cache-dir --editable ." in script.read_text()


def test_contributing_names_things_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:uss_utils|tests|notebooks)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
    for module, name in re.findall(r"`(\w+)\.(\w+)`", text):
        if Path(ROOT / "uss_utils" / f"{module}.py").is_file():
            source = (ROOT / "uss_utils" / f"{module}.py").read_text(encoding="utf-8")
            assert re.search(rf"\b(?:def|class) {name}\b", source), f"{module}.{name}"
