"""What HP trains on: images with their neighbours' weights, twins, reference pools."""

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils import environment, ranks
from uss_utils.learning import Material, plain
from uss_utils.local_attention import split_weights
from uss_utils.methods._hp_network import HPModel
from uss_utils.photometric import draw_twins, photometric_twin
from uss_utils.positives import pick_patches
from uss_utils.sources import FeatureSource


class Settings(Protocol):
    """What is read of :class:`uss_utils.methods.hp.Config` here."""

    seed: int
    pool: int
    batch_size: int
    jitter_normalised: bool


class Views:
    """Images, and where a twin is needed their pixels, as ``training.fit`` reads them.

    Args:
        source: features, neighbour weights and labels by index.
        twins: bring the pixels.
    """

    def __init__(self, source: FeatureSource, twins: bool):
        self.source, self.twins = source, twins

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """What :meth:`FeatureSource.batch` returns and, for twins, "image".

        Images are those of this process's share, see :meth:`FeatureSource.images`.
        """
        batch = self.source.batch(indices)
        if self.twins and self.source.where == "images":
            return batch | {"image": batch["input"]}
        return batch | ({"image": self.source.images(indices)} if self.twins else {})


@torch.no_grad()
def fill_pools(cfg: Settings, material: Material, model: HPModel) -> None:
    """Both reference pools and the recent patches, before the first step."""
    draw = environment.generator(cfg.seed)
    rows = partial(pick_patches, size=cfg.pool, generator=draw)
    first = rows(_random_maps(cfg, material, draw))
    dropped = model.drop(first[:, :, None, None], draw)[:, :, 0, 0]
    model.pool_agnostic.copy_(F.normalize(dropped, dim=1))
    model.recent.copy_(rows(_random_maps(cfg, material, draw)))
    model.renew(draw)


def _random_maps(
    cfg: Settings, material: Material, draw: torch.Generator
) -> Iterator[Tensor]:
    """Features of the training images in random order, again and again."""
    while True:
        order = torch.randperm(len(material.source), generator=draw)
        for indices in order.split(cfg.batch_size):
            inputs = material.source.inputs(indices).to(material.device)
            yield guide(material, inputs)[0]


def guide(material: Material, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What the heads see of an "input", and its neighbour weights."""
    feat, weights = split_weights(material.source.feat(inputs))
    with torch.autocast(feat.device.type, enabled=False):
        return material.standardise(feat), weights


@torch.no_grad()
def twin_features(
    cfg: Settings, material: Material, images: Tensor, n: int, draw: torch.Generator
) -> Tensor:
    """Features of the photometric twins of a batch.

    Args:
        cfg: the method's ``Config``.
        material: from ``prepare``.
        images: this process's share of the batch, normalised, (b, 3, H, W).
        n: images of the whole batch.
        draw: CPU generator, equal in all processes.

    Returns:
        Shape (n, C, h, w).
    """
    changes = draw_twins(n, draw)[ranks.share(n)]
    twins = photometric_twin(
        images, changes=changes, on_normalised=cfg.jitter_normalised
    )
    backbone = plain(material.backbone).to(images.device)
    feat = ranks.gather_rows(backbone.features(twins).float())
    with torch.autocast(feat.device.type, enabled=False):
        return material.standardise(feat)
