"""STEGO: a training step from cached features, and its parts.

The authors' setting: 16 pairs, features 384 x 28 x 28 (ViT-S/8 at 224 x 224), 70 code
channels, 11 x 11 points, 5 random partners, 27 classes, labels at 224 x 224.
"""

from collections.abc import Callable

import torch

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from uss_utils.correspondence import CorrespondenceLoss
from uss_utils.environment import generator
from uss_utils.heads import SegmentationHead
from uss_utils.methods.stego import StegoTrainer
from uss_utils.readout import Readout

PAIRS, CHANNELS, GRID, DIM, CLASSES, SIZE = 16, 384, 28, 70, 27, 224


def work(part: str) -> Callable:
    """A whole step, or one part of it."""
    draw = generator(0)

    def feat(channels=CHANNELS):
        return torch.randn(PAIRS, channels, GRID, GRID, generator=draw)

    label = torch.randint(-1, CLASSES, (PAIRS, SIZE, SIZE), generator=draw)
    batch = {"input": feat(), "positive": feat(), "label": label}
    kept = feat().half()  # as a cache on disk holds them
    trainer = StegoTrainer(
        SegmentationHead(CHANNELS, DIM),
        Readout(DIM, CLASSES, CLASSES, draw),
        CorrespondenceLoss((0.67, 0.25, 0.63), (0.08, 0.02, 0.66)),
        guide=lambda inputs: inputs,
    ).train()
    optimisers = trainer.optimisers().values()
    codes = [feat(DIM).requires_grad_() for _ in range(2)]

    def read():
        rows = torch.randperm(PAIRS, generator=draw)
        return {name: kept[rows].float() for name in ("input", "positive")}

    def step():
        for optimiser in optimisers:
            optimiser.zero_grad()
        trainer.step(read() | {"label": label}, draw)["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()

    def loss():
        maps = (batch["input"], batch["positive"], *codes)
        trainer.loss(*maps, generator=draw)[0].backward()

    def head():
        found = [trainer.head(batch[name], draw) for name in ("input", "positive")]
        sum(code.sum() for code in found).backward()

    def probes():
        sum(trainer.readout.losses(codes[0], batch["label"]).values()).backward()

    return {"step": step, "read": read, "head": head, "loss": loss, "probes": probes}[
        part
    ]


SECTION = "stego, section 10"
SIZES = "16 pairs, 384 x 28 x 28"
CASES = (
    Case(
        *("step from cached features", SIZES, work, ("step",)),
        target=1.0,
        released=Released(f"{SECTION} (from images)", 18.5),
    ),
    Case("- features from float16", SIZES, work, ("read",)),
    Case("- head, both ways", SIZES, work, ("head",)),
    Case(
        *("- correspondence loss, both ways", SIZES, work, ("loss",)),
        released=Released(SECTION, 0.18),
    ),
    Case("- both probes", "16 labels 224 x 224", work, ("probes",)),
)

if __name__ == "__main__":
    raise SystemExit(alone("stego"))
