"""Speed of a STEGO training step from cached features, and of its parts, on one thread.

The authors' setting: 16 pairs, features 384 x 28 x 28 (ViT-S/8 at 224 x 224), 70 code
channels, 11 x 11 points, 5 random partners, 27 classes, labels at 224 x 224.

Run: ``python tests/benchmarks/bench_stego.py``
"""

import torch
from timing import cpu_seconds, show

from uss_utils.correspondence import CorrespondenceLoss
from uss_utils.environment import generator
from uss_utils.heads import SegmentationHead
from uss_utils.methods.stego import StegoTrainer
from uss_utils.readout import Readout

PAIRS, CHANNELS, GRID, DIM, CLASSES, SIZE = 16, 384, 28, 70, 27, 224


def main():
    torch.set_num_threads(1)
    draw = generator(0)

    def feat(channels=CHANNELS):
        return torch.randn(PAIRS, channels, GRID, GRID, generator=draw)

    label = torch.randint(-1, CLASSES, (PAIRS, SIZE, SIZE), generator=draw)
    batch = {"input": feat(), "positive": feat(), "label": label}
    kept = feat().half()  # as a cache on disk holds them

    def read():
        rows = torch.randperm(PAIRS, generator=draw)
        return {name: kept[rows].float() for name in ("input", "positive")}

    trainer = StegoTrainer(
        SegmentationHead(CHANNELS, DIM),
        Readout(DIM, CLASSES, CLASSES, draw),
        CorrespondenceLoss((0.67, 0.25, 0.63), (0.08, 0.02, 0.66)),
        guide=lambda inputs: inputs,
    ).train()
    optimisers = trainer.optimisers().values()

    def step():
        for optimiser in optimisers:
            optimiser.zero_grad()
        trainer.step(read() | {"label": label}, draw)["loss"].backward()
        for optimiser in optimisers:
            optimiser.step()

    codes = [feat(DIM).requires_grad_() for _ in range(2)]

    def loss():
        maps = (batch["input"], batch["positive"], *codes)
        trainer.loss(*maps, generator=draw)[0].backward()

    def head():
        found = [trainer.head(batch[name], draw) for name in ("input", "positive")]
        sum(code.sum() for code in found).backward()

    def probes():
        sum(trainer.readout.losses(codes[0], batch["label"]).values()).backward()

    show("one step, 16 pairs, from cached features", cpu_seconds(step), 1.0)
    show("  features of both views, from float16", cpu_seconds(read))
    show("  head on both views, forward and backward", cpu_seconds(head))
    show("  correspondence loss, forward and backward", cpu_seconds(loss), 0.18)
    show("  both probes, labels 224 x 224", cpu_seconds(probes))


if __name__ == "__main__":
    main()
