"""Regions of an image at several levels, as nested maps and as a tree.

Ke et al., "Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers", CVPR 2022: segments, fine groups, coarse
groups. Any label maps that nest make one, such as cuts of an ultrametric tree
(:mod:`uss_utils.regions`)::

    Hierarchy.of(tree_levels(tree, [0.1, 0.2, 0.4]))
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from uss_utils.datasets.files import read_ids
from uss_utils.json_files import read_object
from uss_utils.paths import atomic_file
from uss_utils.rows import as_float, first_largest
from uss_utils.scored_batches import resized

TREE = "tree.json"
MOST = 1 << 16  # regions of a level that 16 bits can tell apart


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """Nested regions of one image; make one with :meth:`of` or :meth:`grouped`.

    Attributes:
        levels: region of every pixel, fine to coarse, numbered 0.. without gaps, int64
            (H, W) each. Every region lies in one region of the next level.
        parents: for each level but the last, the region of the next level that each
            region lies in, int64 (R,).
    """

    levels: tuple[Tensor, ...]
    parents: tuple[Tensor, ...]

    @classmethod
    def of(cls, maps: Iterable[Tensor | np.ndarray]) -> "Hierarchy":
        """A hierarchy of label maps that nest.

        Args:
            maps: fine to coarse, integers of any values, (H, W) each.

        Raises:
            ValueError: no map, sizes that differ, or maps that do not nest.
        """
        maps = [torch.as_tensor(np.asarray(each)) for each in maps]
        shapes = sorted({tuple(each.shape) for each in maps})
        if len(shapes) != 1 or len(shapes[0]) != 2 or not maps[0].numel():
            raise ValueError(
                f"levels have the shapes {shapes}; expected at least one map (H, W), "
                "all of one size"
            )
        levels = tuple(torch.unique(each, return_inverse=True)[1] for each in maps)
        pairs = enumerate(zip(levels, levels[1:], strict=False))
        return cls(levels, tuple(_parents(*pair, level) for level, pair in pairs))

    @classmethod
    def grouped(
        cls, segments: Tensor, fine_probs: Tensor, coarse_probs: Tensor
    ) -> "Hierarchy":
        """Segments, fine groups and coarse groups of one image.

        Args:
            segments: segment of every pixel, 0..M-1, int64 (H, W).
            fine_probs: P1, shape (K1, M).
            coarse_probs: P2, shape (K2, M).

        Raises:
            ValueError: see :func:`nested_groups`.
        """
        segments = segments.cpu()
        pixels = torch.bincount(segments.flatten())
        groups = nested_groups(fine_probs.cpu(), coarse_probs.cpu(), pixels)
        return cls.of([segments, *(group[segments] for group in groups)])

    def __len__(self) -> int:
        return len(self.levels)

    def __iter__(self) -> Iterator[Tensor]:
        """The maps, fine to coarse."""
        return iter(self.levels)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of regions of every level."""
        return tuple(int(level.max()) + 1 for level in self.levels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the maps."""
        return tuple(self.levels[0].shape)

    def children(self, level: int, region: int) -> list[int]:
        """Regions of the next finer level that a region is made of; none at level 0."""
        if level == 0:
            return []
        return (self.parents[level - 1] == region).nonzero()[:, 0].tolist()

    def path(self, row: int, column: int) -> list[int]:
        """Regions that hold a pixel, fine to coarse."""
        return [int(level[row, column]) for level in self.levels]

    def resized(self, size: tuple[int, int]) -> "Hierarchy":
        """The same at another size (H, W), by nearest neighbour; it still nests."""
        return Hierarchy.of(resized(level[None], size)[0] for level in self.levels)

    def mean_colours(self, image: np.ndarray) -> list[np.ndarray]:
        """Every level as a picture: each region in the mean colour of its pixels.

        Args:
            image: uint8 RGB of the size of the maps, (H, W, 3).

        Returns:
            uint8 (H, W, 3), fine to coarse.

        Raises:
            ValueError: another size.
        """
        if image.shape != (*self.size, 3):
            raise ValueError(
                f"the image has shape {image.shape}, the maps are {self.size}"
            )
        return [mean_coloured(image, level.numpy()) for level in self]

    def tree(self) -> dict:
        """Plain structure: size, and regions with pixels and parent at every level."""
        height, width = self.size
        above = (*self.parents, None)
        return {
            "height": height,
            "width": width,
            "levels": [
                {
                    "regions": int(level.max()) + 1,
                    "pixels": torch.bincount(level.flatten()).tolist(),
                    "parents": None if parents is None else parents.tolist(),
                }
                for level, parents in zip(self.levels, above, strict=True)
            ],
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``level_0.png`` and so on, 16 bits of grey, and ``tree.json``.

        Every file is written whole or not at all, the tree last: what a killed run
        leaves behind does not fit together, and :meth:`load` says so.

        Args:
            folder: made where missing; files of these names are replaced.

        Returns:
            The folder.

        Raises:
            ValueError: a level has more regions than 16 bits can tell apart.
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        if max(self.counts) > MOST:
            raise ValueError(
                f"{max(self.counts)} regions do not fit into 16 bits (at most {MOST}); "
                "begin with fewer segments"
            )
        for number, level in enumerate(self.levels):
            with atomic_file(_file(folder, number)) as path:
                Image.fromarray(level.numpy().astype(np.uint16)).save(path, "PNG")
        with atomic_file(folder / TREE) as path:
            path.write_text(json.dumps(self.tree()) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Hierarchy":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: a file is absent.
            ValueError: a file is damaged, or they do not belong together.
            OSError: a map cannot be read.
        """
        folder = Path(folder)
        if not (folder / TREE).is_file():
            raise FileNotFoundError(f"no hierarchy in {folder}: there is no {TREE}")
        try:
            tree = read_object(folder / TREE)
            number = len(tree["levels"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / TREE} is no tree of regions ({error!r}); save the "
                "hierarchy again"
            ) from error
        maps = [read_ids(_file(folder, k)).astype(np.int64) for k in range(number)]
        found = cls.of(maps)
        if found.tree() != tree:
            raise ValueError(
                f"the maps in {folder} are not those of its {TREE}: writing them was "
                "interrupted, or files were exchanged; save the hierarchy again"
            )
        return found


def _file(folder: Path, level: int) -> Path:
    return folder / f"level_{level}.png"


def _parents(fine: Tensor, coarse: Tensor, level: int) -> Tensor:
    """Coarse region of every fine one; both numbered without gaps."""
    fine, coarse = fine.flatten(), coarse.flatten()
    parents = torch.zeros(int(fine.max()) + 1, dtype=torch.int64)
    parents[fine] = coarse
    torn = fine[parents[fine] != coarse]
    if len(torn):
        raise ValueError(
            f"level {level} does not nest in level {level + 1}: {len(torn.unique())} "
            "of its regions lie in several regions of the coarser one; give the maps "
            "fine to coarse"
        )
    return parents


def nested_groups(
    fine_probs: Tensor, coarse_probs: Tensor, pixels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fine and coarse group of every node, so that fine groups lie in coarse ones.

    The paper takes the most probable coarse group of each node by itself, which tears
    some fine groups apart. Here a fine group goes as a whole where the pixels of its
    nodes together are most likely to be: to the largest sum of P2 over its nodes,
    weighted by their pixels. Where all nodes of a group agree both are the same.

    Args:
        fine_probs: P1, shape (K1, M).
        coarse_probs: P2, shape (K2, M).
        pixels: of each node, shape (M,); None: all the same.

    Returns:
        Fine and coarse groups, int64 (M,); of equals the smallest.

    Raises:
        ValueError: shapes that do not fit.
    """
    n = fine_probs.shape[-1]
    fits = fine_probs.dim() == coarse_probs.dim() == 2 and coarse_probs.shape[1] == n
    if not fits or (pixels is not None and tuple(pixels.shape) != (n,)):
        given = [tuple(p.shape) for p in (fine_probs, coarse_probs)]
        raise ValueError(
            f"probabilities of shapes {given[0]} and {given[1]} for "
            f"{n if pixels is None else len(pixels)} nodes; expected (K1, M) and "
            "(K2, M) of one image"
        )
    fine = first_largest(fine_probs, 0)
    weighted = as_float(coarse_probs).T.double()
    if pixels is not None:
        weighted = weighted * pixels[:, None]
    summed = weighted.new_zeros(len(fine_probs), len(coarse_probs))
    summed.index_add_(0, fine, weighted)
    return fine, first_largest(summed, 1)[fine]


def mean_coloured(image: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Every region in the mean of its colours.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        ids: region of every pixel, any integers, shape (H, W).

    Returns:
        uint8 (H, W, 3).
    """
    _, number = np.unique(ids, return_inverse=True)
    number = number.reshape(-1)
    sums = [np.bincount(number, image[..., c].ravel()) for c in range(3)]
    mean = np.stack(sums, 1) / np.bincount(number)[:, None]
    return np.rint(mean)[number].reshape(image.shape).astype(np.uint8)
