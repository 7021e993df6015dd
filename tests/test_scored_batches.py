"""Batches with labels at the size they are stored in."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import Stripes
from uss_utils.datasets.transforms import Transform, to_uint8
from uss_utils.scored_batches import eval_mode, resized, scored_batches


def test_squeezed_images_are_scored_at_the_size_of_their_labels():
    data = Stripes(5, size=(16, 24)).with_transform(Transform("resize", (8, 8)))
    batches = list(scored_batches(data, 2, pictures=True))
    assert [list(batch.rows) for batch in batches] == [[0, 1], [2, 3], [4]]
    for batch in batches:
        image, label = data.batch(batch.rows)
        assert torch.equal(batch.image, image) and torch.equal(batch.label, label)
        for i, own, picture in zip(batch.rows, batch.own, batch.pictures, strict=True):
            pixels, truth = data.read(i)
            assert np.array_equal(own, truth) and np.array_equal(picture, pixels)


@pytest.mark.parametrize("transform", [Transform(), Transform("center", 12)])
def test_other_geometries_are_scored_as_they_come(transform):
    data = Stripes(2).with_transform(transform)
    (batch,) = scored_batches(data, 4, pictures=True)
    assert torch.equal(torch.stack(batch.own), batch.label)
    assert torch.equal(torch.stack(batch.pictures), to_uint8(batch.image))
    assert next(iter(scored_batches(data, 4))).pictures == []


def test_nothing_to_score_is_explained():
    with pytest.raises(ValueError, match="stripes train has no labels"):
        list(scored_batches(Stripes(labels=False)))
    with pytest.raises(ValueError, match="stripes val has no images"):
        list(scored_batches(Stripes(0, "val")))


def test_ids_are_resized_by_the_floor_rule():
    ids = torch.arange(35).view(1, 5, 7)
    found = resized(ids, (8, 3))
    rows, columns = torch.arange(8) * 5 // 8, torch.arange(3) * 7 // 3
    assert torch.equal(found[0], ids[0][rows[:, None], columns])
    assert resized(ids, (5, 7)) is ids


def test_eval_mode_is_for_a_while_and_part_by_part():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    net[1].eval()
    for function in (net, net.forward):
        with eval_mode(function):
            assert not net.training and not net[0].training
        assert net.training and net[0].training and not net[1].training
    with eval_mode(lambda x: x), pytest.raises(ZeroDivisionError), eval_mode(net):
        raise ZeroDivisionError
    assert net[0].training
