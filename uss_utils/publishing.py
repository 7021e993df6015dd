"""What of a run is committed: notebooks with outputs, the README's figures."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat

from uss_utils.paths import atomic_file

LARGEST_BYTES = 1_200_000
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# A rooted path, not preceded by what makes it relative, part of a URL or an HTML tag.
_ABSOLUTE = re.compile(
    r"(?<![\w.:/<~+-])/(?:home|Users|root|tmp|var|opt|usr|mnt|srv|private|work|app|content"
    r"|workspace|builds?|runner|github)(?:/[\w.+-]+)+|\b[A-Z]:\\\\?\w+"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def plain(text: str) -> str:
    """Text without terminal colours."""
    return _ANSI.sub("", text)


def absolute_paths(notebook: nbformat.NotebookNode) -> list[str]:
    """Every absolute path in code or outputs, as "cell N: path"."""
    found = []
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        for text in (cell.source, *_texts(cell.outputs)):
            found += [f"cell {i}: {path}" for path in _ABSOLUTE.findall(plain(text))]
            found += [f"cell {i}: {home}" for home in _own_folders() if home in text]
    return found


def _own_folders() -> list[str]:
    # Whatever the pattern misses: folders of the machine this runs on.
    folders = (Path.home(), Path(__file__).resolve().parent.parent)
    return [str(folder) for folder in folders if len(folder.parts) > 2]


def _texts(outputs: list[Any]) -> Iterator[str]:
    for output in outputs:
        yield output.get("text", "")
        yield "\n".join(output.get("traceback", []))
        for mime, data in output.get("data", {}).items():
            if not mime.startswith("image/") or mime == "image/svg+xml":
                yield data if isinstance(data, str) else json.dumps(data)


def clean(
    source: nbformat.NotebookNode, executed: nbformat.NotebookNode
) -> nbformat.NotebookNode:
    """The source notebook with the outputs of its executed copy.

    Text, cell ids and tags stay those of the source; timings, widget views and state,
    and what papermill added are left out.

    Raises:
        ValueError: a code cell of the source was not executed.
    """
    done = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
    result = nbformat.from_dict(source)
    result.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for i, cell in enumerate(result.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type != "code":
            continue
        twin = done.get(cell.id)
        if twin is None or twin.source != cell.source or not twin.execution_count:
            raise ValueError(f"cell {i} was not executed as it stands; run it again")
        cell.execution_count = twin.execution_count
        cell.outputs = clean_outputs(twin.outputs)
    return result


def clean_outputs(outputs: list[Any]) -> list[Any]:
    """Outputs without widget views, streams joined, progress bars as they ended."""
    kept: list[Any] = []
    for output in outputs:
        if WIDGET in output.get("data", {}):
            continue
        if output.output_type == "stream":
            output.text = _settled(output.text)
            if kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
                continue
            if not output.text:
                continue
        kept.append(output)
    return kept


def _settled(text: str) -> str:
    """What a terminal shows in the end: progress bars overwrite themselves."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(lines)


def publish(path: Path, executed: Path) -> int:
    """Replace the notebook ``path`` by itself with outputs of the executed file.

    Returns:
        Size of the file in bytes.

    Raises:
        ValueError: an error output, an absolute path or too many bytes; ``path`` is
            untouched.
    """
    source = nbformat.read(path, as_version=4)
    result = clean(source, nbformat.read(executed, as_version=4))
    leaks = absolute_paths(result)
    if leaks:
        raise ValueError(
            "absolute paths must not be published: " + "; ".join(leaks[:5])
        )
    text = nbformat.writes(result) + "\n"
    size = len(text.encode())
    if size > LARGEST_BYTES:
        raise ValueError(
            f"it would hold {size / 1e6:.2f} MB, at most {LARGEST_BYTES / 1e6} are "
            f"allowed; largest: {_largest(result)}. Draw fewer or smaller pictures"
        )
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return size


def _largest(notebook: nbformat.NotebookNode) -> str:
    sizes = [
        (len(json.dumps(cell.get("outputs", []))), i)
        for i, cell in enumerate(notebook.cells)
    ]
    return ", ".join(
        f"cell {i} {size / 1000:.0f} kB" for size, i in sorted(sizes)[:-4:-1]
    )


