"""Speed and memory of data: label maps, crops, views, neighbour lists.

Run: ``python tests/benchmarks/bench_data.py`` on an otherwise idle machine. With
``--large`` also the neighbour lists of all crops of COCO-Stuff, some ten minutes.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import cpu_seconds, show

from uss_utils import datasets
from uss_utils.datasets import crops
from uss_utils.datasets.cityscapes import Cityscapes
from uss_utils.datasets.labels import remap
from uss_utils.datasets.transforms import Transform
from uss_utils.datasets.turning import random_turn
from uss_utils.environment import generator, peak_memory_mb
from uss_utils.methods._maskcontrast_batches import TwoViewBatches
from uss_utils.methods._maskcontrast_data import TwoViewDataset
from uss_utils.neighbours import nearest, nearest_batches


def label_maps() -> None:
    """Fine ids of a photograph to coarse classes."""
    ids = np.random.default_rng(0).integers(0, 182, (480, 640))
    for dtype in (np.uint8, np.uint16, np.int64):
        label = ids.astype(dtype)
        seconds = cpu_seconds(lambda label=label: remap(label, "cocostuff27"), 31)
        show(f"label map 640x480, {label.dtype}", seconds, 0.002)


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


def five_crops() -> None:
    """Reading, cutting and storing, and reading labels alone."""
    with tempfile.TemporaryDirectory() as folder:
        root, n = Path(folder), 8
        data = frames(root, n)
        begun = time.process_time()
        crops.write_crops(data, root, processes=1, progress=False)
        show("five crops of a 2048x1024 frame", (time.process_time() - begun) / n)
        stored = crops.FiveCrops("cityscapes27", "train", root)
        rows = range(20)
        show("20 crops with labels", cpu_seconds(lambda: stored.batch(rows), 3))
        show("20 labels alone", cpu_seconds(lambda: stored.labels(rows), 3))


def pairs_of_views() -> None:
    """MaskContrast's pairs of 32 scenes, 128 x 128 pixels, and of larger images."""
    scenes = datasets.load("scenes", "train", limit=64)
    masks = [scenes.instances(i) for i in range(len(scenes))]
    rows, source = torch.arange(32), generator(0)
    fast = TwoViewBatches(scenes, masks)
    show(
        "32 pairs of views, in memory",
        cpu_seconds(lambda: fast.draw(rows, source)),
        0.06,
    )
    slow = TwoViewDataset(scenes, masks, size=128, threads=1)
    show("the same one by one", cpu_seconds(lambda: slow.draw(rows, source), 3))


def probe_geometry() -> None:
    """What a linear probe of MaskContrast sees: turned, then squeezed to 512 x 512."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
    label = rng.integers(0, 21, (375, 500))
    squeeze, source = Transform("resize", 512, "cubic"), generator(0)
    show("squeezed to 512x512", cpu_seconds(lambda: squeeze(image, label)))
    show("turned and zoomed", cpu_seconds(lambda: random_turn(image, label, source)))


def descriptors(n: int) -> torch.Tensor:
    """Random directions; made in place, so that the peak of memory tells something."""
    rows = torch.randn(n, 384, generator=generator(0))
    return rows.div_(rows.norm(dim=1, keepdim=True))


def neighbours() -> None:
    """As many images as Cityscapes has training crops."""
    rows = descriptors(14_875)
    show("8 nearest of 14875 x 384", cpu_seconds(lambda: nearest(rows, 8), 3), 3)


def many_neighbours(n: int = 248_145) -> None:
    """As many as COCO-Stuff has: memory must not grow with their square."""
    rows = descriptors(n)
    before, begun = peak_memory_mb(), time.process_time()
    for done, _ in enumerate(nearest_batches(rows, 8), start=1):
        if done == 4:
            per_block = (time.process_time() - begun) / done
            blocks = -(-n // 512)
            print(f"expected: {per_block * blocks:.0f} s", flush=True)
    show(f"8 nearest of {n} x 384", time.process_time() - begun)
    print(
        f"memory: {before:.0f} MB with the descriptors ({rows.nbytes / 1e6:.0f} MB), "
        f"at most {peak_memory_mb():.0f} MB; all cosines at once would take "
        f"{4 * n * n / 1e9:.0f} GB"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    label_maps()
    five_crops()
    pairs_of_views()
    probe_geometry()
    neighbours()
    if "--large" in sys.argv:
        many_neighbours()
