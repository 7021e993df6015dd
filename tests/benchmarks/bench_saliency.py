"""Saliency masks: the normalised cut, and masks of a data set on disk.

Features are keys of the embedded backbone on generated scenes, 28 x 28 patches.
"""

import tempfile

import torch

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from tests.benchmarks.timing import wall_seconds
from uss_utils import backbones
from uss_utils.datasets.scenes import Scenes
from uss_utils.mask_making import MaskRecipe, make_masks
from uss_utils.saliency import affinity, ncut_eigenvector, ncut_objects, ncut_saliency

B, GRID = 8, (28, 28)


def keys(centred: bool = False) -> torch.Tensor:
    """Of every patch of B images, shape (B, N, C)."""
    backbone = backbones.load("vit_tiny_scenes")
    images, _ = Scenes(n=B, size=8 * GRID[0]).batch(range(B))
    found = backbone(images, keys=True).keys.flatten(2).mT.contiguous()
    return found - found.mean((0, 1)) if centred else found


def cuts(together: bool, centred: bool):
    features = keys(centred)
    if together:
        return lambda: ncut_saliency(features, GRID)
    return lambda: [ncut_saliency(f, GRID) for f in features]


def eigenvector(method: str):
    graph = affinity(keys())
    return lambda: ncut_eigenvector(graph, method)


def objects():
    features = keys()
    return lambda: ncut_objects(features, GRID, 3)


def masks_on_disk(refine: bool) -> float:
    """Images per second by the clock."""
    backbone, scenes = backbones.load("vit_tiny_scenes"), Scenes(n=64)
    scenes.batch(range(len(scenes)))  # drawn beforehand
    recipe = MaskRecipe(features="feat", fixed="whiten", objects=3, refine=refine)
    folder = tempfile.mkdtemp()
    return len(scenes) / wall_seconds(
        lambda: make_masks(scenes, backbone, recipe, folder=folder, workers=1)
    )


SIZE = "28 x 28 patches"
SOLVER = Released("maskcontrast, section 9 (its solver)", 0.057)
MASKS = "masks of scenes, 3 objects"
CASES = (
    *(
        Case(
            *(f"cut, {features}{how}", SIZE, cuts, (together, features == "centred")),
            items=B,
            target=0.020,
            released=SOLVER,
        )
        for features in ("plain", "centred")
        for how, together in ((", one by one", False), (f", batch of {B}", True))
    ),
    Case("eigenvector, power", SIZE, eigenvector, ("power",), items=B, repeats=3),
    Case("eigenvector, dense", SIZE, eigenvector, ("eigh",), items=B, repeats=3),
    Case("three objects", SIZE, objects, items=B, repeats=3),
    Case(MASKS, "128 x 128, no CRF", masks_on_disk, (False,), unit="images/s"),
    Case(MASKS, "128 x 128, CRF", masks_on_disk, (True,), unit="images/s"),
)

if __name__ == "__main__":
    raise SystemExit(alone("saliency"))
