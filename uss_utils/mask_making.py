"""Making object masks from the features of a frozen vision transformer.

Features -> objects on the grid of patches (:mod:`uss_utils.saliency`) -> if wanted,
what a head predicts that learned them (:mod:`uss_utils.saliency_head`) -> dense CRF at
the size of the image -> cleaning. Images whose file is there are not done again, so a
killed run goes on where it was.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor
from tqdm.auto import tqdm

from uss_utils import crf, saliency
from uss_utils.batches import in_order
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.transforms import normalise
from uss_utils.environment import generator
from uss_utils.extraction import device_of
from uss_utils.frozen import Frozen
from uss_utils.heads import Standardise, fit_standardise
from uss_utils.map_files import default_folder, to_be_made, write_map
from uss_utils.mask_cleaning import EIGHT, LEVEL
from uss_utils.run_state import own_random_state
from uss_utils.saliency_head import SaliencyHead, distil_saliency
from uss_utils.upsampling import upsample

BATCH = 32  # images read at a time
FIT_IMAGES = 200  # evenly spaced, whose patches the fixed map is fitted to
FIT_PATCHES = 12_000
DISTIL_EPOCHS = 6
DISTIL_NUMBERS = 100_000_000  # of features in memory; more images are left out
FORMAT = 1


@dataclass(frozen=True)
class MaskRecipe:
    """How masks are made.

    Attributes:
        method: "ncut", "attention" or "degree", see :mod:`uss_utils.saliency`.
        features: of the last block: its keys, or what it gives ("feat").
        fixed: fixed map of them, fitted to the data set: "none", "centre", "whiten".
        tau: cosine above which two patches are joined ("ncut").
        objects: most objects per image. Several come from repeated cuts ("ncut" without
            a head), or are the largest connected pieces of the one mask there is.
        distil: kind of the head that learns the masks of all images and then makes
            them, see :class:`~uss_utils.saliency_head.SaliencyHead`; or "none".
        min_area: share of the image that an object has to cover.
        refine: sharpen with the dense CRF, where pydensecrf is installed.
        side: longer side of the image that the backbone sees, in pixels; None: the
            image's own, brought to multiples of the patch.
    """

    method: Literal["ncut", "attention", "degree"] = "ncut"
    features: Literal["keys", "feat"] = "keys"
    fixed: Literal["none", "centre", "whiten"] = "none"
    tau: float = 0.2
    objects: int = 1
    distil: Literal["none", "linear", "conv"] = "none"
    min_area: float = 0.01
    refine: bool = True
    side: int | None = None

    def __post_init__(self) -> None:
        """Check what a byte can hold.

        Raises:
            ValueError: too many objects, or none.
        """
        if not 1 <= self.objects <= 254:
            raise ValueError(f"objects={self.objects} per image have to be 1..254")

    def cuts(self) -> int:
        """Cuts of an image, where objects come from cuts."""
        return self.objects if self.distil == "none" else 1


def make_masks(
    dataset: SegmentationDataset,
    backbone: Frozen,
    recipe: MaskRecipe,
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> list[Path]:
    """Make the masks that are missing.

    An image in which nothing is found gets a file without an object.

    Args:
        dataset: images of any sizes, seen through the set's transform.
        backbone: a vision transformer.
        recipe: how.
        folder: where to put them; None: a folder under the cache directory, named by
            data set, backbone and content.
        workers: processes of the CRF; None: one per core.
        progress: show a bar.

    Returns:
        The file of every image.

    Raises:
        ValueError: ``folder`` holds masks of something else, or features that are not
            finite.
        OSError: the place cannot be written.
    """
    sharp = recipe.refine and crf.available()
    options = {
        "format": FORMAT,
        "images": len(dataset),
        "dataset": dataset.fingerprint(),
        "backbone": backbone.fingerprint,
        "position": backbone.position,
        **asdict(recipe),
        "refine": asdict(crf.DEFAULT) if sharp else None,
    }
    if folder is None:
        names = dataset.name, dataset.split, backbone.name
        folder = default_folder("masks", options, *names)
    with to_be_made(folder, len(dataset), options, "masks") as (files, missing):
        if missing:
            _Maker(dataset, backbone, recipe, sharp).run(
                missing, files, workers, progress
            )
    return files


class _Maker:
    """The work of one call."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        backbone: Frozen,
        recipe: MaskRecipe,
        sharp: bool,
    ):
        self.dataset, self.backbone, self.recipe = dataset, backbone, recipe
        self.sharp = sharp
        self.fixed = self._fit() if recipe.fixed != "none" else None
        self.head = self._distil() if recipe.distil != "none" else None

    def run(
        self,
        missing: set[int],
        files: list[Path],
        workers: int | None,
        progress: bool,
    ) -> None:
        """Write the masks of the images that have none."""
        bar = tqdm(total=len(files), desc="masks", unit="img", disable=not progress)
        bar.update(len(files) - len(missing))
        with bar, crf.CRFPool(workers if self.sharp else 1) as pool:
            for rows, pixels in self._groups(_whole_batches(missing, len(files))):
                for row, ids in zip(rows, self._objects(pixels, pool), strict=True):
                    if row in missing:
                        _write(files[row], ids, self.recipe.objects == 1)
                        bar.update()

    def _groups(self, wanted: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Images of one size together: rows and uint8 (B, H, W, 3)."""

        def read(part: range) -> list[np.ndarray]:
            return [self._pixels(wanted[i]) for i in part]

        for part, images in in_order(read, len(wanted), BATCH):
            rows = [wanted[i] for i in part]
            for shape in dict.fromkeys(image.shape for image in images):
                same = [k for k, image in enumerate(images) if image.shape == shape]
                yield [rows[k] for k in same], np.stack([images[k] for k in same])

    def _pixels(self, index: int) -> np.ndarray:
        image = self.dataset.read_image(index)
        return self.dataset.transform.apply_image(image)

    def _fit(self) -> Standardise:
        """The fixed map of the features."""
        n = len(self.dataset)
        few = np.linspace(0, n - 1, min(n, FIT_IMAGES)).round().astype(int)
        maps = [
            self._features(pixels).flatten(2).mT.flatten(0, 1)
            for _, pixels in self._groups(few.tolist())
        ]
        rows = torch.cat(maps)
        chosen = torch.randperm(len(rows), generator=generator(0))[:FIT_PATCHES]
        return fit_standardise(rows[chosen], self.recipe.fixed)

    def _distil(self) -> SaliencyHead:
        """A head that learned the masks of images of the most frequent shape."""
        h, w = self._mapped(self._pixels(0)[None]).shape[-2:]
        most = max(1, DISTIL_NUMBERS // (self.backbone.dim * h * w))
        n = len(self.dataset)
        some = np.linspace(0, n - 1, min(n, most)).round().astype(int)
        found: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for _, pixels in self._groups(some.tolist()):
            feat = self._mapped(pixels)
            pair = feat.half(), self._estimate(pixels, feat) > LEVEL
            found.setdefault(tuple(feat.shape[-2:]), []).append(pair)
        pairs = max(found.values(), key=lambda pairs: sum(len(f) for f, _ in pairs))
        feat, masks = (torch.cat(part) for part in zip(*pairs, strict=True))
        with own_random_state(0, torch.device("cpu")):
            head = SaliencyHead(feat.shape[1], self.recipe.distil)
        distil_saliency(head, feat, masks, DISTIL_EPOCHS)
        return head.requires_grad_(False)

    def _mapped(self, pixels: np.ndarray) -> Tensor:
        """Features behind the fixed map, shape (B, C, h, w)."""
        feat = self._features(pixels)
        return feat if self.fixed is None else self.fixed(feat)

    @torch.no_grad()
    def _features(self, pixels: np.ndarray) -> Tensor:
        """Raw features of images (B, H, W, 3), shape (B, C, h, w), on the CPU."""
        images = self._resized(normalise(pixels)).to(device_of(self.backbone))
        keys = self.recipe.features == "keys"
        found = self.backbone(images, keys=keys)
        return (found.keys if keys else found.feat).float().cpu()

    def _resized(self, images: Tensor) -> Tensor:
        """Images at multiples of the patch, the longer side near the recipe's."""
        size, patch = images.shape[-2:], self.backbone.patch
        scale = 1.0 if self.recipe.side is None else self.recipe.side / max(size)
        new = [max(1, round(n * scale / patch)) * patch for n in size]
        if new == list(size):
            return images
        return F.interpolate(images, new, mode="bilinear", antialias=True)

    def _objects(self, pixels: np.ndarray, pool: crf.CRFPool) -> list[np.ndarray]:
        """Objects of images of one size, uint8 (H, W) each."""
        if self.head is not None:
            found = self.head(self._mapped(pixels)).sigmoid()
        else:
            found = self._estimate(pixels)
        size = pixels.shape[1:3]
        if found.dtype == torch.uint8:
            large = self._sharpened_ids(pixels, found, pool)
            cleaned = [saliency.clean_ids(ids, self.recipe.min_area) for ids in large]
        else:
            images = torch.from_numpy(pixels)
            if self.sharp:
                soft = saliency.refine_with_crf(images, found, pool=pool)
            else:
                soft = upsample(found[:, None], size)[:, 0]
            cleaned = [saliency.clean_mask(each, self.recipe.min_area) for each in soft]
            cleaned = [m if m is None else self._pieces(m) for m in cleaned]
        nothing = np.zeros(size, np.uint8)
        return [nothing if m is None else m.astype(np.uint8) for m in cleaned]

    def _pieces(self, mask: np.ndarray) -> np.ndarray:
        """A mask as it is, or its largest connected pieces, numbered by size."""
        if self.recipe.objects == 1:
            return mask
        pieces, count = ndimage.label(mask, EIGHT)
        area = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        numbers = np.zeros(count + 1, np.uint8)
        largest = np.argsort(-area, kind="stable")[: self.recipe.objects]
        numbers[1 + largest] = np.arange(1, len(largest) + 1)
        return numbers[pieces]

    def _estimate(self, pixels: np.ndarray, feat: Tensor | None = None) -> Tensor:
        """Soft maps (B, h, w) of one object, or ids of several, uint8.

        ``feat`` are the mapped features, where they are known.
        """
        recipe = self.recipe
        if recipe.method == "attention":
            return self._attended(pixels)
        feat = self._mapped(pixels) if feat is None else feat
        grid, rows = feat.shape[-2:], feat.flatten(2).mT
        if recipe.method == "degree":
            return saliency.degree_seed(rows, grid).float()
        if recipe.cuts() > 1:
            return saliency.ncut_objects(rows, grid, recipe.cuts(), recipe.tau)
        cut = saliency.ncut_saliency(rows, grid, recipe.tau)
        # The kept piece alone: elsewhere no more than undecided.
        return torch.where(cut.mask, cut.soft, cut.soft.clamp(max=LEVEL))

    def _attended(self, pixels: np.ndarray) -> Tensor:
        """Masks of the class token's attention, as soft maps (B, h, w)."""
        images = self._resized(normalise(pixels)).to(device_of(self.backbone))
        with torch.no_grad():
            found = self.backbone(images, attention=True)
        attention = saliency.class_attention(found.attention, self.backbone.prefix)
        mask = saliency.attention_saliency(attention)
        return mask.unflatten(1, found.feat.shape[-2:]).float().cpu()

    def _sharpened_ids(
        self, pixels: np.ndarray, ids: Tensor, pool: crf.CRFPool
    ) -> np.ndarray:
        """Ids at the size of the image, uint8 (B, H, W)."""
        if self.sharp:
            counts = ids.flatten(1).amax(1).tolist()
            images = torch.from_numpy(pixels)
            return crf.sharpen_ids(images, ids, counts, pool=pool).numpy()
        large = F.interpolate(
            ids[:, None].float(), pixels.shape[1:3], mode="nearest-exact"
        )
        return large[:, 0].byte().numpy()


def _whole_batches(missing: set[int], n: int) -> list[int]:
    """All images of the batches in which one is missing.

    Rounding may depend on what stands beside an image, and a resumed run has to find
    the same masks.
    """
    touched = {index // BATCH for index in missing}
    return [index for index in range(n) if index // BATCH in touched]


def _write(path: Path, ids: np.ndarray, binary: bool) -> None:
    """One object is stored as 0 and 255, so that any viewer shows it."""
    write_map(path, ids * np.uint8(255) if binary else ids)
