"""Settings of a method with a few images and quick stand-ins for what is not there.

Speed does not depend on what weights hold, and little on what images show: where a data
set or weights are absent, generated pictures of its size and random weights serve.
"""

import io
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from uss_utils import backbones
from uss_utils.cost_facts import Facts, Split
from uss_utils.datasets import info
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.scenes import scene
from uss_utils.datasets.transforms import Transform
from uss_utils.frozen import Frozen
from uss_utils.recipe import Recipe

# Files that a training begins from, and how it begins without: it is as slow.
ABSENT = {"start": "random", "first_stage": "", "region_folder": "", "base": None}
KEPT_BLOCKS = 2  # of a cut backbone: the last two, which methods look into
SIDE = 256  # pixels of the generated picture that a stand-in is enlarged from


class StandIn(SegmentationDataset):
    """Pictures of a data set's size and number of classes, decoded when they are read.

    Args:
        split: what is stood in for.
        number: of pictures.
        transform: geometry of the settings.
    """

    def __init__(self, split: Split, number: int, transform: Transform):
        row = info(split.dataset)
        labelled = bool(row.classes)
        super().__init__(
            *(split.dataset, split.split, row.classes, row.palette),
            transform,
            labelled,
        )
        self.number = number
        self.files: dict[int, bytes] = {}
        self.size = split.size

    def __len__(self) -> int:
        return self.number

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A generated scene, enlarged; its classes cover those of the data set."""
        drawn = scene(index, size=SIDE)
        if index not in self.files:
            file = io.BytesIO()
            self._enlarged(drawn.image).save(file, "JPEG")
            self.files[index] = file.getvalue()
        image = np.array(Image.open(io.BytesIO(self.files[index])))
        if not self.has_labels:
            return image, None
        label = self._enlarged(drawn.label.astype(np.uint8), Image.Resampling.NEAREST)
        label = np.array(label).astype(np.int64)
        return image, (label + index) % self.n_classes

    def _enlarged(
        self, pixels: np.ndarray, how: Image.Resampling = Image.Resampling.BICUBIC
    ) -> Image.Image:
        return Image.fromarray(pixels).resize(self.size[::-1], how)


class Networks:
    """Frozen networks by name, and how many images went through them.

    Args:
        cfg: the settings.
        cut: keep the last blocks of large networks alone: what the rest would take is
            measured once and added.

    Attributes:
        seen: (name, H, W) -> images that went through since it was last emptied.
        random: names of those whose weights are random ones.
    """

    def __init__(self, cfg: Recipe, cut: bool = False):
        self.cfg, self.cut = cfg, cut
        self.seen: dict[tuple[str, int, int], int] = {}
        self.random: set[str] = set()

    def load(self, name: str, device: str | torch.device = "cpu") -> Frozen:
        """A network as the settings load it, without asking the hub."""
        own = self.cfg.weights is not None and name == backbones.SHIPPED
        if own or name in (*backbones.TINY, *backbones.CONTROLS):
            network = Recipe.load_frozen(self.cfg, name, device)
        else:
            network = backbones.untrained(
                name, position=self.cfg.position, device=device
            )
            self.random.add(name)
        vit = getattr(network, "vit", None)
        if vit is not None:
            if self.cut and name == self.cfg.backbone:
                vit.blocks = vit.blocks[-KEPT_BLOCKS:]
                network.depth = len(vit.blocks)
            vit.patch_embed.proj.register_forward_pre_hook(self._counter(name))
        return network

    def _counter(self, name: str) -> Callable[..., None]:
        def count(_: torch.nn.Module, inputs: tuple[Tensor]) -> None:
            n, _, height, width = inputs[0].shape
            key = name, height, width
            self.seen[key] = self.seen.get(key, 0) + n

        return count


def stand_in(cfg: Recipe, found: Facts, networks: Networks, n: int, n_val: int):
    """The settings, with a sample of the images.

    Args:
        cfg: the settings.
        found: what they say.
        networks: load every network through these.
        n: training images.
        n_val: images that are scored.

    Returns:
        Settings of the same kind, whose images are no more than these.
    """
    base = type(cfg)

    class Sampled(base):
        """Settings of a few images; networks are counted."""

        def open(self, split: str) -> SegmentationDataset:
            if split == "train":
                return _sample(found.train, n, self.size, self.resample)
            size = self.size if self.eval_size is None else self.eval_size
            return _sample(found.val, n_val, size, self.eval_resample or self.resample)

        def open_whole(self) -> SegmentationDataset:
            return _sample(found.cut or found.train, n, None, None)

        open_images = open_whole

        def load_frozen(self, name: str, device="cpu") -> Frozen:
            return networks.load(name, device)

    values = {field.name: getattr(cfg, field.name) for field in fields(cfg)}
    values |= {
        name: value
        for name, value in ABSENT.items()
        if not Path(values.get(name) or "").expanduser().is_file()
    }
    values |= {"cache": found.place, "batch_size": min(cfg.batch_size, n)}
    if found.method == "hp":
        values |= {"warmup": 0, "pool": min(cfg.pool, 4 * n)}
    if found.reads_masks:
        values |= {"masks": "ncut", "mask_backbone": "vit_tiny_random"}
        values |= {"refine": False, "mask_side": 224}
    if found.method == "stego":
        values["neighbours"] = min(cfg.neighbours, n - 1)
    return Sampled(**{k: v for k, v in values.items() if hasattr(cfg, k)})


def _sample(
    split: Split, number: int, size: int | tuple[int, int] | None, resample: str | None
) -> SegmentationDataset:
    """A few images of a part of the data, evenly spaced, or pictures of their size."""
    if split.found is not None:
        places = np.linspace(0, split.number - 1, min(number, split.number))
        chosen = split.found.subset(places.round().astype(int))
        # Some methods score images as stored, whatever size they train at.
        stored = size is None and split.found.transform.kind != "none"
        return chosen.with_transform(Transform()) if stored else chosen
    if size is None:
        return StandIn(split, number, Transform())
    kind = "resize" if isinstance(size, tuple) else "center"
    return StandIn(split, number, Transform(kind, size, resample or "bilinear"))
