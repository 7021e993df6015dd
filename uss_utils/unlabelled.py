"""Images without their labels: what self-supervised pretraining looks at."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from uss_utils import datasets
from uss_utils.datasets.scenes import canvas, split_start
from uss_utils.datasets.transforms import Transform

SCENE_KINDS = {"scenes": "street", "scenes-aerial": "aerial"}


class Unlabelled:
    """Images of one or more data sets without their labels, in memory.

    Args:
        images: uint8 arrays (H, W, 3), all of one size.
        upright: which of them have an up (views from above have none); None: all.

    Raises:
        ValueError: there are no images, or their sizes differ.
    """

    def __init__(self, images: list[np.ndarray], upright: list[bool] | None = None):
        sizes = {image.shape for image in images}
        if len(sizes) != 1:
            raise ValueError(
                f"pretraining needs images of one size, got {sorted(sizes)[:4]}; "
                "choose a transform that resizes them"
                if sizes
                else "pretraining got no images"
            )
        self.images = torch.from_numpy(np.stack(images))
        self.upright = torch.tensor(
            [True] * len(images) if upright is None else upright
        )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        """Images (B, H, W, 3) uint8."""
        return self.images[indices]


def gather(
    names: Sequence[str],
    most: int,
    *,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    root: str | Path | None = None,
) -> Unlabelled:
    """The images of data sets, their labels left behind.

    The scenes come as uncut renders of their "pretrain" range, one and a half times as
    large as the scenes of the other splits, so that the position of a window varies
    from visit to visit. Other sets give the images of their train split.

    Args:
        names: data sets, as :func:`uss_utils.datasets.load` knows them.
        most: images per data set, at most.
        image_size: (H, W) that photographs are resized to; None keeps their size.
        seed: of the scenes.
        root: folder of a data set of photographs.

    Raises:
        ValueError: unknown data set, no images, or images of several sizes.
        FileNotFoundError: the folder of the data set is absent.
    """
    images: list[np.ndarray] = []
    upright: list[bool] = []
    kinds = [SCENE_KINDS[name] for name in names if name in SCENE_KINDS]
    if kinds:
        images += _renders(kinds, most, seed)
        upright += [kind != "aerial" for kind in kinds] * most
    transform = Transform("resize", image_size) if image_size else Transform()
    for name in (name for name in names if name not in SCENE_KINDS):
        photographs = datasets.load(name, "train", root, limit=most)
        images += [
            transform.apply_image(photographs.read(i)[0])
            for i in range(len(photographs))
        ]
        upright += [datasets.DATASETS[name].upright] * len(photographs)
    return Unlabelled(images, upright)


def _renders(kinds: list[str], n: int, seed: int) -> list[np.ndarray]:
    jobs = [(kind, i, seed) for i in range(n) for kind in kinds]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        drawn = pool.map(_render, jobs, chunksize=64)
        return list(tqdm(drawn, total=len(jobs), desc="scenes", mininterval=1))


def _render(job: tuple[str, int, int]) -> np.ndarray:
    kind, i, seed = job
    return canvas(split_start("pretrain") + i, seed, kind).image
