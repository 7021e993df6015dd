"""PriMaPs' masks: extraction, clean-up, the CRF on maps of ids."""

import torch
import torch.nn.functional as F

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from tests.benchmarks.timing import wall_seconds
from uss_utils import crf
from uss_utils.environment import generator
from uss_utils.methods.primaps import clean_masks, propose_masks, refine_masks

SIDE, C = 40, 384


def maps(batch: int, blobs: int, seed: int = 0) -> torch.Tensor:
    """Features of images made of some regions, each around a direction of its own."""
    draw = generator(seed)
    centres = F.normalize(torch.randn(batch, blobs, C, generator=draw), dim=2)
    places = torch.rand(batch, blobs, 2, generator=draw) * SIDE
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 2, indexing="ij"), -1)
    distance = torch.cdist(grid.reshape(1, -1, 2).float(), places)
    own = distance.argmin(2)
    rows = centres.gather(1, own[..., None].expand(-1, -1, C))
    noise = torch.randn(rows.shape, generator=draw) * 0.03
    return (20 * (rows + noise)).movedim(2, 1).reshape(batch, C, SIDE, SIDE)


def eight() -> torch.Tensor:
    return torch.cat([maps(1, n, n) for n in (7, 8, 9, 10, 11, 12, 13, 13)])


def extraction():
    feat = eight()
    return lambda: propose_masks(feat)


def cleaning():
    found = propose_masks(eight())
    return lambda: clean_masks(found)


def pictures(n: int) -> torch.Tensor:
    small = (torch.rand(n, 10, 10, 3, generator=generator(1)) * 255).byte()
    return small.repeat_interleave(32, 1).repeat_interleave(32, 2)


def ids_of(n: int, labels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = clean_masks(propose_masks(maps(n, labels)))
    return ids, pictures(n), torch.full((n,), labels)


def refinement(labels: int):
    parts = ids_of(1, labels)
    return lambda: refine_masks(*parts)


def gain(n: int) -> float:
    """Of a process per core over one, by the clock."""
    parts = ids_of(n, 10)
    with crf.CRFPool() as pool:
        refine_masks(*(part[:2] for part in parts), pool=pool)  # the workers' start
        together = wall_seconds(lambda: refine_masks(*parts, pool=pool))
    return wall_seconds(lambda: refine_masks(*parts)) / together


SECTION = "primaps, section 11"
CRF = "CRF of one image"
CASES = (
    Case(
        *("extraction, per map", "8 maps 40 x 40 x 384", extraction),
        items=8,
        target=1.2 / 8,
        released=Released(f"{SECTION} (0.21 to 0.30)", 0.21),
    ),
    Case("clean-up", "8 maps 40 x 40", cleaning),
    *(
        Case(
            *(CRF, f"320 x 320, {labels} labels", refinement, (labels,)),
            repeats=3,
            released=Released(SECTION, seconds),
        )
        for labels, seconds in ((5, 0.26), (10, 0.44), (20, 1.16))
    ),
    Case("CRF, a process per core", "16 images", gain, (16,), unit="x"),
)

if __name__ == "__main__":
    raise SystemExit(alone("primaps_masks"))
