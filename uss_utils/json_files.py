"""One JSON object per file: how the package reads back what it wrote beside its data.

Written are such files through :func:`uss_utils.paths.atomic_file`.
"""

import json
from pathlib import Path
from typing import Any


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        ValueError: it is no JSON, nested without end, or JSON of another kind.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} instead of a JSON object")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; the caller says in its message which file it was.

    Raises:
        OSError: the file is absent or cannot be read.
        ValueError: it is not UTF-8, or see :func:`parse_object`.
    """
    return parse_object(path.read_text(encoding="utf-8"))
