"""Segments of a data set counted, and scored by k-means and retrieval."""

import json
import statistics

import numpy as np
import pytest
import torch
from torch import nn

from uss_utils import crf
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.transforms import Transform
from uss_utils.metrics import Confusion
from uss_utils.records import leaderboard, scores
from uss_utils.scored_batches import resized
from uss_utils.segment_evaluation import (
    SegmentProtocol,
    class_table,
    evaluate_segments,
    score_segments,
    segment_table,
)
from uss_utils.segments import (
    SegmentMemory,
    class_maps,
    cluster_segments,
    label_maps,
    region_prototypes,
    segment_prototypes,
    split_components,
)
from uss_utils.upsampling import upsample

CLASSES = ("background", "red", "green", "blue")
SIZE = (20, 26)


class Blocks(SegmentationDataset):
    """Coloured blocks on black; each image shows one or two of red, green, blue.

    A ring of ignored pixels goes round the picture; every fourth image is all black.
    """

    def __init__(self, n=9, split="val", two=False, hide=()):
        palette = np.concatenate([np.zeros((1, 3)), np.eye(3) * 200]).astype(np.uint8)
        super().__init__("blocks", split, CLASSES, palette)
        self.n, self.two, self.hide = n, two, hide

    def __len__(self):
        return self.n

    def read(self, index):
        rng = np.random.default_rng([index, len(self.split)])
        label = np.zeros(SIZE, np.int64)
        if index % 4 != 3:
            label[3:15, 2 : 8 + index % 3] = 1 + index % 3
            if self.two:
                label[8:18, 15:23] = 1 + (index + 1) % 3
        label[np.isin(label, self.hide)] = 0
        noise = rng.integers(-20, 20, (*SIZE, 3))
        image = (self.palette[label] + 30 + noise).clip(0, 255).astype(np.uint8)
        label[[0, -1]] = -1
        return image, label


def model(image):
    """Colours as embeddings, and a logit above 0.5 wherever one of them is strong.

    Both on a grid of half the size.
    """
    small = nn.functional.avg_pool2d(image, 2)
    contrast = small.amax(1) - small.amin(1)
    return torch.cat([small, 0.1 * small.square()], 1), 2 * contrast - 2.5


def squeezed(data):
    return data.with_transform(Transform("resize", (16, 18), "cubic"))


def painted(data, protocol):
    """Prototypes and masks of a whole set, by the plain functions."""
    image, label = data.batch(range(len(data)))
    embedding, logit = model(image)
    logit = upsample(logit[:, None], tuple(label.shape[1:]))[:, 0]
    if protocol.objects == "image":
        return *segment_prototypes(
            embedding, logit, protocol.threshold, protocol.weighting
        ), label
    ids = split_components(logit > protocol.threshold, protocol.min_share)
    return region_prototypes(embedding, ids, logit), ids, label


