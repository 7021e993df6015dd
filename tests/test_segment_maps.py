"""Prototypes of segments, components, and maps painted from segments."""

import pytest
import torch
import torch.nn.functional as F

from uss_utils import upsampling
from uss_utils.environment import generator
from uss_utils.segment_maps import (
    class_counts,
    class_maps,
    label_maps,
    region_prototypes,
    segment_prototypes,
    split_components,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def ids_of(n_images=3, n=4, size=(10, 14), seed=0):
    return torch.randint(0, n + 1, (n_images, *size), generator=generator(seed))


def bilinear(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------------- prototypes


@pytest.mark.parametrize("weighting", ["logit", "mask"])
def test_prototypes_by_their_definition(weighting):
    embedding, logit = draw(3, 6, 8, 9), draw(3, 8, 9, seed=1)
    prototypes, masks = segment_prototypes(embedding, logit, 0.3, weighting)
    assert torch.equal(masks, logit > 0.3)
    for i in range(3):
        weight = logit[i][masks[i]] if weighting == "logit" else 1
        total = (embedding[i][:, masks[i]] * weight).sum(1)
        torch.testing.assert_close(prototypes[i], total / total.norm())


def test_coarse_embeddings_count_as_upsampled():
    embedding, logit = draw(2, 6, 4, 5), draw(2, 24, 30, seed=1)
    prototypes, masks = segment_prototypes(embedding, logit)
    large = bilinear(embedding, (24, 30))
    torch.testing.assert_close(prototypes, segment_prototypes(large, logit)[0])
    assert masks.shape == logit.shape


def test_a_single_image_keeps_its_axis():
    prototypes, masks = segment_prototypes(draw(1, 6, 4, 4), draw(1, 4, 4, seed=1))
    assert prototypes.shape == (1, 6) and masks.shape == (1, 4, 4)


def test_an_image_without_salient_pixels_has_a_zero_prototype():
    logit = draw(2, 4, 4, seed=1)
    logit[0] = 0.5  # the threshold itself is not above it
    prototypes, masks = segment_prototypes(draw(2, 6, 4, 4), logit)
    assert not masks[0].any() and not prototypes[0].any()
    assert prototypes[1].norm().item() == pytest.approx(1)


def test_many_objects_are_as_many_masks(monkeypatch):
    embedding, ids = draw(3, 6, 5, 7), ids_of()
    rows = region_prototypes(embedding, ids).view(3, 4, 6)
    for number in range(1, 5):
        torch.testing.assert_close(
            rows[:, number - 1], region_prototypes(embedding, ids == number)
        )
    monkeypatch.setattr(upsampling, "CACHED", 4 * 140)  # one image at a time
    torch.testing.assert_close(region_prototypes(embedding, ids).view(3, 4, 6), rows)


def test_absent_objects_have_zero_rows():
    ids = ids_of(2, 3)
    ids[0][ids[0] == 2] = 0
    rows = region_prototypes(draw(2, 6, 5, 7), ids, n_objects=5).view(2, 5, 6)
    there = rows.any(2)
    assert there.tolist() == [
        [True, False, True, False, False],
        [True] * 3 + [False] * 2,
    ]


def test_bad_maps_are_explained():
    embedding, logit = draw(2, 6, 4, 4), draw(2, 4, 4, seed=1)
    with pytest.raises(ValueError, match="unknown weighting 'soft'; known: logit"):
        segment_prototypes(embedding, logit, weighting="soft")
    with pytest.raises(ValueError, match="lets negative logits in"):
        segment_prototypes(embedding, logit, -1.0)
    assert segment_prototypes(embedding, logit, -1.0, "mask")[1].any()
    with pytest.raises(ValueError, match="NaN or infinite"):
        segment_prototypes(embedding, logit.index_fill(0, torch.tensor(1), torch.nan))
    with pytest.raises(ValueError, match="NaN or infinite"):
        segment_prototypes(embedding * torch.nan, logit)
    with pytest.raises(ValueError, match="do not fit; expected"):
        region_prototypes(embedding, logit[:1] > 0)
    with pytest.raises(ValueError, match="hold id 4, but n_objects=3"):
        region_prototypes(embedding, ids_of(2), n_objects=3)


# ---------------------------------------------------------------------- components


def test_components_touch_at_corners_and_small_ones_go():
    picture = """
    ##...#
    ##..#.
    ......
    ...###
    #..###
    """.split()
    mask = torch.tensor([[pixel == "#" for pixel in row] for row in picture])
    ids = split_components(mask[None], min_share=2 / 30)[0]
    assert [ids[0, 0], ids[0, 5], ids[3, 3], ids[4, 0]] == [1, 2, 3, 0]
    assert torch.equal(ids > 0, mask & (torch.arange(30).view(5, 6) != 24))
    assert ids[1, 4] == 2
    assert split_components(mask[None], 0)[0].unique().tolist() == [0, 1, 2, 3, 4]


def test_components_of_empty_and_full_masks():
    ids = split_components(torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]) > 0)
    assert not ids[0].any() and (ids[1] == 1).all()


# ----------------------------------------------------------------- maps and counts


def test_maps_of_binary_masks():
    masks = torch.tensor([[[True, False]], [[True, True]], [[True, False]]])
    found = label_maps(masks, torch.tensor([2, 0, -1]))
    assert found.tolist() == [[[3, 0]], [[1, 1]], [[0, 0]]]
    found = class_maps(masks, torch.tensor([2, 0, -1]))
    assert found.tolist() == [[[2, 0]], [[0, 0]], [[0, 0]]]


def test_maps_of_many_objects():
    ids = ids_of(3, 4)
    clusters = torch.randint(-1, 6, (12,), generator=generator(1))
    found = label_maps(ids, clusters)
    for i, number in ((0, 1), (1, 3), (2, 4)):
        expected = clusters[4 * i + number - 1] + 1
        assert (found[i][ids[i] == number] == expected).all()
    assert not found[ids == 0].any()
    with pytest.raises(ValueError, match="7 segments do not fit 3 masks"):
        label_maps(ids, clusters[:7])
    with pytest.raises(ValueError, match="ids up to 4"):
        class_maps(ids, clusters[:9])


def test_counts_by_their_definition():
    ids, label = ids_of(3, 2), ids_of(3, 5, seed=1) - 1  # classes 0..4, ignored -1
    counts = class_counts(ids, label, 5, n_objects=3)
    assert counts.shape == (3, 4, 5)
    for i in range(3):
        for number in range(4):
            for k in range(5):
                expected = ((ids[i] == number) & (label[i] == k)).sum()
                assert counts[i, number, k] == expected
    with pytest.raises(ValueError, match="hold id 2, but n_objects=1"):
        class_counts(ids, label, 5)