SCORES = (
    "<!-- scores: written by `make notebooks`, do not edit -->",
    "<!-- /scores -->",
)
COURSE = (
    "<!-- course: minutes written by `make notebooks`, do not edit them -->",
    "<!-- /course -->",
)
PUBLISHED = (
    "<!-- published: written by `make notebooks`, do not edit -->",
    "<!-- /published -->",
)


def replace_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between two lines of a page.

    Args:
        page: a file that holds both marks once.
        marks: first and last line; they stay.
        text: markdown.

    Raises:
        ValueError: the marks are missing.
    """
    head, _, tail = between(page, marks)
    begin, end = marks
    with atomic_file(page) as temporary:
        temporary.write_text(
            f"{head}{begin}\n{text.strip()}\n{end}{tail}", encoding="utf-8"
        )


def between(page: Path, marks: tuple[str, str]) -> tuple[str, str, str]:
    """What stands before, between and after two lines of a page.

    Raises:
        ValueError: the marks are missing.
    """
    begin, end = marks
    head, found, rest = page.read_text(encoding="utf-8").partition(begin)
    inside, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page.name} lacks the lines {begin} and {end}")
    return head, inside, tail


def publish_scores(readme: Path, board: str) -> None:
    """Replace the README's tables of scores by those of a run.

    Args:
        readme: a file that holds the two marks :data:`SCORES` once.
        board: markdown.

    Raises:
        ValueError: the marks are missing.
    """
    replace_between(readme, SCORES, board)


def publish_minutes(
    readme: Path, measured: Mapping[str, tuple[float, float]], machine: str
) -> None:
    """Write into the README's table of the course how long each notebook took.

    The rest of the table is typed by hand and stays; below it comes a line with the sum
    and the largest memory.

    Args:
        readme: a file that holds the two marks :data:`COURSE` once, with a table that
            has a column "minutes" and in every row a link to a notebook between them.
        measured: name of a notebook -> seconds and peak memory in MB.
        machine: what it was measured on.

    Raises:
        ValueError: the marks or the column are missing, or the table does not list
            exactly the notebooks measured.
    """
    _, inside, _ = between(readme, COURSE)
    head, rule, *rows = [line for line in inside.splitlines() if line.startswith("|")]
    names = _cells(head)
    if "minutes" not in names:
        raise ValueError(f"the course's table in {readme.name} has no column 'minutes'")
    column, lines, listed = names.index("minutes"), [head, rule], []
    for row in rows:
        cells = _cells(row)
        listed += (found := re.findall(r"notebooks/(\w+)\.ipynb", row)[:1])
        if found and found[0] in measured:
            cells[column] = minutes(measured[found[0]][0])
        lines.append("| " + " | ".join(cells) + " |")
    if sorted(listed) != sorted(measured):
        apart = ", ".join(sorted(set(listed) ^ set(measured)))
        raise ValueError(
            f"the course's table in {readme.name} and the notebooks differ: {apart}"
        )
    seconds, peaks = zip(*measured.values(), strict=True)
    lines += [
        "",
        f"Minutes of one run of the `scenes` preset on {machine}: "
        f"{minutes(sum(seconds))} in all, at most {max(peaks) / 1000:.1f} GB of "
        "memory each. `make course` runs as many at a time as there are cores.",
    ]
    replace_between(readme, COURSE, "\n".join(lines))


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def minutes(seconds: float) -> str:
    """Minutes as text, for example "0.2", "3.4" or "27"."""
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"


def publish_picture(notebook: Path, target: Path) -> None:
    """Copy a notebook's first photograph (JPEG) to a file of its own.

    Raises:
        ValueError: no output holds one.
    """
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            jpeg = output.get("data", {}).get("image/jpeg")
            if jpeg:
                with atomic_file(target) as temporary:
                    temporary.write_bytes(base64.b64decode(jpeg))
                return
    raise ValueError(f"{notebook.name} shows no photograph")
