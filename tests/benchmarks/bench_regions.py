"""Regions on one thread: an image of 320 x 320 pixels, its steps, and files on disk.

Generated scenes stand for photographs, which have a third fewer superpixels.
"""

import tempfile
import time

import numpy as np

from tests.benchmarks.timing import cpu_seconds, show
from uss_utils.datasets.scenes import Scenes
from uss_utils.region_files import RegionRecipe, make_regions
from uss_utils.regions import (
    SIDE,
    contour_strength,
    cut_tree,
    image_tree,
    raised_threshold,
    regions_of,
    superpixels,
    ultrametric_tree,
)

N, TARGET = 4, 0.3


def per_image(name: str, call, images, target: float | None = None) -> None:
    taken = cpu_seconds(lambda: [call(*parts) for parts in images], 3) / len(images)
    show(f"{name}, per image", taken, target)


def steps() -> None:
    scenes = Scenes(n=N, size=SIDE)
    images = [(scenes.read_image(i),) for i in range(N)]
    per_image("regions in all", regions_of, images, TARGET)
    per_image("contours", contour_strength, images)
    found = [contour_strength(*parts) for parts in images]
    per_image("superpixels", superpixels, [(strength,) for _, strength in found])
    parts = [(strength, superpixels(strength), lab) for lab, strength in found]
    print(f"superpixels: {np.mean([ids.max() + 1 for _, ids, _ in parts]):.0f}")
    per_image("tree", ultrametric_tree, parts)
    trees = [(image_tree(*image),) for image in images]
    per_image("cut", cut_tree, trees, 0.005)
    thresholds = np.linspace(0, 1, 101)
    per_image("101 counts", lambda tree: tree.count(thresholds), trees)
    per_image("threshold", lambda tree: raised_threshold(tree, 0.05, 128), trees)


def on_disk(recipe: RegionRecipe) -> None:
    scenes = Scenes(n=48)
    scenes.batch(range(len(scenes)))  # drawn beforehand
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        make_regions(scenes, recipe, folder=folder, workers=1)
        taken = time.perf_counter() - begun
    print(f"scenes of 128 px, side {recipe.side}: {len(scenes) / taken:.1f} images/s")


if __name__ == "__main__":
    steps()
    on_disk(RegionRecipe())
    on_disk(RegionRecipe(side=192))
