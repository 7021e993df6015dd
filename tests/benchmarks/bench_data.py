"""Data: label maps, crops, views, neighbour lists."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from uss_utils import datasets
from uss_utils.datasets import crops
from uss_utils.datasets.cityscapes import Cityscapes
from uss_utils.datasets.labels import remap
from uss_utils.datasets.transforms import Transform
from uss_utils.datasets.turning import random_turn
from uss_utils.environment import generator
from uss_utils.methods._maskcontrast_batches import TwoViewBatches
from uss_utils.methods._maskcontrast_data import TwoViewDataset
from uss_utils.neighbours import nearest, nearest_batches


def label_map(dtype: str):
    """Fine ids of a photograph to coarse classes."""
    ids = np.random.default_rng(0).integers(0, 182, (480, 640)).astype(dtype)
    return lambda: remap(ids, "cocostuff27")


def frames(root: Path, n: int) -> Cityscapes:
    """Frames of Cityscapes' size: blurred noise, and labels in squares."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (64, 128, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((2048, 1024))
    ids = rng.integers(0, 34, (32, 64), dtype=np.uint8)
    label = Image.fromarray(ids).resize((2048, 1024), Image.Resampling.NEAREST)
    for kind, picture, end in (
        ("leftImg8bit", image, "leftImg8bit"),
        ("gtFine", label, "gtFine_labelIds"),
    ):
        folder = root / kind / "train" / "ulm"
        folder.mkdir(parents=True)
        for i in range(n):
            picture.save(folder / f"ulm_{i:06d}_000019_{end}.png")
    return Cityscapes("train", root)


def five_crops():
    """Reading, cutting and storing."""
    root = Path(tempfile.mkdtemp())
    data = frames(root, FRAMES)
    return lambda: crops.write_crops(data, root, processes=1, progress=False)


def stored_crops(read: str):
    """Reading images with their labels, or labels alone."""
    root = Path(tempfile.mkdtemp())
    crops.write_crops(frames(root, FRAMES), root, processes=1, progress=False)
    stored = crops.FiveCrops("cityscapes27", "train", root)
    return lambda: getattr(stored, read)(range(20))


def pairs_of_views(together: bool):
    """MaskContrast's pairs, of scenes in memory or image by image."""
    scenes = datasets.load("scenes", "train", limit=64)
    masks = [scenes.instances(i) for i in range(len(scenes))]
    rows, source = torch.arange(32), generator(0)
    pairs = TwoViewBatches(scenes, masks)
    if not together:
        pairs = TwoViewDataset(scenes, masks, size=128, threads=1)
    return lambda: pairs.draw(rows, source)


def probe_geometry(turn: bool):
    """What a linear probe of MaskContrast sees: turned, or squeezed."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
    label = rng.integers(0, 21, (375, 500))
    squeeze, source = Transform("resize", 512, "cubic"), generator(0)
    if turn:
        return lambda: random_turn(image, label, source)
    return lambda: squeeze(image, label)


def descriptors(n: int) -> torch.Tensor:
    """Random directions; made in place, so that the peak of memory tells something."""
    rows = torch.randn(n, 384, generator=generator(0))
    return rows.div_(rows.norm(dim=1, keepdim=True))


def neighbours(n: int, k: int):
    rows = descriptors(n)
    return lambda: nearest(rows, k)


def many_neighbours(n: int, k: int):
    """As many as COCO-Stuff has: memory must not grow with their square."""
    rows = descriptors(n)
    return lambda: [len(block) for block, *_ in nearest_batches(rows, k)]


FRAMES = 8
SECTION = "stego, section 10"
MAP = {"repeats": 31, "target": 0.002, "released": Released(SECTION, 0.069)}
CASES = (
    *(
        Case(f"label map, {dtype}", "640 x 480", label_map, (dtype,), **MAP)
        for dtype in ("uint8", "uint16", "int64")
    ),
    Case("five crops, per frame", "2048 x 1024", five_crops, items=FRAMES, repeats=1),
    Case("stored crops with labels", "20", stored_crops, ("batch",), repeats=3),
    Case("labels of stored crops", "20", stored_crops, ("labels",), repeats=3),
    Case(
        *("pairs of views, in memory", "32 of 128 x 128", pairs_of_views, (True,)),
        target=0.06,
    ),
    Case(
        *("pairs of views, one by one", "32 of 128 x 128", pairs_of_views, (False,)),
        repeats=3,
    ),
    Case("image squeezed", "375 x 500 to 512 x 512", probe_geometry, (False,)),
    Case("image turned and zoomed", "375 x 500", probe_geometry, (True,)),
    Case(
        *("30 nearest images", "14 875 x 384", neighbours, (14_875, 30)),
        repeats=3,
        target=3,
        released=Released(SECTION, 1.9),
    ),
    Case(
        *("8 nearest images", "248 145 x 384", many_neighbours, (248_145, 8)),
        repeats=1,
        slow=True,
    ),
)

if __name__ == "__main__":
    raise SystemExit(alone("data"))
