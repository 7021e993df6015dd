"""PriMaPs' masks on disk: one 8-bit map of ids per image, made once.

A folder holds ``pseudos/000000.png`` and so on, in the order of the data set, and
``options.json``: what the masks were made from. Images whose file is there are not done
again, so a killed run goes on where it was.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from uss_utils import crf
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.files import opened, reason
from uss_utils.datasets.roots import empty
from uss_utils.datasets.transforms import denormalise
from uss_utils.extraction import feature_batches
from uss_utils.feature_cache import content_key
from uss_utils.frozen import Frozen
from uss_utils.methods._primaps_masks import (
    NONE,
    clean_masks,
    enlarge_ids,
    propose_masks,
    refine_masks,
)
from uss_utils.paths import atomic_file, cache_dir, clear_leftovers, settle
from uss_utils.resumable import claim, explained, locked

FOLDER = "pseudos"
IN_MEMORY = 500_000_000  # bytes of maps that are kept after they were read


class MaskCache:
    """Read access to the masks of a data set; make them with :meth:`build`.

    Attributes:
        folder: where they lie.
        options: what they were made from.
        size: (H, W) of every map.
    """

    def __init__(self, folder: Path, options: dict):
        self.folder, self.options = folder, options
        self.size = tuple(options["image_size"])
        self._kept: dict[int, Tensor] = {}

    @classmethod
    def build(
        cls,
        backbone: Frozen,
        dataset: SegmentationDataset,
        *,
        threshold: float = 0.4,
        coverage: float = 0.95,
        refine: bool = True,
        folder: str | Path | None = None,
        features: Iterable[tuple[range, Tensor]] | None = None,
        params: crf.CRFParams = crf.DEFAULT,
        workers: int | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> "MaskCache":
        """Make the masks that are missing.

        The next images' masks are extracted while the CRF works on these.

        Args:
            backbone: whose features are split.
            dataset: all items of one image size.
            threshold: see :func:`propose_masks`, as is ``coverage``.
            coverage: share of the patches that ends the rounds.
            refine: sharpen with the dense CRF; otherwise, and without pydensecrf, the
                ids are only enlarged.
            folder: where to put them; None: a folder under the cache directory, named
                by data set, backbone and content.
            features: (rows, features) in order, where they are known; they are asked
                for only if a mask is missing.
            params: of the CRF.
            workers: processes of the CRF; None: one per core.
            batch_size: images per pass, where features have to be computed.
            progress: show a bar.

        Raises:
            ValueError: ``folder`` holds masks of something else, a setting out of
                range, or features that are not finite or not those of all images.
            OSError: the place cannot be written.
        """
        refine = refine and crf.available()
        options = content_key(backbone, dataset) | {
            "threshold": threshold,
            "coverage": coverage,
            "crf": asdict(params) if refine else None,
        }
        path = _default(options, backbone, dataset) if folder is None else Path(folder)
        path = path.expanduser()
        with explained(path):
            (path / FOLDER).mkdir(parents=True, exist_ok=True)
        with locked(path):
            clear_leftovers(path / FOLDER)
            claim(path, options, "masks")
            cache = cls(path, options)
            missing = cache._missing()
            if missing:
                if features is None:
                    start = min(missing) - min(missing) % max(1, batch_size)
                    features = feature_batches(
                        backbone, dataset, start=start, batch_size=batch_size
                    )
                wanted = 1 if not refine else workers
                cache._make(
                    missing, dataset, features, refine, params, wanted, progress
                )
        return cache

    def __len__(self) -> int:
        return self.options["shape"][0]

    def __getitem__(self, index: int) -> Tensor:
        """Mask ids of an image, uint8 (H, W): 1..K, 255 = in no mask.

        Raises:
            ValueError: the file is damaged, or no map of this size.
        """
        index = range(len(self))[int(index)]
        ids = self._kept.get(index)
        if ids is None:
            ids = self._read(index)
            if len(self) * ids.numel() <= IN_MEMORY:
                self._kept[index] = ids
        return ids

    def batch(self, indices: Iterable[int]) -> Tensor:
        """Mask ids of some images, uint8 (B, H, W)."""
        return torch.stack([self[i] for i in indices])

    def counts(self) -> Tensor:
        """Number of masks of every image, those that vanished left out, int64 (N,)."""
        found = (self[i].unique() for i in range(len(self)))
        return torch.tensor([int((ids != NONE).sum()) for ids in found])

    def path(self, index: int) -> Path:
        """File of an image."""
        return self.folder / FOLDER / f"{index:06d}.png"

    def _missing(self) -> set[int]:
        """Images without a file; an empty one is what a power cut may leave."""
        stored = {
            entry.name for entry in os.scandir(self.folder / FOLDER) if not empty(entry)
        }
        return {i for i in range(len(self)) if self.path(i).name not in stored}

    def _read(self, index: int) -> Tensor:
        path = self.path(index)
        try:
            with opened(path, "map") as image:
                ids = np.array(image)
        except OSError as error:
            raise ValueError(
                f"{path} is no readable map of masks "
                f"({reason(error.__cause__ or error)}); delete it, and it is made again"
            ) from error
        if ids.dtype != np.uint8 or ids.shape != self.size:
            raise ValueError(
                f"{path} holds {ids.dtype} of shape {ids.shape} instead of bytes of "
                f"shape {self.size}; delete it, and it is made again"
            )
        return torch.from_numpy(ids)

    def _make(
        self,
        missing: set[int],
        dataset: SegmentationDataset,
        features: Iterable[tuple[range, Tensor]],
        refine: bool,
        params: crf.CRFParams,
        workers: int | None,
        progress: bool,
    ) -> None:
        bar = tqdm(total=len(self), desc="masks", unit="img", disable=not progress)
        bar.update(len(self) - len(missing))

        def finish(rows: list[int], ids: Tensor, counts: Tensor) -> None:
            sharp = self._sharpen(dataset, rows, ids, counts, refine, params, pool)
            for row, map_ in zip(rows, sharp, strict=True):
                self._write(row, map_)
            bar.update(len(rows))

        with bar, crf.CRFPool(workers) as pool, ThreadPoolExecutor(1) as behind:
            waiting: Future | None = None
            for job in self._extracted(features, missing):
                if waiting is not None:
                    waiting.result()
                waiting = behind.submit(finish, *job)
            if waiting is not None:
                waiting.result()
        settle()
        left = self._missing()
        if left:
            raise ValueError(
                f"the features that were given leave out {len(left)} of {len(self)} "
                f"images, the first of them {min(left)}"
            )

    def _extracted(
        self, features: Iterable[tuple[range, Tensor]], missing: set[int]
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Rows, small maps of ids and numbers of masks of images without a file.

        A batch is always worked on whole: rounding may depend on what stands beside an
        image, and a resumed run has to find the same masks.
        """
        limits = self.options["threshold"], self.options["coverage"]
        for rows, feat in features:
            wanted = [i for i, row in enumerate(rows) if row in missing]
            if wanted:
                found = propose_masks(feat, *limits)
                ids = clean_masks(found)[wanted].cpu()
                yield [rows[i] for i in wanted], ids, found.count[wanted].cpu()

    def _sharpen(
        self,
        dataset: SegmentationDataset,
        rows: list[int],
        ids: Tensor,
        counts: Tensor,
        refine: bool,
        params: crf.CRFParams,
        pool: crf.CRFPool,
    ) -> Tensor:
        if not refine:
            return enlarge_ids(ids, self.size)
        images, _ = dataset.batch(rows)
        # Rounded: truncating, as released, makes a quarter of the bytes one too small.
        pixels = denormalise(images).mul_(255).round_().clamp_(0, 255).byte()
        pixels = pixels.movedim(1, -1).contiguous()
        return refine_masks(ids, pixels, counts, params=params, pool=pool)

    def _write(self, index: int, ids: Tensor) -> None:
        with atomic_file(self.path(index), bulk=True) as temporary:
            Image.fromarray(ids.numpy()).save(temporary, format="PNG")


def _default(options: dict, backbone: Frozen, dataset: SegmentationDataset) -> Path:
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    name = f"{dataset.name}-{dataset.split}-{backbone.name}-{digest[:12]}"
    return cache_dir() / "primaps" / name
