"""MaskContrast's training data: two views of an image and of its object mask.

Both views are cut, mirrored and recoloured independently; a pair is used only if the
object covers enough and not too much of either (the area gate). Masks are integer maps,
0 background, 1..n objects; a binary mask has one object.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from uss_utils import photometric, ranks, views
from uss_utils.datasets import SegmentationDataset
from uss_utils.datasets.transforms import nearest_indices, normalise_rgb
from uss_utils.environment import generator as generator_of
from uss_utils.photometric import Change, recolour, uniform

SIZE = 224  # pixels
MIN_AREA, MAX_AREA = 0.01, 0.99  # shares of a view
OWN_DRAWS = 3  # pairs drawn of an image before others take its place
MOST_DRAWS = 1000  # a data set of which so many draws fail has no usable masks
STRENGTHS = (0.4, 0.4, 0.4, 0.1)  # of brightness, contrast, saturation, hue
JITTER, GREY, MIRROR = 0.8, 0.2, 0.5  # probabilities

Pair = dict[str, Tensor]
# A pair as drawn: whatever describes it, and the shares that the object covers.
Draw = Callable[[bool], tuple[Any, Sequence[float]]]


def draw_accepted(
    draw: Draw, min_area: float = MIN_AREA, max_area: float = MAX_AREA
) -> Any:
    """Draw pairs of views until the object's area is in range in both.

    Args:
        draw: called with whether another image has to take the image's place (after
            three failures, another one each time); returns a pair and the share that
            the object covers in each of its views.
        min_area: every share has to be above it (in single precision, as published).
        max_area: every share has to be below it.

    Returns:
        The first accepted pair.

    Raises:
        ValueError: a thousand draws failed.
    """
    low, high = np.float32(min_area), np.float32(max_area)
    for drawn in range(MOST_DRAWS):
        pair, areas = draw(drawn >= OWN_DRAWS)
        if all(low < np.float32(area) < high for area in areas):
            return pair
    raise ValueError(hopeless(min_area, max_area, areas))


def hopeless(min_area: float, max_area: float, areas: Sequence[float]) -> str:
    """What is said when a thousand draws failed, the last with these areas."""
    last = " and ".join(f"{area:.3f}" for area in areas)
    return (
        f"no pair of views passes the area gate: of {MOST_DRAWS} draws none covers "
        f"between {min_area} and {max_area} of both views with objects (the last "
        f"{last}). Look at the masks: 0 is background, every id above 0 an object; "
        "empty masks and masks of whole images cannot be trained on"
    )


def draw_change(generator: torch.Generator) -> Change:
    """Jitter (p = 0.8) and grey (p = 0.2) of one view."""
    return photometric.draw_change(STRENGTHS, JITTER, GREY, generator)


def crop_mask(mask: np.ndarray, box: Sequence[int], size: int) -> np.ndarray:
    """Cut a box out of a mask and resize it by Pillow's nearest neighbour.

    Args:
        mask: ids, shape (H, W).
        box: top, left, height, width in pixels.
        size: side of the result.

    Returns:
        Same type, shape (size, size).
    """
    top, left, height, width = box
    rows, columns = nearest_indices(height, size), nearest_indices(width, size)
    return mask[top + rows[:, None], left + columns]


def crop_pair(
    image: np.ndarray, mask: np.ndarray, box: Sequence[int], size: int, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The same crop of an image (bilinear, antialiased) and its mask (nearest).

    Args:
        image: uint8, shape (H, W, 3).
        mask: ids, shape (H, W).
        box: top, left, height, width in pixels.
        size: side of the results.
        flip: mirror both left-right.

    Returns:
        uint8 (size, size, 3) and ids (size, size).
    """
    top, left, height, width = box
    cut = Image.fromarray(image[top : top + height, left : left + width])
    crop = np.array(cut.resize((size, size), Image.Resampling.BILINEAR))
    ids = crop_mask(mask, box, size)
    step = -1 if flip else 1
    return np.ascontiguousarray(crop[:, ::step]), np.ascontiguousarray(ids[:, ::step])


