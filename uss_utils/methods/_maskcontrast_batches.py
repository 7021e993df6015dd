"""MaskContrast's pairs of views of small images, cut and recoloured by the batch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from uss_utils import ranks, views
from uss_utils.datasets.transforms import normalise_rgb
from uss_utils.methods._maskcontrast_data import (
    MAX_AREA,
    MIN_AREA,
    MIRROR,
    MOST_DRAWS,
    OWN_DRAWS,
    MaskedImages,
    Pair,
    draw_change,
    hopeless,
)
from uss_utils.photometric import recolour_fast


class TwoViewBatches:
    """Pairs of views of images of one size, all in memory, cut a batch at a time.

    Several times as fast as
    :class:`~uss_utils.methods._maskcontrast_data.TwoViewDataset`, with three
    simplifications: crops are not antialiased where a view is smaller than its box, hue
    turns colours about the axis of greys, and values are clamped to [0, 1] only once.

    Args:
        images: as there, all of one size.
        masks: likewise.
        size: side of a view in pixels.
        min_area: share of a view that objects have to exceed.
        max_area: share that they have to stay below.
        scale: range of a view's share of its image's area.

    Raises:
        ValueError: no image has a mask, sizes differ, or the numbers of both do.
    """

    def __init__(
        self,
        images: Any,
        masks: Any,
        size: int = 128,
        min_area: float = MIN_AREA,
        max_area: float = MAX_AREA,
        scale: tuple[float, float] = views.SCALE,
    ):
        source = MaskedImages(images, masks)
        maps = [source.mask(i) for i in source.items]
        sizes = sorted({mask.shape for mask in maps})
        if len(sizes) > 1:
            raise ValueError(
                f"batches in memory need images of one size, got {sizes[:3]}; give the "
                "data set a transform, or use TwoViewDataset"
            )
        pixels = [source.image(i, sizes[0]) for i in source.items]
        self.images = torch.from_numpy(np.stack(pixels))
        ids = torch.from_numpy(np.stack(maps))
        # Masks are read at random places: small ones stay in the cache.
        self.masks = ids.byte() if 0 <= ids.min() and ids.max() < 256 else ids
        self.size, self.limits, self.scale = size, (min_area, max_area), scale

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Pair:
        """One batch of pairs, a pure function of indices and generator.

        Args:
            indices: of the whole batch, int64, shape (B,).
            generator: CPU generator, the same in all processes.

        Returns:
            ``view_q`` and ``view_k``, normalised, (b, 3, size, size), and their masks
            ``mask_q`` and ``mask_k``, int64 (b, size, size): this process's share.

        Raises:
            ValueError: an image's views do not pass the area gate, nor do others'.
        """
        rows, boxes, masks = self._accepted(indices, generator)
        own = ranks.share(len(rows))
        images = self.images[rows[own]].permute(0, 3, 1, 2).float().div_(255)
        pair = {}
        for k, name in enumerate("qk"):
            flip = torch.rand(len(rows), 2, generator=generator) < MIRROR
            changes = [draw_change(generator) for _ in rows]
            flip = flip[own]
            flip[:, 1] = False  # never upside down
            # From top, left, height, width to left, top, width, height.
            box = boxes[own, k][:, [1, 0, 3, 2]].float()
            view = views.crop(images, box, flip, self.size)
            mask = masks[own, k]
            mask = torch.where(flip[:, :1, None], mask.flip(-1), mask)
            pair[f"view_{name}"] = normalise_rgb(recolour_fast(view, changes[own]))
            pair[f"mask_{name}"] = mask.long()
        return pair

    def _accepted(
        self, indices: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B,), boxes (B, 2, 4) and cropped masks (B, 2, size, size)."""
        rows, n = indices.clone(), len(indices)
        boxes = torch.empty(n, 2, 4, dtype=torch.int64)
        masks = self.masks.new_empty(n, 2, self.size, self.size)
        sizes = torch.tensor(self.images.shape[1:3])
        waiting = torch.arange(n)
        low, high = (torch.tensor(limit) for limit in self.limits)
        for drawn in range(MOST_DRAWS):
            if drawn >= OWN_DRAWS:
                others = torch.randint(len(self), waiting.shape, generator=generator)
                rows[waiting] = others
            box = views.draw_resized_crops(
                sizes.expand(2 * len(waiting), 2), generator, scale=self.scale
            ).unflatten(0, (-1, 2))
            crops = self._cropped(rows[waiting], box)
            areas = (crops > 0).float().mean((-2, -1))
            boxes[waiting], masks[waiting] = box, crops
            waiting = waiting[~((areas > low) & (areas < high)).all(1)]
            if not len(waiting):
                return rows, boxes, masks
        raise ValueError(hopeless(*self.limits, areas[-1].tolist()))

    def _cropped(self, rows: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (m, 2, 4) cut out of masks, (m, 2, size, size), nearest neighbour."""
        centre = (torch.arange(self.size) + 0.5) / self.size
        y, x = (
            (boxes[..., i, None] + (boxes[..., i + 2, None] * centre).floor()).long()
            for i in (0, 1)
        )
        return self.masks[rows[:, None, None, None], y[..., None], x[..., None, :]]
