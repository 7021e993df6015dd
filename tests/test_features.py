import pytest
import torch
import torch.nn.functional as F

from tests.toy_images import Toy
from uss_utils.backbones import load
from uss_utils.features import (
    FeatureCache,
    correspondence_heatmap,
    extract,
    patch_heatmap,
    sample_at,
)


@pytest.fixture(scope="module")
def backbone():
    return load("vit_tiny_random")


def test_extract_equals_one_forward_pass_for_any_batch_size(backbone):
    images = torch.randn(7, 3, 16, 24)
    feat = extract(backbone, images, batch_size=3)
    assert feat.shape == (7, 192, 2, 3) and feat.dtype == torch.float32
    torch.testing.assert_close(feat, backbone.features(images))


def test_extract_reads_a_data_set_in_order(backbone):
    toy = Toy(5)
    feat = extract(backbone, toy, batch_size=2)
    torch.testing.assert_close(feat, backbone.features(toy.batch(range(5))[0]))


def test_extract_works_for_the_controls_and_shows_a_bar(capsys):
    feat = extract(load("colour"), Toy(3), progress=True)
    assert feat.shape == (3, 3, 16, 16) and 0 <= feat.min() and feat.max() <= 1
    assert "features: 100%" in capsys.readouterr().err


def test_not_finite_features_name_the_image(backbone):
    images = torch.zeros(5, 3, 16, 16)
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="vit_tiny_random gives NaN .* for image 3"):
        extract(backbone, images, batch_size=2)


def test_bad_arguments(backbone):
    with pytest.raises(ValueError, match="there is no image"):
        extract(backbone, torch.zeros(0, 3, 16, 16))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extract(backbone, torch.zeros(1, 3, 16, 16), batch_size=0)


def test_cuda_asked_for_and_absent(backbone, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = "device 'cuda' was asked for, but torch sees no CUDA GPU"
    with pytest.raises(ValueError, match=message):
        extract(backbone, torch.zeros(1, 3, 16, 16), device="cuda")
    with pytest.raises(ValueError, match=message):
        FeatureCache.build(backbone, Toy(2), tmp_path, device="cuda")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_reading_reach_the_caller(backbone):
    class Broken(Toy):
        def batch(self, indices):
            if 4 in list(indices):
                raise ValueError("image 4 is unreadable")
            return super().batch(indices)

    with pytest.raises(ValueError, match="image 4 is unreadable"):
        extract(backbone, Broken(8), batch_size=2)


def test_sample_at_hits_cell_centres_and_exchanges_the_axes():
    grid = torch.arange(12.0).reshape(1, 1, 3, 4)
    coords = torch.tensor([[[[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]]])  # (1, 1, 3, 2)
    sampled = sample_at(grid, coords)
    assert sampled.shape == (1, 1, 3, 1)
    assert sampled.flatten().tolist() == [0, 3, 8]
    outside = sample_at(grid, coords * 5)
    assert torch.equal(outside, sampled)


def test_heatmap_peaks_at_the_query_and_forgets_the_mean():
    feat = F.one_hot(torch.arange(16), 16).float().T.reshape(1, 16, 4, 4)
    query = torch.tensor([[[-1.0, -1.0], [1.0, 1.0]]])
    heat = correspondence_heatmap(feat, query)
    assert heat.shape == (2, 4, 4)
    assert heat.flatten(1).argmax(1).tolist() == [0, 15]
    torch.testing.assert_close(heat.amax((1, 2)), torch.full((2,), 1 - 1 / 16))
    assert heat.min() == 0
    assert correspondence_heatmap(feat, query, size=(9, 5)).shape == (2, 9, 5)


def test_heatmap_refuses_maps_that_do_not_match():
    one, two = torch.ones(1, 4, 3, 3), torch.ones(2, 4, 3, 3)
    query = torch.zeros(1, 1, 2)
    for other in (two, torch.ones(1, 5, 3, 3)):
        with pytest.raises(ValueError, match="two maps of shape"):
            correspondence_heatmap(one, query, other)


def test_heatmap_of_a_patch_by_row_and_column():
    feat = F.one_hot(torch.arange(15), 15).float().T.reshape(15, 3, 5)
    other = feat.flip(1)
    for place in ((0, 0), (1, 3), (2, 4)):
        assert patch_heatmap(feat, place).argmax() == 5 * place[0] + place[1]
        found = patch_heatmap(feat, place, other)
        assert found.argmax() == 5 * (2 - place[0]) + place[1]
    single = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # one row of two patches
    assert patch_heatmap(single, (0, 1)).tolist() == [[0, 0.5]]
    with pytest.raises(ValueError, match=r"\(3, 0\) lies outside the grid of \(3, 5\)"):
        patch_heatmap(feat, (3, 0))