class MaskedImages:
    """Images and their masks, read one by one; images without a mask are left out.

    Args:
        images: a data set, seen through its own transform, or uint8 arrays (H, W, 3).
        masks: integer or bool arrays (H, W), or what has ``read(indices)``, which gives
            (n, H, W), and ``has(index)``, which is false for images without a mask.

    Attributes:
        items: positions of the images that have a mask.
    """

    def __init__(self, images: Any, masks: Any):
        self.images, self.masks = images, masks
        if not hasattr(masks, "read") and len(images) != len(masks):
            raise ValueError(
                f"{len(masks)} masks for {len(images)} images; give one per image"
            )
        has = getattr(masks, "has", lambda index: True)
        self.items = [i for i in range(len(images)) if has(i)]
        if not self.items:
            raise ValueError(f"none of the {len(images)} images has a mask")

    def mask(self, index: int) -> np.ndarray:
        """Ids of one image, integers (H, W)."""
        stored = hasattr(self.masks, "read")
        mask = self.masks.read([index])[0] if stored else self.masks[index]
        mask = np.asarray(mask)
        if mask.ndim != 2 or mask.dtype.kind not in "iub":
            raise ValueError(
                f"the mask of {self._name(index)} is {mask.dtype} of shape "
                f"{mask.shape}; expected integers (H, W): 0 background, 1..n objects"
            )
        return mask.view(np.uint8) if mask.dtype == bool else mask

    def image(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Pixels of one image, uint8 (H, W, 3), whose mask has the given size."""
        if isinstance(self.images, SegmentationDataset):
            pixels = self.images.read_image(index)
            image = self.images.transform.apply_image(pixels)
        else:
            image = np.asarray(self.images[index])
        if image.shape[:2] != size:
            raise ValueError(
                f"sizes differ: {self._name(index)} has {image.shape[0]}x"
                f"{image.shape[1]} pixels (height x width), its mask {size[0]}x"
                f"{size[1]}; make the masks anew, with the geometry of the images"
            )
        return image

    def _name(self, index: int) -> str:
        known = isinstance(self.images, SegmentationDataset)
        return f"image {self.images.item_name(index) if known else index}"


class TwoViewDataset(Dataset):
    """Pairs of views of images of any size, read when they are asked for.

    Draws come from torch generators only; :meth:`draw` gives each item one of its own,
    so that threads change nothing.

    Args:
        images: a data set, seen through its own transform, or uint8 arrays (H, W, 3).
        masks: integer maps (H, W), 0 background, 1..n objects, or bool ones; or stored
            masks with ``read(indices)`` and ``has(index)``, whose missing ones leave
            their images out.
        size: side of a view in pixels.
        min_area: share of a view that objects have to exceed.
        max_area: share that they have to stay below.
        generator: what ``dataset[i]`` draws from; a loader's workers draw from their
            own seeds instead.
        threads: that read the items of a batch.
        scale: range of a view's share of its image's area.

    Raises:
        ValueError: no image has a mask, or the numbers of both differ.
    """

    def __init__(
        self,
        images: Any,
        masks: Any,
        size: int = SIZE,
        min_area: float = MIN_AREA,
        max_area: float = MAX_AREA,
        generator: torch.Generator | None = None,
        threads: int = 4,
        scale: tuple[float, float] = views.SCALE,
    ):
        self.source = MaskedImages(images, masks)
        self.size, self.limits, self.scale = size, (min_area, max_area), scale
        self.generator = generator or generator_of(0)
        self.threads = threads
        self._worker: torch.Generator | None = None

    def __len__(self) -> int:
        return len(self.source.items)

    def __getitem__(self, index: int) -> Pair:
        """One pair.

        Returns:
            ``view_q`` and ``view_k``, normalised, (3, size, size), and their masks
            ``mask_q`` and ``mask_k``, int64 (size, size).

        Raises:
            ValueError: no views pass the area gate, or a mask does not fit its image.
        """
        worker = get_worker_info()
        if worker is None:
            return self._pair(index, self.generator)
        # A copied generator would make all workers, in all epochs, draw the same.
        if self._worker is None:
            self._worker = generator_of(worker.seed)
        return self._pair(index, self._worker)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Pair:
        """Several pairs as one batch, a pure function of indices and generator.

        Args:
            indices: of the whole batch, int64, shape (B,).
            generator: CPU generator, the same in all processes.

        Returns:
            As for one pair, with a first axis: those of this process's share.

        Raises:
            ValueError: as for one pair.
        """
        seeds = torch.randint(2**62, (len(indices),), generator=generator).tolist()
        jobs = list(zip(indices.tolist(), map(generator_of, seeds), strict=True))
        jobs = jobs[ranks.share(len(jobs))]
        with ThreadPoolExecutor(max(1, min(self.threads, len(jobs)))) as pool:
            pairs = list(pool.map(lambda job: self._pair(*job), jobs))
        return {key: torch.stack([pair[key] for pair in pairs]) for key in pairs[0]}

    def _pair(self, index: int, generator: torch.Generator) -> Pair:
        index, mask, boxes = draw_accepted(self._drawer(index, generator), *self.limits)
        image = self.source.image(index, mask.shape)
        pair = {}
        for name, box in zip("qk", boxes, strict=True):
            flip = uniform(0, 1, generator) < MIRROR
            crop, ids = crop_pair(image, mask, box, self.size, flip)
            rgb = torch.from_numpy(crop).movedim(-1, 0).float().div_(255)
            view = recolour(rgb[None], [draw_change(generator)])[0]
            pair[f"view_{name}"] = normalise_rgb(view)
            pair[f"mask_{name}"] = torch.from_numpy(ids.astype(np.int64))
        return pair

    def _drawer(self, index: int, generator: torch.Generator) -> Draw:
        """Draws boxes for both views, looking at masks alone: most draws may fail."""
        items = self.source.items
        index = items[index]
        mask = self.source.mask(index)

        def draw(another: bool) -> tuple[tuple, list[float]]:
            nonlocal index, mask
            if another:
                chosen = torch.randint(len(items), (), generator=generator)
                index = items[int(chosen)]
                mask = self.source.mask(index)
            sizes = torch.tensor([mask.shape] * 2)
            boxes = views.draw_resized_crops(sizes, generator, scale=self.scale)
            boxes = boxes.tolist()
            areas = [(crop_mask(mask, box, self.size) > 0).mean() for box in boxes]
            return (index, mask, boxes), areas

        return draw
