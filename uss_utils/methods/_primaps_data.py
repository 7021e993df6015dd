"""What PriMaPs-EM trains on: features or codes, their mirror images, masks, views."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from uss_utils import ranks
from uss_utils.coded import Coded
from uss_utils.datasets.base import Mirrored
from uss_utils.environment import generator
from uss_utils.heads import Standardise
from uss_utils.learning import Material
from uss_utils.methods._primaps_cache import MaskCache
from uss_utils.methods._primaps_views import draw_changes, student_view
from uss_utils.segmenter import Segmenter
from uss_utils.sources import FeatureSource


@dataclass(kw_only=True)
class MaskedMaterial(Material):
    """Material with the mask proposals of every image.

    Attributes:
        masks: mask ids of every image.
        split: fixed map of the backbone's features that were split into these masks.
        mirrored: features of the mirrored images; None where nothing is kept.
        base: the model whose code is grouped; None: the features are.
    """

    masks: MaskCache
    split: Standardise
    mirrored: FeatureSource | None
    base: Segmenter | None

    def x(self, inputs: Tensor) -> Tensor:
        """What is grouped, (B, C, h, w), of an "input"."""
        return self.centred(self.source.feat(inputs))

    def centred(self, feat: Tensor) -> Tensor:
        """Features or codes with the fixed map applied, never in half precision."""
        with torch.autocast(feat.device.type, enabled=False):
            return self.standardise(feat)

    def batches(self) -> Iterator[tuple[range, Tensor]]:
        """All of it in order: (rows, x) on the training device."""
        for rows, feat in self.source.batches():
            yield rows, self.centred(feat.to(self.device))

    def some_batches(self, n_images: int, seed: int) -> Iterator[Tensor]:
        """Features of random images, at most so many, 32 at a time."""
        order = torch.randperm(len(self.source), generator=generator(seed))
        for indices in order[:n_images].split(32):
            yield self.x(self.source.inputs(indices).to(self.device))


def material_of(
    plain: Material,
    masks: MaskCache,
    split: Standardise,
    base: Segmenter | None,
    cache: str,
) -> MaskedMaterial:
    """Material of features, or of the code of a trained model, and of their mirrors.

    Args:
        plain: features, and the map that standardises them.
        masks: of the same images.
        split: see :class:`MaskedMaterial`.
        base: the model whose code is grouped, or None.
        cache: see :meth:`uss_utils.sources.FeatureSource.open`.
    """
    source, fixed = plain.source, plain.standardise
    if base is not None:
        coded = Coded(base.backbone, base.head)
        source = FeatureSource.open(coded, plain.dataset, cache=cache)
        fixed = Standardise(torch.zeros(coded.dim)).to(plain.device)
    mirrored = None
    if source.where != "images":
        mirrored = FeatureSource.open(
            source.backbone, Mirrored(plain.dataset), cache=source.where
        )
    return MaskedMaterial(
        dataset=plain.dataset,
        source=source,
        standardise=fixed,
        device=plain.device,
        masks=masks,
        split=split,
        mirrored=mirrored,
        base=base,
    )


class Views:
    """Images, mirrored or not, with masks and labels, as ``training.fit`` draws them.

    Args:
        material: see :class:`MaskedMaterial`.
        students: bring the pixels, of which the student view is made.
    """

    def __init__(self, material: MaskedMaterial, students: bool):
        self.material, self.students = material, students

    def __len__(self) -> int:
        return len(self.material.source)

    def draw(self, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch in which every image is mirrored with probability 1/2.

        Returns:
            "input" of the teacher view, "masks" uint8 (B, H, W) with 255 = none,
            "label" int64 (B, H, W), and "image" (b, 3, H, W) for student views: this
            process's share, see :meth:`FeatureSource.images`.
        """
        material, source = self.material, self.material.source
        turned = torch.rand(len(indices), generator=generator) < 0.5
        batch = {"masks": _turn(material.masks.batch(indices), turned)}
        image = None
        if self.students or source.where == "images":
            own = ranks.share(len(indices))
            image = _turn(source.images(indices), turned[own])
        batch["label"] = _turn(source.labels(indices), turned)
        if self.students:
            batch["image"] = image
        if source.where == "images":
            return batch | {"input": image}
        inputs = source.inputs(indices)
        if turned.any():
            inputs[turned] = material.mirrored.inputs(indices[turned])
        return batch | {"input": inputs}


def _turn(maps: Tensor, turned: Tensor) -> Tensor:
    """Mirror the chosen maps of a batch (B, ..., W)."""
    chosen = turned.reshape(-1, *[1] * (maps.dim() - 1))
    return torch.where(chosen, maps.flip(-1), maps)


@torch.no_grad()
def student_x(
    material: MaskedMaterial, images: Tensor, n: int, draw: torch.Generator
) -> Tensor:
    """What is grouped of the augmented views of a batch.

    Args:
        material: see :class:`MaskedMaterial`.
        images: this process's share of the batch, normalised, (b, 3, H, W).
        n: images of the whole batch.
        draw: CPU generator, equal in all processes.

    Returns:
        Shape (n, C, h, w).
    """
    backbone = material.source.backbone.to(images.device)
    views = student_view(images, changes=draw_changes(n, draw)[ranks.share(n)])
    return material.centred(ranks.gather_rows(backbone.features(views).float()))
