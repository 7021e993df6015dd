"""Small data sets and models that several tests share."""

import numpy as np
import torch

from uss_utils import backbones, ranks
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.transforms import Transform
from uss_utils.environment import generator
from uss_utils.heads import Standardise
from uss_utils.probes import ClusterProbe, LinearProbe
from uss_utils.segmenter import Segmenter

CLASSES = ("dark", "middle", "bright")
PALETTE = np.array([[10, 10, 10], [120, 120, 120], [250, 250, 250]], dtype=np.uint8)


class Stripes(SegmentationDataset):
    """Grey images of three brightness levels; the label is the level.

    Row blocks of four pixels are dark, middle, bright or ignored, in an order that
    depends on the image.
    """

    def __init__(self, n=6, split="train", labels=True, size=(16, 24), ignore=True):
        super().__init__("stripes", split, CLASSES, PALETTE, Transform(), labels)
        self.n, self.size, self.ignore = n, size, ignore

    def __len__(self):
        return self.n

    def read(self, index):
        levels = np.roll(np.arange(4) % 3, index).repeat(self.size[0] // 4)
        label = np.repeat(levels[:, None], self.size[1], 1).astype(np.int64)
        image = np.array([20, 128, 240], dtype=np.uint8)[label]
        image = np.repeat(image[..., None], 3, -1)
        if self.ignore:
            label[:, :2] = -1
        return image, label if self.has_labels else None


class Boxes(Stripes):
    """Grey pictures with one bright box each."""

    def read(self, index):
        image = np.full((*self.size, 3), 60, np.uint8)
        label = np.zeros(self.size, np.int64)
        top, left = 8 * (index % 3), 8 * (index % 4)
        image[top : top + 24, left : left + 24] = 40 * (index % 5) + 80
        label[top : top + 24, left : left + 24] = 1 + index % 2
        return image, label if self.has_labels else None


def boxes(n=8, labelled=True) -> Boxes:
    """Boxes of two classes on a background, 64 pixels a side."""
    return Boxes(n=n, labels=labelled, size=(64, 64), ignore=False)


def weights(model):
    """All weights of a model's head in one row."""
    return torch.cat([p.detach().flatten() for p in model.head.parameters()])


def grey_model(table=None, linear=True, classes=CLASSES, **options) -> Segmenter:
    """A model on pixel colours whose clusters are bright, dark, middle, in this order.

    Its linear probe is perfect.
    """
    levels = torch.tensor([240.0, 20.0, 128.0]) / 255
    probe = LinearProbe(3, 3)
    centres = (torch.tensor([20.0, 128.0, 240.0]) / 255)[:, None].expand(3, 3)
    probe.weight.data = centres[:, :, None, None].clone()
    probe.bias.data = -centres.square().sum(1) / 2
    return Segmenter(
        backbones.load("colour"),
        Standardise(torch.zeros(3)),
        ClusterProbe.from_centroids(levels[:, None].expand(3, 3), "euclidean"),
        probe if linear and classes else None,
        classes=classes,
        palette=PALETTE if classes else np.zeros((0, 3)),
        cluster_to_class=table,
        method="grey",
        preset="test",
        **options,
    )


def check_shares(pairs, sizes, monkeypatch):
    """Two processes draw a batch of five alike, and cut three and two of it.

    Args:
        pairs: has ``draw(indices, generator)``.
        sizes: rows that each has.
        monkeypatch: to be either process.
    """
    indices, draws = torch.tensor([0, 3, 1, 2, 3]), generator(0)
    whole = pairs.draw(indices, draws)
    cut = []
    for own in (slice(0, 3), slice(3, 5)):
        monkeypatch.setattr(ranks, "share", lambda n, own=own: own)
        drawn = generator(0)
        cut.append(pairs.draw(indices, drawn))
        assert torch.equal(drawn.get_state(), draws.get_state())
    for name, value in whole.items():
        parts = [part[name] for part in cut]
        assert [len(part) for part in parts] == sizes
        torch.testing.assert_close(torch.cat(parts), value)
