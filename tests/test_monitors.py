import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.models import Stripes, grey_model
from uss_utils import backbones, datasets, monitors
from uss_utils.clustering import kmeans
from uss_utils.features import extract
from uss_utils.heads import SegmentationHead, Standardise
from uss_utils.probes import ClusterProbe
from uss_utils.sampling import sample_tokens
from uss_utils.segmenter import Segmenter

N = 6


@pytest.fixture(scope="module")
def scenes():
    return datasets.load("scenes", "train", limit=N)


@pytest.fixture(scope="module")
def backbone():
    return backbones.load("vit_tiny_scenes")


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(backbone, head, centroids):
    probe = ClusterProbe.from_centroids(centroids, "cosine")
    return Segmenter(backbone, head, probe, classes=(), palette=np.zeros((0, 3)))


@pytest.fixture(scope="module")
def plain(scenes, backbone):
    """K-means on the features as they are."""
    rows = sample_tokens(extract(backbone, scenes), 1000, draw())
    found = kmeans(rows, 8, restarts=1, generator=draw())
    return model_of(backbone, Standardise(torch.zeros(backbone.dim)), found.centroids)


class Noise(nn.Module):
    """A code that has nothing to do with the features."""

    kind, in_dim, dim = "noise", 192, 64

    def __init__(self):
        super().__init__()
        self.draw = draw(1)

    def __deepcopy__(self, memo):
        return Noise()

    def forward(self, feat):
        n, _, h, w = feat.shape
        return torch.randn(n, self.dim, h, w, generator=self.draw)


class TestMonitor:
    def test_features_agree_with_themselves(self, plain, scenes):
        found = monitors.monitor(plain, scenes)
        assert found["agreement_within"] == pytest.approx(1)
        assert found["agreement_across"] == pytest.approx(1)
        assert 0.7 < found["usage_entropy"] < 1
        assert sum(found["usage"]) == pytest.approx(1, abs=1e-4)
        assert (found["images"], found["clusters"]) == (N, 8)
        assert found["used"] == sum(share >= 0.01 for share in found["usage"])
        assert found["edges_on_borders"] > 1.4 * found["pixels_on_borders"] > 0
        assert json.loads(json.dumps(found)) == found

    def test_a_code_drawn_at_random_agrees_with_nothing(self, backbone, scenes):
        model = model_of(backbone, Noise(), torch.eye(64)[:8])
        found = monitors.monitor(model, scenes)
        assert abs(found["agreement_within"]) < 0.06
        assert abs(found["agreement_across"]) < 0.06
        # Noise is even: the entropy alone would call it perfect.
        assert found["usage_entropy"] > 0.95
        assert found["edges_on_borders"] < 1.15 * found["pixels_on_borders"]

    def test_a_collapse_shows(self, backbone, scenes, plain):
        rows = plain.cluster_probe.clusters
        head = Standardise(torch.zeros(backbone.dim))
        mean = extract(backbone, scenes).mean((0, 2, 3))
        far = torch.stack([mean, *(-mean for _ in rows[1:])])
        found = monitors.monitor(model_of(backbone, head, far), scenes)
        assert found["usage_entropy"] == 0
        assert found["used"] == 1
        assert found["edges_on_borders"] == found["pixels_on_borders"] == 0
        constant = SegmentationHead(backbone.dim, 4, nonlinear=False)
        constant.linear.weight.data.zero_()
        found = monitors.monitor(model_of(backbone, constant, torch.eye(4)), scenes)
        assert found["agreement_within"] == found["agreement_across"] == 0

    def test_an_untrained_head_lies_between(self, backbone, scenes):
        torch.manual_seed(0)
        head = SegmentationHead(backbone.dim, 4, nonlinear=False)
        found = monitors.monitor(model_of(backbone, head, torch.eye(4)), scenes)
        assert 0.2 < found["agreement_within"] < 0.95

    def test_same_draws_same_numbers(self, plain, scenes):
        options = {"edges": False, "pairs": 500}
        first, again = (
            monitors.monitor(plain, scenes, generator=draw(3), **options)
            for _ in range(2)
        )
        assert first == again

    def test_pictures_of_any_size_and_folders(self, plain, tmp_path):
        rng = np.random.default_rng(0)
        for i, shape in enumerate([(40, 70), (33, 20, 3), (4, 5, 3)]):
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        files = sorted(tmp_path.iterdir())
        found = monitors.monitor(plain, files)
        assert found["images"] == 3
        assert "agreement_across" in found
        # One of them is a single patch, so no pair lies within it.
        assert "agreement_within" not in found
        assert monitors.monitor(plain, tmp_path) == found
        alone = monitors.monitor(plain, files[0])
        assert "agreement_within" in alone
        assert "agreement_across" not in alone
        with pytest.raises(ValueError, match="no image to look at"):
            monitors.monitor(plain, [])

    def test_usage_is_that_of_segment(self, plain, scenes):
        image = scenes.read_image(0)
        ids = plain.segment(image)
        share = torch.bincount(ids.flatten(), minlength=8) / ids.numel()
        found = monitors.monitor(plain, [image], edges=False)
        assert found["usage"] == pytest.approx(share.tolist(), abs=1e-5)
        assert "edges_on_borders" not in found

    def test_pixels_are_no_features_to_agree_with(self):
        grey = grey_model()
        found = monitors.monitor(grey, Stripes())
        assert found["agreement_within"] == pytest.approx(1)
        grey.backbone = backbones.load("pixels")
        found = monitors.monitor(grey, Stripes())
        assert not [name for name in found if name.startswith("agreement")]
        assert found["used"] > 0

    def test_codes_that_are_not_finite(self, backbone, scenes):
        head = SegmentationHead(backbone.dim, 4, nonlinear=False)
        head.linear.bias.data.fill_(torch.nan)
        model = model_of(backbone, head, torch.eye(4))
        with pytest.raises(ValueError, match="NaN or infinite codes"):
            monitors.monitor(model, scenes)