PROTOCOLS = [
    SegmentProtocol(whiten=False, seeds=2),
    SegmentProtocol(whiten=False, seeds=2, objects="components", over=(6,)),
    SegmentProtocol(components=2, seeds=1, weighting="mask", matching="hungarian"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("geometry", [lambda data: data, squeezed])
def test_kmeans_is_scored_as_if_maps_were_painted(protocol, geometry):
    data = geometry(Blocks(two=protocol.objects == "components"))
    found = evaluate_segments(model, data, protocol=protocol, batch_size=4)
    prototypes, masks, _ = painted(data, protocol)
    for k, given in {3: found["kmeans"], **_over(found)}.items():
        for seed, run in enumerate(given["seeds"]):
            clusters = cluster_segments(
                prototypes, k, protocol.whiten, protocol.components, seed=seed
            )
            maps = label_maps(masks, clusters.assignment)
            confusion = Confusion(4, 1 + k - 4)
            for i, each in enumerate(maps):
                truth = torch.from_numpy(data.read_label(i))
                confusion.update(resized(each[None], tuple(truth.shape))[0], truth)
            rule = protocol.matching if k == 3 else protocol.over_matching
            by_hand = confusion.scores(rule, absent=0)
            assert run["acc"] == pytest.approx(by_hand.acc, abs=1e-4)
            assert run["iou"] == pytest.approx(by_hand.iou.tolist(), abs=1e-4)
            assert run["miou"] == pytest.approx(by_hand.miou_classes, abs=1e-4)
            assert run["map"] == confusion.match(rule).cluster_to_class.tolist()
        mean = statistics.fmean(run["miou"] for run in given["seeds"])
        assert given["miou"] == pytest.approx(mean, abs=1e-3)


def _over(found):
    return {int(k): each for k, each in found.get("overclustering", {}).items()}


@pytest.mark.parametrize("protocol", PROTOCOLS[:2])
@pytest.mark.parametrize("subset", [None, (1, 3)])
def test_retrieval_is_scored_as_if_maps_were_painted(protocol, subset):
    two = protocol.objects == "components"
    data, known = squeezed(Blocks(two=two)), squeezed(Blocks(12, "train", two=two))
    found = evaluate_segments(model, data, known, protocol, subsets={"some": subset})
    given = found["retrieval"]["some"]
    prototypes, masks, label = painted(known, protocol)
    ids = list(range(4)) if subset is None else list(subset)
    dropped = torch.tensor([i for i in (1, 2, 3) if i not in ids])
    label, truth = (
        part.where(~torch.isin(part, dropped), -1)
        for part in (label, painted(data, protocol)[2])
    )
    memory = SegmentMemory.build(prototypes, masks, label)
    prototypes, masks, _ = painted(data, protocol)
    maps = class_maps(masks, memory.retrieve(prototypes)[0])
    by_hand = Confusion.of(maps, truth, 4).scores("identity", absent=0)
    assert given["iou"] == pytest.approx(by_hand.iou.tolist(), abs=1e-4)
    assert given["miou"] == pytest.approx(float(by_hand.iou[ids].mean()), abs=1e-4)
    assert given["memory"] == len(memory.labels) and given["subset"] == ids
    assert given["miou"] > (60 if subset is None else 50)  # colours are easy


def test_numbers_of_the_section():
    data = Blocks()
    found = evaluate_segments(model, data, Blocks(8, "train"), batch_size=5)
    assert (found["images"], found["segments"], found["empty"]) == (9, 7, 2)
    assert found["kmeans"]["clusters"] == 3 and len(found["kmeans"]["seeds"]) == 5
    assert found["kmeans"]["miou_sd"] >= 0
    assert 0 <= found["kmeans"]["nmi"] <= 1
    assert found["retrieval"]["all"]["memory_set"] == "blocks train"
    assert "logit > 0.5" in found["protocol"]["line"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not {"overclustering", "crf"} & set(found)
    alone = evaluate_segments(model, data, protocol=SegmentProtocol(seeds=1))
    assert "retrieval" not in alone and alone["kmeans"]["miou_sd"] is None


def test_batches_do_not_matter():
    tables = [segment_table(model, squeezed(Blocks()), batch_size=n) for n in (1, 4)]
    assert torch.equal(tables[0].counts["own"], tables[1].counts["own"])
    assert torch.equal(tables[0].outside["work"], tables[1].outside["work"])
    torch.testing.assert_close(tables[0].prototypes, tables[1].prototypes)


def test_every_labelled_pixel_is_counted_once():
    table = segment_table(
        model, squeezed(Blocks(two=True)), SegmentProtocol(objects="components")
    )
    counted = table.counts["own"].sum() + table.outside["own"].sum()
    assert counted == sum(int((Blocks().read_label(i) >= 0).sum()) for i in range(9))


def test_a_class_that_is_absent_counts_as_zero():
    found = evaluate_segments(model, Blocks(hide=(3,)), Blocks(8, "train"))
    for section in (found["kmeans"], found["retrieval"]["all"]):
        assert section["iou"][3] == 0
        assert section["miou"] == pytest.approx(sum(section["iou"]) / 4, abs=1e-3)


def test_segments_can_be_given():
    data, known = Blocks(two=True), Blocks(8, "train", two=True)
    truth = [each.labels(range(len(each))).clamp(min=0) for each in (data, known)]
    found = evaluate_segments(
        model,
        data,
        known,
        SegmentProtocol(whiten=False, seeds=1),
        masks=lambda rows: truth[0][list(rows)],
        memory_masks=lambda rows: truth[1][list(rows)],
    )
    # Perfect masks of pure colours: nothing is left to get wrong.
    assert found["segments"] == 14
    assert found["retrieval"]["all"]["miou"] == found["kmeans"]["miou"] == 100


def test_the_model_is_scored_in_eval_mode():
    class Net(nn.Module):
        def forward(self, image):
            assert not self.training
            return model(image)

    net = Net().train()
    segment_table(net, Blocks())
    assert net.training


@pytest.mark.skipif(not crf.available(), reason="pydensecrf is not installed")
def test_sharpened_masks_are_scored_beside_the_others():
    protocol = SegmentProtocol(seeds=1, whiten=False, crf=True)
    table = segment_table(model, squeezed(Blocks(4)), protocol)
    assert table.counts["crf"].shape == table.counts["own"].shape
    total = [table.counts[at].sum() + table.outside[at].sum() for at in ("crf", "own")]
    assert total[0] == total[1]
    known = segment_table(model, squeezed(Blocks(8, "train")), protocol)
    found = score_segments(table, known, protocol)
    assert set(found["crf"]) == {"kmeans", "retrieval"}
    assert found["crf"]["kmeans"]["miou"] > 50


def test_tables_of_records_show_segments():
    found = evaluate_segments(model, Blocks(), Blocks(8, "train"))
    record = {
        **{key: "x" for key in ("method", "name", "preset", "split", "backbone")},
        **{"dataset": "blocks", "overrides": {}, "seed": 0},
        **{"protocol": {"line": "one line"}, "segments": found},
    }
    assert scores(record)["segments.kmeans.miou"] == found["kmeans"]["miou"]
    line = leaderboard([record])
    assert "k-means of segments" in line and "segment retrieval" in line
    assert f"{found['retrieval']['all']['miou']:.1f}" in line


def test_iou_of_every_class_as_a_table():
    found = evaluate_segments(
        model,
        Blocks(),
        Blocks(8, "train"),
        SegmentProtocol(over=(5,), whiten=False),
        subsets={"all": None, "two": (1, 2)},
    )
    lines = class_table(found).splitlines()
    assert "| class | k-means | 5 clusters | retrieval, all | retrieval, two |" in lines
    assert len(lines) == 2 + 4 + 1
    assert lines[2].startswith("| background |") and lines[2].endswith("| – |")
    assert f"{found['kmeans']['iou'][1]:.1f}" in lines[3]
    assert f"{found['overclustering']['5']['miou']:.1f}" in lines[-1]


def test_what_cannot_be_scored_is_explained():
    with pytest.raises(ValueError, match="8 clusters were asked for, but only 7 of 7"):
        evaluate_segments(model, Blocks(), protocol=SegmentProtocol(clusters=8))
    empty = SegmentProtocol(threshold=1e6, seeds=1)
    with pytest.raises(ValueError, match="only 0 of 0 segments have a pixel"):
        evaluate_segments(model, Blocks(), protocol=empty)
    with pytest.raises(ValueError, match="none of 6 segments has pixels of a class"):
        unnamed = Blocks(7, "train", hide=(1, 2, 3))
        unnamed.read = lambda i: (Blocks.read(Blocks(), i)[0], np.zeros(SIZE, int))
        evaluate_segments(model, Blocks(), unnamed)
    other = Blocks()
    other.classes = ("sky", "red", "green", "blue")
    with pytest.raises(ValueError, match="no class 'background' in place 0.*ObjectCl"):
        segment_table(model, other)
    table, known = segment_table(model, Blocks()), segment_table(model, Blocks())
    known.dataset.classes = ("background", "red", "green", "violet")
    with pytest.raises(ValueError, match="the memory has the classes"):
        score_segments(table, known)
    for ids in ((), (0,), (2, 4)):
        with pytest.raises(ValueError, match="subset 'odd' holds the class ids"):
            score_segments(table, table, subsets={"odd": ids})
    with pytest.raises(ValueError, match=r"masks of shape \(1, 2, 2\)"):
        segment_table(model, Blocks(), masks=lambda rows: torch.ones(1, 2, 2).long())
    with pytest.raises(ValueError, match="NaN or infinite"):
        segment_table(lambda x: (model(x)[0] * torch.nan, model(x)[1]), Blocks())


@pytest.mark.parametrize(
    "options",
    [{"weighting": "soft"}, {"objects": "parts"}, {"matching": "identity"},
     {"over_matching": "best"}],
)  # fmt: skip
def test_switches_that_do_not_exist_are_explained(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=.* is unknown; known: "):
        SegmentProtocol(**options)


def test_the_line_tells_the_switches():
    with pytest.raises(ValueError, match="seeds=0"):
        SegmentProtocol(seeds=0)
    line = SegmentProtocol(objects="components", whiten=False).describe()
    assert "one object per component" in line and "no PCA" in line
    line = SegmentProtocol(components=8, whiten=False).describe()
    assert "PCA with 8 components, not whitened" in line
