"""Integer maps on disk, one PNG of one channel per image, made once or found.

Made ones are ``000000.png`` and so on, ``options.json`` beside them says from what.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from uss_utils.datasets.roots import empty
from uss_utils.paths import (
    atomic_file,
    cache_dir,
    clear_leftovers,
    settle,
    user_path,
)
from uss_utils.resumable import claim, explained, locked

IN_MEMORY = 500_000_000  # bytes of maps that are kept after they were read


class MapFiles:
    """Read access to the maps of a data set; a subclass says how one is decoded.

    Args:
        paths: file of every image, in the data set's order.
    """

    what = "maps"  # for messages

    def __init__(self, paths: Iterable[Path]):
        self.paths = tuple(paths)
        self._kept: dict[int, np.ndarray] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def decode(self, index: int) -> np.ndarray:
        """Map of one image, of the type it is kept in, from its file."""
        raise NotImplementedError

    def stored(self, index: int) -> np.ndarray:
        """Map of one image, as :meth:`decode` gives it, read once while there is room.

        Raises:
            ValueError: there is no such file, or it cannot be read.
        """
        found = self._kept.get(index)
        if found is None:
            found = self.decode(index)
            if self._bytes + found.nbytes <= IN_MEMORY:
                self._kept[index] = found
                self._bytes += found.nbytes
        return found

    def read(self, indices: int | Iterable[int]) -> Tensor:
        """Map of one image, int64 (H, W), or of images of one size, (n, H, W).

        Raises:
            ValueError: see :meth:`stored`, or sizes that differ.
        """
        if not isinstance(indices, Iterable):
            return torch.from_numpy(self.stored(int(indices)).astype(np.int64))
        maps = [self.stored(int(index)) for index in indices]
        sizes = {each.shape for each in maps}
        if len(sizes) > 1:
            raise ValueError(f"{self.what} of different sizes, {sorted(sizes)[:3]}")
        return torch.from_numpy(np.stack(maps).astype(np.int64))


def default_folder(kind: str, options: dict, *names: str) -> Path:
    """Folder under the cache directory, named by content.

    Args:
        kind: of files, e.g. "masks".
        options: all that the files depend on, JSON-able.
        names: what else makes the folder's name, for people.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    return cache_dir() / kind / "-".join((*names, digest[:12]))


@contextmanager
def to_be_made(
    folder: str | Path, n: int, options: dict, what: str
) -> Iterator[tuple[list[Path], set[int]]]:
    """One writer at a time fills a folder with the files that it lacks.

    Args:
        folder: is made if absent.
        n: number of files.
        options: what they are made from, JSON-able.
        what: the files, for messages.

    Returns:
        On entering, all files and the numbers of the missing ones.

    Raises:
        ValueError: the folder is for something else.
        OSError: it cannot be written.
    """
    folder = user_path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:06d}.png" for index in range(n)]
    with locked(folder):
        clear_leftovers(folder)
        claim(folder, options, what)
        # An empty file is what a power cut may leave.
        there = {entry.name for entry in os.scandir(folder) if not empty(entry)}
        missing = {i for i, file in enumerate(files) if file.name not in there}
        yield files, missing
        if missing:
            settle()


def write_map(path: Path, values: np.ndarray) -> None:
    """Write one of many maps, uint8 or uint16 (H, W).

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_file(path, bulk=True) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")
