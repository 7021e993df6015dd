"""Saliency masks on one thread: the normalised cut, and masks of a data set on disk.

The target is for one image of 28 x 28 patches; a dense generalised solver takes 57 ms.
Features are keys of the embedded backbone on generated scenes. Set OMP_NUM_THREADS=1:
the dense solver heeds nothing else.
"""

import tempfile
import time

import torch

from tests.benchmarks.timing import cpu_seconds, show
from uss_utils import backbones, crf
from uss_utils.datasets.scenes import Scenes
from uss_utils.mask_making import MaskRecipe, make_masks
from uss_utils.saliency import affinity, ncut_eigenvector, ncut_objects, ncut_saliency

B, GRID, TARGET = 8, (28, 28), 0.020


def keys(backbone) -> torch.Tensor:
    """Of every patch of B images, shape (B, N, C)."""
    images, _ = Scenes(n=B, size=8 * GRID[0]).batch(range(B))
    return backbone(images, keys=True).keys.flatten(2).mT.contiguous()


def cuts(features: torch.Tensor, name: str) -> None:
    alone = cpu_seconds(lambda: [ncut_saliency(f, GRID) for f in features]) / B
    show(f"cut, features {name}, one by one, per image", alone, TARGET)
    batch = cpu_seconds(lambda: ncut_saliency(features, GRID)) / B
    show(f"cut, features {name}, batch of {B}, per image", batch, TARGET)


def masks_on_disk(backbone, refine: bool) -> None:
    scenes = Scenes(n=64)
    scenes.batch(range(len(scenes)))  # drawn beforehand
    recipe = MaskRecipe(features="feat", fixed="whiten", objects=3, refine=refine)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        make_masks(scenes, backbone, recipe, folder=folder, workers=1)
        taken = time.perf_counter() - begun
    how = "with the CRF" if refine else "without CRF"
    print(f"masks of scenes, 3 objects, {how}: {len(scenes) / taken:.1f} images/s")


def main() -> None:
    torch.set_num_threads(1)
    backbone = backbones.load("vit_tiny_scenes")
    features = keys(backbone)
    cuts(features, "as they are")
    cuts(features - features.mean((0, 1)), "centred")
    graph = affinity(features)
    for method in ("power", "eigh"):
        found = cpu_seconds(lambda m=method: ncut_eigenvector(graph, m), 3) / B
        show(f"eigenvector alone, {method}, per image", found)
    several = cpu_seconds(lambda: ncut_objects(features, GRID, 3), 3) / B
    show("three objects, per image", several)
    masks_on_disk(backbone, False)
    if crf.available():
        masks_on_disk(backbone, True)


if __name__ == "__main__":
    main()