class TestAgreement:
    def test_order_alone_counts(self):
        x = torch.rand(50, generator=draw())
        assert monitors.agreement(x, x**3) == pytest.approx(1)
        assert monitors.agreement(x, -x) == pytest.approx(-1)
        assert monitors.agreement(x, torch.ones(50)) == 0

    def test_bad_input(self):
        with pytest.raises(ValueError, match="two lists of at least two"):
            monitors.agreement(torch.zeros(3), torch.zeros(4))


class TestEdgeShares:
    def test_borders_on_and_off_an_edge(self):
        image = np.zeros((40, 60, 3), dtype=np.uint8)
        image[:, 30:] = 255
        on, off = np.zeros((2, 40, 60), dtype=np.int64)
        on[:, 30:] = 1
        off[:, 10:] = 1
        hit, chance = monitors.edge_shares(image, on, 3)
        assert hit == 1
        assert chance == pytest.approx(7 / 60)
        assert monitors.edge_shares(image, off, 3)[0] == 0
        assert monitors.edge_shares(image, 0 * on, 3) == (0, 0)

    def test_a_flat_image_has_no_edge(self):
        ids = np.zeros((20, 20), dtype=np.int64)
        ids[:10] = 1
        hit, chance = monitors.edge_shares(np.zeros((20, 20, 3), np.uint8), ids, 2)
        assert hit == chance > 0

    def test_bad_input(self):
        with pytest.raises(ValueError, match="differ in size"):
            monitors.edge_shares(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5)), 1)


class TestSameGrouping:
    def test_names_do_not_count(self):
        a = torch.tensor([[0, 0, 1], [1, 2, 2]])
        assert monitors.same_grouping(a, (a + 1) % 3) == 1
        assert monitors.same_grouping(torch.zeros(4), torch.zeros(4)) == 1

    def test_a_known_value(self):
        # Pairs together: 2 in the first, 3 in the second, 1 in both, of 6 pairs.
        a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])
        chance, most = 2 * 3 / 6, 2.5
        expected = (1 - chance) / (most - chance)
        assert monitors.same_grouping(a, b) == pytest.approx(expected)

    def test_random_groups_give_nothing(self):
        a, b = (torch.randint(5, (20_000,), generator=draw(i)) for i in range(2))
        assert abs(monitors.same_grouping(a, b)) < 0.01

    def test_bad_input(self):
        with pytest.raises(ValueError, match="on the same places"):
            monitors.same_grouping(torch.zeros(3), torch.zeros(4))


class TestStability:
    def test_the_right_number_is_found_again(self):
        """Three clear groups: three are stable, a fourth is the draw's."""
        centres = torch.tensor([[5.0, 0], [-3, 4], [-3, -4]])
        group = torch.randint(3, (10, 6, 6), generator=draw())
        code = centres[group] + 0.3 * torch.randn(10, 6, 6, 2, generator=draw(1))
        code = code.movedim(-1, 1)
        three, five = (
            monitors.stability(code, k, metric="euclidean", generator=draw())
            for k in (3, 5)
        )
        assert len(three) == 3
        assert min(three) > 0.99
        assert max(five) < 0.9

    def test_bad_input(self):
        with pytest.raises(ValueError, match="two halves need two images"):
            monitors.stability(torch.randn(1, 2, 3, 3), 2, generator=draw())
        with pytest.raises(ValueError, match="k"):
            monitors.stability(torch.randn(2, 2, 2, 2), 9, generator=draw())
