"""Regions of an image of 320 x 320 pixels, their steps, and files on disk.

Generated scenes stand for photographs, which have a third fewer superpixels.
"""

import tempfile

import numpy as np

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case
from tests.benchmarks.timing import wall_seconds
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

N = 4


def images() -> list[tuple]:
    scenes = Scenes(n=N, size=SIDE)
    return [(scenes.read_image(i),) for i in range(N)]


def work(call, prepare):
    """A step on all images; ``prepare`` makes its arguments of an image."""
    parts = [prepare(*image) for image in images()]
    return lambda: [call(*arguments) for arguments in parts]


def plain(image):
    return (image,)


def strength_of(image):
    return (contour_strength(image)[1],)


def parts_of(image):
    lab, strength = contour_strength(image)
    return strength, superpixels(strength), lab


def tree_of(image):
    return (image_tree(image),)


def counts(tree):
    return tree.count(np.linspace(0, 1, 101))


def threshold(tree):
    return raised_threshold(tree, 0.05, 128)


def on_disk(**settings) -> float:
    """Images per second by the clock."""
    scenes = Scenes(n=48)
    scenes.batch(range(len(scenes)))  # drawn beforehand
    recipe, folder = RegionRecipe(**settings), tempfile.mkdtemp()
    return len(scenes) / wall_seconds(
        lambda: make_regions(scenes, recipe, folder=folder, workers=1)
    )


def on_disk_small() -> float:
    return on_disk(side=192)


CASES = (
    *(
        Case(name, "320 x 320", work, (call, prepare), items=N, repeats=3, target=aim)
        for name, call, prepare, aim in (
            ("regions in all", regions_of, plain, 0.3),
            ("contours", contour_strength, plain, None),
            ("superpixels", superpixels, strength_of, None),
            ("tree", ultrametric_tree, parts_of, None),
            ("cut", cut_tree, tree_of, 0.005),
            ("101 counts", counts, tree_of, None),
            ("threshold", threshold, tree_of, None),
        )
    ),
    Case("files of scenes, by the clock", "side 320", on_disk, unit="images/s"),
    Case("files of scenes, by the clock", "side 192", on_disk_small, unit="images/s"),
)

if __name__ == "__main__":
    raise SystemExit(alone("regions"))
