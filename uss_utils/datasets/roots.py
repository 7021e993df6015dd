"""Finding a stored set: in the folder a user names, or one or two levels below it."""

import os
from collections.abc import Sequence
from pathlib import Path

from uss_utils import paths


def find_root(
    what: str,
    root: str | Path | None,
    *,
    names: Sequence[str],
    places: Sequence[str] = (),
    holds: Sequence[str],
    advice: str,
) -> Path:
    """Folder that holds a set.

    Args:
        what: the set, as the message calls it.
        root: that folder or one above it; None: a folder under the data folder.
        names: of that folder under the data folder, the usual one first; also looked
            for below ``root``.
        places: further places below a folder where the set may lie.
        holds: folders of which the set has at least one, the surest sign first.
        advice: last sentence of the message.

    Raises:
        FileNotFoundError: nothing was found.
    """
    given = expected_root(root, names[0])
    starts = [given] if root is not None else [paths.data_dir() / n for n in names]
    for folder in holds:
        for start in starts:
            for place in ("", *names, *places):
                if (start / place / folder).is_dir():
                    return start / place
    state = "holds none of the folders" if given.is_dir() else "is absent or lacks"
    wanted = ", ".join(f"{folder}/" for folder in holds)
    raise FileNotFoundError(f"no {what} at {given}: it {state} {wanted}. {advice}")


def expected_root(root: str | Path | None, name: str) -> Path:
    """The folder a user names, or the set's own under the data folder."""
    return paths.user_path(root) if root is not None else paths.data_dir() / name


def listed(folder: Path, suffix: str, *, filled: bool = False) -> set[str]:
    """Names without suffix of a folder's files that end in it; none if it is absent.

    One look at the folder: asking for a hundred thousand files one by one takes long
    on network disks. Hidden files are left out.

    Args:
        folder: where to look.
        suffix: of the files.
        filled: leave out empty files, too, which a power cut can leave behind; looks
            at every file.
    """
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {
            entry.name.removesuffix(suffix)
            for entry in entries
            if entry.name.endswith(suffix)
            and not entry.name.startswith(".")
            and (entry.is_symlink() or entry.is_file())
            and not (filled and empty(entry))
        }


def empty(entry: os.DirEntry) -> bool:
    """Whether a file holds nothing, or is a link to nothing."""
    try:
        return entry.stat().st_size == 0
    except OSError:
        return True


def written(folder: Path, suffix: str) -> set[str]:
    """Names without suffix of a folder's files that are not empty."""
    return listed(folder, suffix, filled=True)


def listed_files(
    what: str, folder: Path, names: Sequence[str], suffix: str, advice: str
) -> list[Path]:
    """Files of a folder that a list names, all of which have to be there.

    Args:
        what: e.g. "images of train", for the message.
        folder: where they lie.
        names: without suffix.
        suffix: of all of them.
        advice: last sentence of the message.

    Raises:
        FileNotFoundError: naming the first missing file and how many there are.
    """
    there = listed(folder, suffix)
    missing = [name for name in names if name not in there]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} {what} are missing, first "
            f"{folder / (missing[0] + suffix)}. {advice}"
        )
    return [folder / (name + suffix) for name in names]
