"""Object masks on disk: one 8-bit PNG per image, found or made once.

Two kinds of folders: ``000000.png`` and so on, made by :func:`open_masks` from a frozen
backbone, with ``options.json`` beside them; and ``<name of the image>.png``, as
MaskContrast's release has them for VOC, where an image without a mask has no file.
Inside the package a mask holds 0 for the background and 1..n for the objects.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from uss_utils import mask_making
from uss_utils.datasets import voc
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.files import opened, reason, stored_values
from uss_utils.frozen import Frozen
from uss_utils.map_files import MapFiles
from uss_utils.mask_making import MaskRecipe

HALF = 127  # grey value above which a stored pixel belongs to the object
RELEASED = ("supervised", "unsupervised")


class Settings(Protocol):
    """What is read of a method's settings here."""

    masks: Literal["ncut", "attention", "degree", "supervised", "unsupervised"]
    mask_features: Literal["keys", "feat"]
    mask_map: Literal["none", "centre", "whiten"]
    mask_side: int | None
    tau: float
    objects: int
    distil: Literal["none", "linear", "conv"]
    refine: bool
    root: str | Path | None

    def load_mask_backbone(self, device: str | torch.device) -> Frozen:
        """What masks are made from."""


class MaskFiles(MapFiles):
    """Read access to the masks of a data set.

    Args:
        paths: file of every image, in the data set's order; images whose file is absent
            have no mask.
        binary: files hold one object, 255 on grey or black; otherwise ids.

    Raises:
        ValueError: no file is there.
    """

    what = "masks"

    def __init__(self, paths: Iterable[Path], binary: bool):
        super().__init__(paths)
        self.binary = binary
        folders = {path.parent for path in self.paths}
        stored = {path for folder in folders for path in folder.glob("*.png")}
        self._there = [path in stored for path in self.paths]
        if not any(self._there):
            first = self.paths[0] if self.paths else "the folder"
            raise ValueError(
                f"none of the {len(self.paths)} images has a mask: {first} and the "
                "others are absent"
            )

    def has(self, index: int) -> bool:
        """Whether an image has a mask, and an object in it."""
        return self._there[index] and bool((self.mask(index) > 0).any())

    def mask(self, index: int) -> Tensor:
        """Objects of one image, uint8 (H, W).

        Raises:
            ValueError: the image has no mask, or its file cannot be read.
        """
        return torch.from_numpy(self.stored(index))

    def decode(self, index: int) -> np.ndarray:
        """Objects of one image from its file, uint8 (H, W)."""
        return decode(self.paths[index], self.binary).numpy()


def decode(path: Path, binary: bool) -> Tensor:
    """Read one file.

    Files of one object hold 0 and 255, and grey values if they were resized; those that
    hold 0 and 1 alone, or bits, are understood as well.

    Args:
        path: a PNG of one channel.
        binary: it holds one object, not ids.

    Returns:
        uint8 (H, W): 0 background, 1..n objects.

    Raises:
        ValueError: it is damaged, absent, or has several channels.
    """
    try:
        with opened(path, "mask") as file:
            stored = stored_values(file)
            values = np.array(file)
    except OSError as error:
        raise ValueError(
            f"{path} is no readable mask ({reason(error.__cause__ or error)}); delete "
            "it, and make or fetch it again"
        ) from error
    if values.ndim != 2 or values.dtype not in (np.uint8, np.bool_):
        raise ValueError(
            f"{path} holds {values.dtype} of shape {values.shape} instead of one "
            "channel of bytes; a mask is a grey picture, 0 outside of the object"
        )
    if values.dtype == np.bool_ or not binary:
        return torch.from_numpy(stored.astype(np.uint8))
    inside = stored > 0 if stored.max() <= 1 else values > HALF
    return torch.from_numpy(inside.astype(np.uint8))


def released(
    dataset: SegmentationDataset, root: str | Path | None, kind: str
) -> MaskFiles:
    """Masks that MaskContrast's release brings for VOC.

    Args:
        dataset: images of VOC as stored.
        root: folder of the data set.
        kind: "supervised" or "unsupervised".

    Raises:
        ValueError: another data set, or unknown kind.
        FileNotFoundError: the masks are not there.
    """
    if dataset.name != voc.NAME:
        raise ValueError(
            f"masks={kind!r} were released for {voc.NAME} alone, not for "
            f"{dataset.name}; use masks='ncut'"
        )
    folder = voc.saliency_dir(root, kind)
    names = [dataset.item_name(i) for i in range(len(dataset))]
    return MaskFiles([folder / f"{name}.png" for name in names], binary=True)


def open_masks(
    cfg: Settings,
    dataset: SegmentationDataset,
    *,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    progress: bool = False,
) -> MaskFiles:
    """The masks that a method's settings ask for; what is missing is made.

    Args:
        cfg: the settings.
        dataset: images of any sizes.
        device: where features are computed.
        folder: where made masks lie; None: a folder under the cache directory, named by
            content.
        progress: show a bar.

    Raises:
        ValueError: settings and data do not fit together, or no image has a mask.
        FileNotFoundError: released masks that are not there.
    """
    if cfg.masks in RELEASED:
        return released(dataset, cfg.root, cfg.masks)
    recipe = MaskRecipe(
        cfg.masks,
        cfg.mask_features,
        cfg.mask_map,
        cfg.tau,
        cfg.objects,
        distil=cfg.distil,
        refine=cfg.refine,
        side=cfg.mask_side,
    )
    backbone = cfg.load_mask_backbone(device)
    made = mask_making.make_masks(
        dataset, backbone, recipe, folder=folder, progress=progress
    )
    return MaskFiles(made, binary=cfg.objects == 1)
