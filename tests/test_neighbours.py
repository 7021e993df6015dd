import pytest
import torch
import torch.nn.functional as F

from uss_utils import neighbours
from uss_utils.neighbours import global_descriptors, nearest, nearest_batches


def test_descriptors_are_unit_means():
    feat = torch.randn(3, 5, 2, 4)
    descriptors = global_descriptors(feat)
    expected = F.normalize(feat.mean((2, 3)), dim=1)
    torch.testing.assert_close(descriptors, expected)


@pytest.mark.parametrize("columns", [3, 8, 9000])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_lists_equal_a_full_sort_for_any_chunk(chunk, columns, monkeypatch):
    monkeypatch.setattr(neighbours, "COLUMNS", columns)
    descriptors = F.normalize(torch.randn(20, 6), dim=1)
    indices, cosines = nearest(descriptors, 5, chunk=chunk)
    wanted = (descriptors @ descriptors.T).sort(dim=1, descending=True)
    assert torch.equal(indices, wanted.indices[:, :5])
    torch.testing.assert_close(cosines, wanted.values[:, :5])


def test_lists_can_begin_in_the_middle():
    descriptors = F.normalize(torch.randn(20, 6), dim=1)
    indices, _ = nearest(descriptors, 4)
    rest = [part for part, _ in nearest_batches(descriptors, 4, start=13, chunk=3)]
    assert [len(part) for part in rest] == [3, 3, 1]
    assert torch.equal(torch.cat(rest), indices[13:])


def test_first_is_itself_even_among_copies():
    descriptors = F.normalize(torch.randn(1, 4), dim=1).repeat(6, 1)
    indices, cosines = nearest(descriptors, 3)
    assert indices[:, 0].tolist() == list(range(6))
    torch.testing.assert_close(cosines, torch.ones(6, 3))


def test_bad_input():
    descriptors = torch.eye(4)
    for k in (0, 5):
        with pytest.raises(
            ValueError, match=rf"{k} nearest of 4 images; use k in 1\.\."
        ):
            nearest(descriptors, k)
    with pytest.raises(ValueError, match=r"shape \(N, C\), got \(4,\)"):
        nearest(torch.ones(4), 1)
    descriptors[2, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        nearest(descriptors, 2)
