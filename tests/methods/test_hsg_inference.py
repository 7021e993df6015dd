"""HSG at test time: canvas, segments, memory and vote, hierarchy, evaluation."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.transforms import Transform
from uss_utils.environment import generator
from uss_utils.hierarchy_network import HSGNet
from uss_utils.methods import _hsg_image
from uss_utils.methods._hsg_evaluation import (
    evaluate_retrieval,
    retrieval_table,
    score_retrieval,
)
from uss_utils.methods._hsg_image import joint_features
from uss_utils.methods._hsg_inference import (
    CITYSCAPES,
    ImageSegments,
    SegmentRetrieval,
    build_memory,
    canvas,
    image_hierarchy,
    image_segments,
    mean_places,
    paint,
    predict,
    retrieve,
    segment_labels,
)
from uss_utils.methods._hsg_kmeans import pixel_features
from uss_utils.metrics import Confusion
from uss_utils.records import scores as found_scores
from uss_utils.scored_batches import resized
from uss_utils.upsampling import upsample


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=generator(seed)), dim=1)


# ------------------------------------------------------------------------- the canvas


@pytest.mark.parametrize(
    ("size", "side", "inner"),
    [((30, 40), 64, (48, 64)), ((50, 20), 64, (64, 25)), ((64, 64), 64, (64, 64))]
    + [((26, 14), 44, (44, 23)), ((39, 39), 33, (33, 33))],
)
def test_canvas(size, side, inner):
    image = torch.randn(3, *size, generator=generator(0))
    label = torch.arange(size[0] * size[1]).view(size)
    laid = canvas(image, label, side, (64, 64))
    assert laid.size == inner and laid.image.shape == (3, 64, 64)
    assert laid.label.shape == inner
    known = F.interpolate(image[None], inner, mode="bilinear")[0]
    torch.testing.assert_close(laid.image[:, : inner[0], : inner[1]], known)
    assert not laid.image[:, inner[0] :].any() and not laid.image[..., inner[1] :].any()
    rows, columns = (
        (torch.arange(b) * a // b) for a, b in zip(size, inner, strict=True)
    )
    assert torch.equal(laid.label, label[rows[:, None], columns])
    assert canvas(image, None, side, (64, 64)).label is None


def test_canvas_of_another_shape():
    image = torch.zeros(3, 10, 20)
    assert canvas(image, None, 60, (30, 60)).size == (30, 60)
    assert canvas(torch.zeros(3, 1, 200), None, 20, (8, 20)).size == (1, 20)
    with pytest.raises(ValueError, match="10x16 .* longer side of 60 is 37x60, which"):
        canvas(torch.zeros(3, 10, 16), None, 60, (30, 60))
    with pytest.raises(ValueError, match="label of shape .* for an image of 10x20"):
        canvas(image, torch.zeros(20, 10), 60, (30, 60))


# --------------------------------------------------------------------------- segments


def test_features_are_those_of_the_enlarged_map(monkeypatch):
    embedding = torch.randn(5, 6, 7, generator=generator(0))
    known = pixel_features(upsample(embedding[None], (24, 28)))[1][0]
    for cached in (1, 300, 1 << 30):
        monkeypatch.setattr("uss_utils.upsampling.CACHED", cached)
        found = joint_features(embedding, (24, 28), (20, 13))
        torch.testing.assert_close(found.view(20, 13, 7), known[:20, :13])


def test_segments_follow_the_embedding(monkeypatch):
    """Four directions in four quarters, coarser than the canvas."""
    embedding = torch.zeros(4, 8, 8)
    for k, (rows, columns) in enumerate(
        (slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
        for y in range(2)
        for x in range(2)
    ):
        embedding[k, rows, columns] = 3
    found = image_segments(embedding, (32, 32), None, (2, 2), 5)
    assert found.map.shape == (32, 32)
    corners = found.map[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert sorted(corners.tolist()) == [0, 1, 2, 3]
    assert (found.map[:14, :14] == corners[0]).all()
    prototypes = found.prototypes[corners]
    torch.testing.assert_close(prototypes.argmax(1), torch.arange(4))
    torch.testing.assert_close(found.prototypes.norm(dim=1), torch.ones(4))
    monkeypatch.setattr(_hsg_image, "BLOCK", 50)
    again = image_segments(embedding, (32, 32), None, (2, 2), 5)
    torch.testing.assert_close(again.prototypes, found.prototypes)


def test_only_the_image_takes_part():
    embedding = torch.randn(6, 16, 16, generator=generator(1))
    found = image_segments(embedding, (32, 32), (20, 9), (3, 3), 4)
    other = embedding.clone()
    other[:, 12:] = other[..., 7:] = 9.0  # beyond what the last pixels are made from
    again = image_segments(other, (32, 32), (20, 9), (3, 3), 4)
    assert found.map.shape == (20, 9) and torch.equal(found.map, again.map)
    used = found.map.unique().tolist()
    assert used == list(range(len(found.prototypes)))


@pytest.mark.parametrize("grid", [(1, 1), (4, 4)])
def test_an_image_of_one_segment(grid):
    """Where all pixels are alike nothing but their places tells them apart."""
    found = image_segments(torch.ones(3, 2, 2), (8, 8), (1, 1), grid, 3)
    assert found.map.tolist() == [[0]] and found.prototypes.shape == (1, 3)
    memory = unit(50, 3)
    classes = retrieve(found.prototypes, memory, torch.arange(50) % 3)
    assert paint(found, classes, (5, 7)).shape == (5, 7)


# ----------------------------------------------------------------------------- memory


def test_majority_of_a_segment():
    labels = torch.tensor([2, 2, 1, 1, 255, 255, 3, 255, 4, 4])
    segments = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert segment_labels(labels, segments).tolist() == [1, 255, 4]
    tie = torch.tensor([255, 3, 255, 3]), torch.tensor([0, 0, 0, 0])
    assert segment_labels(*tie).tolist() == [3]
    inside = labels.where(labels != 255, -1)
    assert segment_labels(inside, segments, -1).tolist() == [1, -1, 4]
    nothing = torch.full((4,), 255)
    assert segment_labels(nothing, torch.tensor([0, 1, 1, 0])).tolist() == [255, 255]


def test_memory_leaves_out_what_has_no_class():
    maps = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 1]])
    images = [ImageSegments(each, unit(2, 5, seed=i)) for i, each in enumerate(maps)]
    labels = torch.tensor([[7, 7, 255, 255]]), torch.tensor([[255, 2, 2, 3]])
    memory = build_memory(images, labels)
    assert memory.labels.tolist() == [7, 2] and memory.rows.tolist() == [0, 3]
    known = torch.stack([images[0].prototypes[0], images[1].prototypes[1]])
    assert torch.equal(memory.prototypes, known)
    with pytest.raises(ValueError, match="none of 2 segments has a class"):
        build_memory(images[:1], [torch.full((1, 4), 255)])
    with pytest.raises(ValueError, match=r"label of shape \(1, 3\) for segments"):
        build_memory(images[:1], [labels[0][:, :3]])


# ------------------------------------------------------------------- whole evaluation

CLASSES = ("grey", "red", "green", "blue")
PROTOCOL = SegmentRetrieval(26, (26, 26), (3, 3), 6, 3)


class Quarters(SegmentationDataset):
    """Coloured quarters; a ring of ignored pixels goes round the picture."""

    def __init__(self, n=6, split="val", size=(20, 26), transform=None):
        palette = np.concatenate([np.zeros((1, 3)), np.eye(3) * 200]).astype(np.uint8)
        super().__init__("quarters", split, CLASSES, palette, transform)
        self.n, self.size = n, size

    def __len__(self):
        return self.n

    def read(self, index):
        rng = np.random.default_rng([index, len(self.split)])
        height, width = self.size[0], self.size[1] - index % 3
        label = np.zeros((height, width), np.int64)
        names = rng.permutation(4)
        label[: height // 2, : width // 2], label[: height // 2, width // 2 :] = names[
            :2
        ]
        label[height // 2 :, : width // 2], label[height // 2 :, width // 2 :] = names[
            2:
        ]
        noise = rng.integers(-20, 20, (height, width, 3))
        image = (self.palette[label] + 30 + noise).clip(0, 255).astype(np.uint8)
        label[[0, -1]] = -1
        return image, label


def colours(images):
    """Colours as embeddings, on a grid of half the size."""
    small = nn.functional.avg_pool2d(images, 2)
    return torch.cat([small, torch.ones_like(small[:, :1])], 1)


def test_evaluation_is_that_of_painted_maps():
    """The table of counts gives what predicting every image gives."""
    val, train = Quarters(), Quarters(8, "train")
    section = evaluate_retrieval(colours, val, train, PROTOCOL, batch_size=4)
    memory_images = [train[i] for i in range(len(train))]
    laid = [
        canvas(item["image"], item["label"], 26, (26, 26)) for item in memory_images
    ]
    segments = [
        image_segments(colours(c.image[None])[0], (26, 26), c.size, (3, 3), 6)
        for c in laid
    ]
    memory = build_memory(segments, [c.label for c in laid], -1)
    confusion = Confusion(4)
    for i in range(len(val)):
        item = val[i]
        pred = predict(colours, item["image"], memory, PROTOCOL)
        assert pred.shape == item["label"].shape
        confusion.update(pred, item["label"])
    known = confusion.scores("identity", absent=0)
    found = section["retrieval"]["all"]
    assert found["miou"] == pytest.approx(known.miou_classes, abs=1e-4)
    assert found["acc"] == pytest.approx(known.acc, abs=1e-4)
    assert found["iou"] == pytest.approx(known.iou.tolist(), abs=1e-4)
    assert found["memory"] == len(memory.labels)
    assert found["acc"] > 80


def test_the_section_says_what_it_is():
    section = evaluate_retrieval(colours, Quarters(), Quarters(8, "train"), PROTOCOL)
    assert json.loads(json.dumps(section)) == section
    assert section["images"] == 6 and section["split"] == "val"
    assert section["retrieval"]["all"]["memory_set"] == "quarters train"
    for text in (section["note"], section["protocol"]["line"]):
        assert "do not compare" in text and "Hungarian" in text and "labels" in text
    assert section["protocol"]["canvas"] == [26, 26] and section["protocol"]["k"] == 3
    assert "12x24 cells, 15 iterations" in CITYSCAPES.describe()
    shown = found_scores({"segments": section})
    assert shown["segments.retrieval.all.miou"] == section["retrieval"]["all"]["miou"]


def test_the_batch_size_changes_nothing():
    one, four = (
        retrieval_table(colours, Quarters(), PROTOCOL, batch_size=n) for n in (1, 4)
    )
    torch.testing.assert_close(one.prototypes, four.prototypes)
    assert torch.equal(one.counts, four.counts) and torch.equal(one.labels, four.labels)


def test_squeezed_images_are_scored_at_their_own_size():
    data = Quarters(3, transform=Transform("resize", (16, 16)))
    table = retrieval_table(colours, data, PROTOCOL)
    counted = sum(int((data.read_label(i) >= 0).sum()) for i in range(3))
    assert int(table.counts.sum()) == counted
    cut = retrieval_table(colours, data.with_transform(Transform.sane(16)), PROTOCOL)
    assert int(cut.counts.sum()) < counted


def test_absent_classes_count_zero():
    table = retrieval_table(colours, Quarters(), PROTOCOL)
    counts = table.counts.clone()
    counts[:, 3] = 0
    labels = table.labels.where(table.labels != 3, -1)
    same = table._replace(counts=counts, labels=labels)
    found = score_retrieval(same, same, PROTOCOL)["retrieval"]["all"]
    assert found["iou"][3] == 0
    assert found["miou"] == pytest.approx(sum(found["iou"]) / 4, abs=1e-3)


def test_a_dead_network_is_scored_as_wrong():
    val = Quarters()
    alive = retrieval_table(colours, Quarters(8, "train"), PROTOCOL)
    dead = retrieval_table(lambda x: colours(x) * 0, val, PROTOCOL)
    found = score_retrieval(dead, alive, PROTOCOL)["retrieval"]["all"]
    assert found["miou"] == 0 and found["acc"] == 0


def test_modules_are_in_eval_mode_meanwhile():
    class Net(nn.Module):
        def forward(self, images):
            assert not self.training
            return colours(images)

    net = Net().train()
    memory = build_memory(
        [ImageSegments(torch.zeros(1, 1, dtype=torch.int64), unit(1, 4))],
        [torch.tensor([[2]])],
    )
    pred = predict(net, torch.zeros(3, 9, 9), memory, PROTOCOL)
    assert (pred == 2).all() and net.training
    retrieval_table(net, Quarters(2), PROTOCOL)
    assert net.training


def test_sets_that_cannot_be_scored():
    bare = Quarters()
    bare.has_labels = False
    with pytest.raises(ValueError, match="quarters val has no labels"):
        retrieval_table(colours, bare, PROTOCOL)
    table = retrieval_table(colours, Quarters(2), PROTOCOL)
    other = Quarters(2)
    other.classes = ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="the memory has the classes a, b, c, d"):
        score_retrieval(table, table._replace(dataset=other), PROTOCOL)
    nothing = table._replace(labels=table.labels * 0 - 1)
    with pytest.raises(ValueError, match="none of .* segments has a class"):
        score_retrieval(table, nothing, PROTOCOL)


# ------------------------------------------------------------------------- hierarchies


@pytest.fixture
def net():
    torch.manual_seed(0)
    return HSGNet(16, None, in_channels=4, mid_channels=8)


def test_hierarchy_of_an_image(net):
    feat = torch.randn(4, 8, 10, generator=generator(2))
    found = image_hierarchy(net, feat, (40, 50), (3, 3), 4)
    assert net.training
    levels = found.hierarchy
    assert len(levels) == 3 and levels.size == (40, 50)
    assert levels.counts[0] == len(found.segments.prototypes) <= 9
    assert levels.counts[1] <= 8 and levels.counts[2] <= 4
    assert torch.equal(levels.levels[0], found.segments.map)
    assert found.groups.fine_probs.shape == (1, 8, levels.counts[0])
    fine = found.groups.fine[0][found.segments.map]
    pairs = torch.stack([fine.flatten(), levels.levels[1].flatten()], 1)
    assert len(pairs.unique(dim=0)) == levels.counts[1] == len(fine.unique())


def test_images_with_more_cells_than_the_table(net):
    feat = torch.randn(4, 52, 3, generator=generator(2))
    assert len(image_hierarchy(net, feat, grid=(2, 2), iterations=2).hierarchy) == 3


def test_a_network_without_groups_has_no_hierarchy():
    net = HSGNet(16, None, hierarchy=False, in_channels=4, mid_channels=8)
    with pytest.raises(ValueError, match="without clustering transformers"):
        image_hierarchy(net, torch.zeros(4, 8, 8))


def test_places_are_means_over_segments():
    positions = torch.randn(6, 5, 4, generator=generator(0))
    segments = torch.randint(7, (15, 16), generator=generator(1))
    whole = upsample(positions[None], (15, 16))[0]
    known = torch.stack([whole[:, segments == k].mean(1) for k in range(7)], 1)
    torch.testing.assert_close(mean_places(positions, segments), known)
    assert torch.equal(resized(segments[None], (15, 16))[0], segments)
