import colorsys

import numpy as np
import pytest
import torch

from uss_utils import hierarchy_shown
from uss_utils.hierarchy import Hierarchy

FINE = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
COARSE = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
IMAGE = np.full((4, 4, 3), 200, np.uint8)


def hue(colour):
    return colorsys.rgb_to_hsv(*(colour / 255))[0]


class TestColours:
    def test_regions_keep_the_part_of_the_circle_of_their_parent(self):
        fine, coarse = hierarchy_shown.nested_colours(Hierarchy.of([FINE, COARSE]))
        assert fine.shape == (4, 3) and coarse.shape == (2, 3)
        for region, parent in enumerate((0, 0, 1, 1)):
            assert parent / 2 <= hue(fine[region]) < (parent + 1) / 2
        assert len({tuple(colour) for colour in fine}) == 4

    def test_a_region_that_is_not_cut(self):
        single = torch.zeros(4, 4, dtype=torch.int64)
        fine, coarse = hierarchy_shown.nested_colours(Hierarchy.of([single, single]))
        assert len(fine) == len(coarse) == 1


def test_levels_stand_from_coarse_to_fine():
    found = [Hierarchy.of([FINE, COARSE]), Hierarchy.of([FINE, 0 * FINE])]
    names = ["segments", "groups"]
    figure = hierarchy_shown.nested([IMAGE, IMAGE], found, names)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["image", "2 groups", "4 segments", "", "1 group", "4 segments"]
    picture = np.asarray(figure.axes[1].images[0].get_array())
    assert (picture[1] == 20).all()  # the border
    assert (picture[0] == picture[0, 0]).all()
    assert not (picture[0, 0] == picture[3, 0]).all()


class TestCover:
    true = (FINE + 1, FINE * 0)

    def test_levels_are_added_from_coarse_to_fine(self):
        found = hierarchy_shown.cover(self.true, lambda i: [FINE, COARSE], [2, 4])
        assert found == pytest.approx({"2 regions": 50, "6 regions": 100})

    def test_pictures_count_alike_and_know_their_place(self):
        levels = [[FINE], [COARSE]]
        found = hierarchy_shown.cover([FINE + 1, FINE + 1], lambda i: levels[i], [4])
        assert found == pytest.approx({"4 regions": 75})

    def test_no_picture_no_number(self):
        assert hierarchy_shown.cover([], lambda i: [FINE], [4]) == {}


def test_cuts_into_few_regions():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16, :16], image[:16, 16:], image[16:, :16] = 80, 160, 240
    fine, coarse = hierarchy_shown.few_regions(image, 32, [2, 4], (16, 16))
    assert fine.shape == coarse.shape == (16, 16)
    assert len(np.unique(coarse)) <= 2 <= len(np.unique(fine)) <= 4
