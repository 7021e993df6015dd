from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from uss_utils import segments_shown
from uss_utils.environment import generator
from uss_utils.objects_shown import ACCENT, RIGHT
from uss_utils.segments_shown import Gallery

IDS = torch.tensor([[[1, 1], [0, 2]], [[0, 0], [0, 1]]])
LABELS = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, -1]]])


class Set:
    """Two images of 2 x 2 pixels."""

    classes, n_classes = ("sky", "road"), 2

    def __len__(self):
        return 2

    def batch(self, indices):
        images = torch.arange(24.0).view(2, 3, 2, 2)
        return images[list(indices)], LABELS[list(indices)]


def gallery():
    return Gallery(Set(), lambda rows: IDS[list(rows)], 2)


class TestQuality:
    def test_counts_by_hand(self):
        found = segments_shown.mask_quality(IDS, LABELS, 2, [1])
        # Of seven labelled pixels three lie in masks, two of them of class 1.
        assert found["covers"] == pytest.approx(100 * 3 / 7)
        assert found["pure"] == pytest.approx(100 * 2 / 3)
        assert found["IoU"] == pytest.approx(100 * 2 / 4)

    def test_coarse_masks_are_enlarged(self):
        labels = torch.tensor([[0, 0, 1, 1]]).repeat(4, 1)[None]
        masks = torch.tensor([[[False, True], [False, True]]])
        found = segments_shown.mask_quality(masks, labels, 2, [1])
        assert found == pytest.approx({"covers": 50, "pure": 100, "IoU": 100})


class TestGallery:
    def test_a_row_per_possible_object(self):
        found = gallery()
        assert found.counts.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]
        assert found.classes.tolist() == [0, 1, 0, 0]
        assert found.real.tolist() == [True, True, False, False]
        image, mask = found.mask(1)
        assert image == 0 and torch.equal(mask, IDS[0] == 2)

    def test_share_of_each_class_in_segments(self):
        # Sky: one of four pixels; road: two of three.
        expected = {"sky": 100 / 4, "road": 100 * 2 / 3}
        assert gallery().covered() == pytest.approx(expected)

    def test_prototypes_are_directions_of_means(self):
        model = SimpleNamespace(code=lambda images: images)
        found = gallery().prototypes(model)
        assert found.shape == (4, 3)
        mean = gallery().images[0][:, 0].mean(1)
        assert torch.allclose(found[0], mean / mean.norm())
        assert (found[3] == 0).all()


class TestRetrieved:
    def test_frames_tell_the_class(self):
        shown = gallery()
        lines = {"a": (0, [0, 1]), "b": (1, [1, 0])}
        figure = segments_shown.retrieved(lines, shown, shown)
        axes = np.array(figure.axes).reshape(2, 3)
        assert [ax.get_ylabel() for ax in axes[:, 0]] == ["a", "b"]
        words = [ax.get_title() for ax in axes.flat]
        assert words == ["sky", "sky", "road", "road", "road", "sky"]
        edges = [to_hex(ax.spines["left"].get_edgecolor()) for ax in axes.flat]
        assert edges[1:3] == edges[4:6] == [RIGHT, ACCENT]

    def test_lines_have_one_length(self):
        with pytest.raises(ValueError, match="lines of one length"):
            segments_shown.retrieved({"a": (0, [1]), "b": (0, [])}, *2 * [gallery()])
        with pytest.raises(ValueError, match="lines of one length"):
            segments_shown.retrieved({}, gallery(), gallery())


@pytest.mark.parametrize("whiten", [True, False])
def test_clusters_get_their_names(whiten):
    kind = torch.arange(30) % 3
    rows = torch.eye(3, 6)[kind] + 0.05 * torch.randn(30, 6, generator=generator(0))
    counts = 10 * torch.eye(3, dtype=torch.int64)[kind]
    names = ("sky", "road", "car")
    figure = segments_shown.clustered(rows, counts, names, whiten, 2)
    left, right = figure.axes
    assert right.get_title() == "matched, mIoU 100.0"
    table = np.asarray(right.collections[0].get_array()).reshape(3, 3)
    assert np.allclose(table, 100 * np.eye(3))
    frames = [(p.get_x(), p.get_y()) for p in right.patches]
    assert frames == [(0, 0), (1, 1), (2, 2)]
    words = [text.get_text() for text in left.get_yticklabels()]
    assert words == ["cluster 0", "cluster 1", "cluster 2"]


def test_the_same_segments_are_looked_for_by_several_models():
    models = {
        name: SimpleNamespace(code=lambda images, sign=sign: sign * images)
        for name, sign in (("one", 1), ("two", -1))
    }
    figure = segments_shown.nearest_by(models, [1, 0], gallery(), gallery(), 2)
    labels = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert labels == ["1 one", "1 two", "2 one", "2 two"]
    assert len(figure.axes) == 4 * 3
