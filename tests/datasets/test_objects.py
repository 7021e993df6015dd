"""Sets with objects and background."""

import numpy as np
import pytest
import torch

from tests.models import PALETTE, Stripes
from uss_utils.datasets.objects import ObjectClasses
from uss_utils.datasets.transforms import Transform


def test_all_but_the_objects_are_background():
    plain, data = Stripes(), ObjectClasses(Stripes(), ("bright", "dark"))
    assert data.classes == ("background", "bright", "dark")
    assert data.palette.tolist() == [
        [0, 0, 0],
        PALETTE[2].tolist(),
        PALETTE[0].tolist(),
    ]
    table = torch.tensor([2, 0, 1, -1])
    image, label = plain.batch(range(6))
    found = data.batch(range(6))
    assert torch.equal(found[0], image) and torch.equal(found[1], table[label])
    assert torch.equal(data.labels(range(6)), table[label])
    assert len(data) == 6 and data.item_name(2) == plain.item_name(2)


def test_geometry_and_names_are_those_of_the_set():
    geometry = Transform("resize", (8, 8))
    data = ObjectClasses(Stripes().with_transform(geometry), ("dark",))
    assert data.transform == geometry and data.batch([0])[1].shape == (1, 8, 8)
    assert (data.name, data.split) == ("stripes", "train")
    assert np.array_equal(data.read(0)[1], data.read_label(0))


def test_the_choice_of_objects_is_part_of_the_fingerprint():
    found = {
        data.fingerprint()
        for data in (
            Stripes(),
            ObjectClasses(Stripes(), ("dark",)),
            ObjectClasses(Stripes(), ("bright",)),
            ObjectClasses(Stripes(), ("bright", "dark")),
        )
    }
    assert len(found) == 4
    same = [ObjectClasses(Stripes(), ("dark",)).fingerprint() for _ in range(2)]
    assert same[0] == same[1]


def test_sets_without_labels_stay_without():
    data = ObjectClasses(Stripes(labels=False), ("dark",))
    assert not data.has_labels and data.read(0)[1] is None
    assert (data.batch([0])[1] == -1).all()


@pytest.mark.parametrize("objects", [(), ("dark", "dark"), ("sky",)])
def test_objects_that_cannot_be_are_explained(objects):
    with pytest.raises(ValueError, match="choose one or several of dark, middle, bri"):
        ObjectClasses(Stripes(), objects)
