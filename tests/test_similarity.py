import pytest
import torch
import torch.nn.functional as F

from uss_utils import similarity
from uss_utils.correspondence import correlation
from uss_utils.environment import generator
from uss_utils.similarity import (
    average_precision,
    label_cooccurrence,
    precision_recall,
)

# Two images of 2 x 2 patches of 4 x 4 pixels.
LABEL = torch.tensor([[[0, 0], [1, 1]], [[-1, 2], [0, 1]]])
LABEL = LABEL.repeat_interleave(4, 1).repeat_interleave(4, 2)
GRID = (2, 2)


def score(feat, label=LABEL, **options):
    return similarity.same_class_test(feat, label, generator=generator(0), **options)


def one_hot():
    classes = similarity.patch_classes(LABEL, GRID)
    return F.one_hot(classes.clamp(min=0), 3).movedim(-1, 1).float()


class TestPatchClasses:
    def test_central_pixel(self):
        label = LABEL.clone()
        label[:, ::4] = 7  # borders of patches do not matter
        assert torch.equal(similarity.patch_classes(label, GRID), LABEL[:, 2::4, 2::4])

    def test_other_grids(self):
        assert similarity.patch_classes(LABEL, (8, 8)).equal(LABEL)
        assert similarity.patch_classes(LABEL.short(), (4, 1)).shape == (2, 4, 1)
        assert similarity.patch_classes(LABEL.short(), (4, 1)).dtype == torch.int64


class TestClassCosines:
    def test_is_the_mean_over_all_pairs(self):
        feat = torch.randn(2, 5, 2, 2, generator=generator(0))
        found = similarity.class_cosines(feat, LABEL, 4)
        rows = F.normalize(feat, dim=1).movedim(1, -1).flatten(0, 2)
        classes = similarity.patch_classes(LABEL, GRID).flatten()
        for a in range(3):
            for b in range(3):
                pairs = rows[classes == a] @ rows[classes == b].T
                torch.testing.assert_close(found[a, b], pairs.mean())
        assert found[3].isnan().all()

    def test_classes_that_are_directions(self):
        found = similarity.class_cosines(one_hot(), LABEL, 3)
        torch.testing.assert_close(found, torch.eye(3))


class TestSameClassTest:
    def test_features_that_are_the_classes(self):
        assert score(one_hot()) == 100
        assert score(one_hot(), metric="euclidean") == 100

    def test_features_that_know_nothing(self):
        assert score(torch.ones(2, 3, 2, 2)) == 50
        label = torch.randint(3, (10, 20, 20), generator=generator(1))
        feat = torch.randn(10, 4, 20, 20, generator=generator(2))
        assert abs(score(feat, label) - 50) < 1.5

    def test_rare_classes_count_as_much_as_common_ones(self):
        # Class 0 is everywhere and mixed up with 1; 1 and 2 occur once, twice.
        classes = torch.zeros(1, 10, 10, dtype=torch.int64)
        classes[0, 0, :3] = torch.tensor([1, 2, 2])
        feat = (classes == 2).float()[:, None]
        found = score(feat, classes, metric="euclidean")
        # 0 against 1 and back is a tie; everything else is right.
        assert abs(found - 100 * (2 / 3 + 1 / 3 * 0.5)) < 1.5

    def test_ignored_patches_are_never_drawn(self):
        feat = one_hot()
        feat[1, :, 0, 0] = torch.nan
        assert score(feat) == 100

    def test_same_draws_same_result(self):
        feat = torch.randn(2, 5, 2, 2, generator=generator(0))
        assert score(feat, draws=100) == score(feat, draws=100)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="unknown metric 'l1'; known: cosine"):
            score(one_hot(), metric="l1")
        with pytest.raises(ValueError, match="at least two classes, found 1"):
            score(one_hot(), torch.zeros_like(LABEL))


def test_centred_features_have_no_mean():
    feat = torch.randn(3, 4, 2, 5, generator=generator(0)) + 2
    mean = similarity.centred(feat).mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-6, rtol=0)


class TestSharedCosines:
    CONTENT = torch.randn(6, 32, 10, 10, generator=generator(0))

    def windows(self, feat):
        return feat[..., :8, :8], feat[..., 2:, 2:]

    def test_features_of_content(self):
        found = similarity.shared_cosines(*self.windows(self.CONTENT), 2)
        assert found["content"] > 0.999
        assert abs(found["place"]) < 0.05
        assert abs(found["neither"]) < 0.05

    def test_features_of_position(self):
        place = torch.randn(1, 32, 8, 8, generator=generator(1)).expand(6, -1, -1, -1)
        found = similarity.shared_cosines(place, place, 2)
        assert found["place"] > 0.999
        assert abs(found["content"]) < 0.1
        assert abs(found["content"] - found["neither"]) < 1e-6

    @pytest.mark.parametrize(("n", "shift"), [(1, 2), (6, 0), (6, 8)])
    def test_bad_input(self, n, shift):
        first, second = self.windows(self.CONTENT[:n])
        with pytest.raises(ValueError, match=f"shifted by {shift}"):
            similarity.shared_cosines(first, second, shift)
        with pytest.raises(ValueError, match="two overlapping windows"):
            similarity.shared_cosines(first, self.CONTENT[:n], 2)


def corners(n=1):
    """The four corner points of a map, as a 2 x 2 grid."""
    x, y = torch.meshgrid(*[torch.tensor([-1.0, 1])] * 2, indexing="ij")
    return torch.stack([x, y], -1).expand(n, 2, 2, 2)


def test_labels_agree_where_classes_are_equal():
    label = torch.tensor([[[0, 0, 2], [0, 0, 2], [-1, 2, 2]]])
    feat = torch.randn(1, 6, 5, 5, generator=generator(0))
    feat_corr, agreement = label_cooccurrence(feat, label, corners(), corners(), 3)
    at = torch.tensor([[0, 2], [-1, 2]]).flatten()  # rows: y, columns: x
    expected = (at[:, None] == at).float().view(1, 2, 2, 2, 2)
    torch.testing.assert_close(agreement, expected)
    own = feat[:, :, ::4, ::4]
    torch.testing.assert_close(feat_corr, correlation(own, own))


def test_between_two_classes_labels_agree_in_part():
    label = torch.tensor([[[0, 1]]])
    middle = torch.tensor([[[[0.5, 0.0]]]])  # a quarter of 0, three quarters of 1
    feat = torch.ones(1, 2, 2, 2)
    _, agreement = label_cooccurrence(feat, label, middle, middle, 2)
    assert float(agreement) == pytest.approx(0.25**2 + 0.75**2)


def test_average_precision_of_a_small_ranking():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    relevant = torch.tensor([True, False, True, False])
    precision, recall = precision_recall(scores, relevant)
    torch.testing.assert_close(
        precision, torch.tensor([1, 1 / 2, 2 / 3, 1 / 2]).double()
    )
    torch.testing.assert_close(recall, torch.tensor([0.5, 0.5, 1, 1]).double())
    assert average_precision(scores, relevant) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision(relevant.float(), relevant) == 1.0


def test_the_order_of_equal_scores_does_not_matter():
    relevant = torch.rand(300, generator=generator(0)) < 0.3
    share = float(relevant.float().mean())
    assert average_precision(torch.zeros(300), relevant) == pytest.approx(share)
    assert average_precision(torch.zeros(300), relevant.flip(0)) == pytest.approx(share)


def test_recall_of_nothing():
    with pytest.raises(ValueError, match="nothing is relevant"):
        average_precision(torch.ones(4), torch.zeros(4, dtype=torch.bool))
