"""HSG's pairs of views: geometry, regions carried along, colours, what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.models import check_shares
from tests.toy_images import Toy
from uss_utils.datasets.transforms import IMAGENET_MEAN, Transform, denormalise
from uss_utils.environment import generator
from uss_utils.methods import _hsg_data as data
from uss_utils.methods._hsg_data import (
    PADDED,
    Geometry,
    RegionViewBatches,
    RegionViews,
    cut_views,
    draw_changes,
    draw_geometry,
    two_views,
)
from uss_utils.photometric import Change

BOTH = pytest.mark.parametrize("views_of", [RegionViews, RegionViewBatches])
SIZE = (30, 41)


def pictures(n=4, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)


def quarters(n=4, size=SIZE):
    """Region ids 0 to 3, differing from image to image in where they meet."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([2 * (y > 10 + i) + (x > 15 + 2 * i) for i in range(n)])


def step_by_step(image, regions, flip, ratio, corner, size):
    """The geometry as it is told: mirror, scale, pad, crop, one after the other."""
    if flip:
        image, regions = image.flip(-1), regions.flip(-1)
    height, width = regions.shape
    new = int(ratio * height), int(ratio * width)
    image = F.interpolate(image[None], new, mode="bilinear")[0]
    rows, columns = (np.arange(b) * a // b for a, b in zip(SIZE, new, strict=True))
    regions = regions[rows[:, None], columns]
    valid = torch.ones(new, dtype=torch.bool)
    pad = (0, max(0, size - new[1]), 0, max(0, size - new[0]))
    channels = zip(image, IMAGENET_MEAN, strict=True)
    image = torch.stack([F.pad(channel, pad, value=mean) for channel, mean in channels])
    regions, valid = F.pad(regions, pad, value=255), F.pad(valid, pad)
    cut = (..., slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size))
    return image[cut], regions[cut], valid[cut]


@pytest.mark.parametrize("size", [24, 40])
def test_geometry_is_that_of_one_step_after_the_other(size):
    n = 40
    images = torch.from_numpy(pictures(n)).movedim(-1, 1).float() / 255
    regions = torch.from_numpy(quarters(n))
    drawn = draw_geometry(n, *SIZE, size, generator(0))
    found = cut_views(images, regions, drawn, size)
    for i in range(n):
        flip, ratio, corner = (part[i].tolist() for part in drawn)
        known = step_by_step(images[i], regions[i], flip, ratio, corner, size)
        torch.testing.assert_close(found[0][i], known[0], atol=1e-5, rtol=0)
        assert torch.equal(found[1][i], known[1])
        assert torch.equal(found[2][i], known[2])
    assert (found[1][~found[2]] == PADDED).all() and not found[2].all()


def test_recorded_draws_can_be_given():
    image = torch.arange(12.0).expand(1, 3, 5, 12)
    regions = torch.arange(12).expand(1, 5, 12)
    one = torch.tensor([1.0], dtype=torch.float64)
    same = Geometry(torch.tensor([False]), one, torch.tensor([[0, 3]]))
    views, cut, valid = cut_views(image, regions, same, 6, fill=(-1, -2, -3))
    assert cut[0, 0].tolist() == [3, 4, 5, 6, 7, 8]
    torch.testing.assert_close(views[0, 0, :5], cut[0, :5].float())
    assert not valid[0, 5].any() and valid[0, :5].all()
    assert (views[0, :, 5] == torch.tensor([[-1.0], [-2], [-3]])).all()
    larger = Geometry(torch.tensor([False]), one * 1.3, torch.tensor([[0, 0]]))
    valid = cut_views(torch.zeros(1, 3, 50, 10), torch.zeros(1, 50, 10), larger, 70)[2]
    assert valid[0].sum(0).max() == 65 and valid[0].sum(1).max() == 13
    mirrored = same._replace(flip=torch.tensor([True]))
    assert cut_views(image, regions, mirrored, 6)[1][0, 0].tolist() == [
        *(8, 7, 6, 5, 4, 3)
    ]


def test_draws_cover_their_ranges():
    drawn = draw_geometry(4000, 100, 60, 50, generator(0))
    assert 0.45 < drawn.flip.float().mean() < 0.55
    assert 0.5 <= drawn.ratio.min() < 0.51 and 1.49 < drawn.ratio.max() < 1.5
    new = torch.stack([(drawn.ratio * n).floor().long() for n in (100, 60)], 1)
    room = (new - 50).clamp(min=0)
    assert (drawn.corner <= room).all() and (drawn.corner >= 0).all()
    # The last offset is never drawn: with one pixel of room a view stays where it is.
    assert (drawn.corner < room.clamp(min=1)).all()
    assert (drawn.corner[:, 0] > 90).any()
    changes = draw_changes(2000, generator(0))
    assert 0.77 < np.mean([bool(change.jitter) for change in changes]) < 0.83
    assert 0.17 < np.mean([change.grey for change in changes]) < 0.23
    factors = dict(next(change for change in changes if change.jitter).jitter)
    assert sorted(factors) == [0, 1, 2, 3] and abs(factors[3]) <= 0.1


def test_two_views():
    image, regions = pictures(1)[0], quarters(1)[0]
    views, cut, valid = two_views(image, regions, 24, generator(1))
    assert views.shape == (2, 3, 24, 24) and views.dtype == torch.float32
    assert cut.shape == valid.shape == (2, 24, 24)
    assert cut.dtype == torch.int64 and valid.dtype == torch.bool
    rgb = denormalise(views)
    assert -1e-5 <= rgb.min() and rgb.max() <= 1 + 1e-5
    assert not torch.equal(views[0], views[1])
    assert set(cut.unique().tolist()) <= {0, 1, 2, 3, PADDED}
    again = two_views(torch.from_numpy(image), regions, 24, generator(1))
    assert torch.equal(views, again[0])


def test_colours_are_bytes_before_they_change(monkeypatch):
    monkeypatch.setattr(data, "draw_changes", lambda n, _: [Change()] * n)
    views = two_views(pictures(1)[0], quarters(1)[0], 24, generator(1))[0]
    levels = denormalise(views) * 255
    assert (levels - levels.round()).abs().max() < 1e-3


def test_a_view_larger_than_the_image_is_padded():
    views, cut, valid = two_views(pictures(1)[0], quarters(1)[0], 90, generator(0))
    assert not valid[:, -1].any() and valid[:, 0, 0].all()
    assert torch.equal(cut == PADDED, ~valid)
    one_pixel = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.int64)
    assert two_views(*one_pixel, 8, generator(0))[2].sum() == 2


class Stored:
    """Region maps as they lie on disk."""

    def __init__(self, maps):
        self.maps = torch.from_numpy(maps)

    def __len__(self):
        return len(self.maps)

    def read(self, index):
        return self.maps[index]


@BOTH
def test_a_batch_of_pairs(views_of):
    pairs = views_of(pictures(), Stored(quarters()), size=24)
    assert len(pairs) == 4
    batch = pairs.draw(torch.tensor([0, 3, 1]), generator(0))
    assert set(batch) == {"views", "regions", "valid"}
    assert batch["views"].shape == (6, 3, 24, 24)
    assert batch["regions"].shape == batch["valid"].shape == (6, 24, 24)
    assert batch["views"].dtype == torch.float32
    assert batch["regions"].dtype == torch.int64


@BOTH
def test_regions_follow_their_images(views_of, monkeypatch):
    """Without colours a view shows the id of its region, and of its image."""
    monkeypatch.setattr(data, "draw_changes", lambda n, generator: [Change()] * n)
    maps = quarters(3)
    images = np.zeros((3, *SIZE, 3), np.uint8)
    images[..., 0] = maps * 40
    images[..., 1] = np.arange(3)[:, None, None] * 50
    pairs = views_of(images, maps, size=24)
    batch = pairs.draw(torch.arange(3).repeat(5), generator(1))
    rgb = denormalise(batch["views"]) * 255
    valid, ids = batch["valid"], batch["regions"]
    owner = torch.arange(3).repeat(5).repeat_interleave(2)
    shown = rgb[:, 1] - owner[:, None, None] * 50
    assert shown[valid].abs().max() < 0.01
    # Edges are mixed in the picture only: most pixels agree exactly.
    exact = (rgb[:, 0] - ids * 40).abs() < 0.5
    assert exact[valid].float().mean() > 0.8
    assert (ids[~valid] == PADDED).all()
    mean = torch.tensor(IMAGENET_MEAN)[:, None] * 255
    padding = rgb.movedim(1, 0)[:, ~valid]
    assert (padding - mean).abs().max() <= 0.51  # rounded to 8 bits


@BOTH
def test_draws_follow_the_generator_alone(views_of, monkeypatch):
    pairs = views_of(pictures(), quarters(), size=16)

    def refused(*args, **options):
        raise AssertionError("numpy's global generator was asked")

    for name in ("rand", "random", "randint", "permutation"):
        monkeypatch.setattr(np.random, name, refused)
    state = torch.get_rng_state()
    first, again, other = (
        pairs.draw(torch.arange(4), generator(seed)) for seed in (3, 3, 4)
    )
    for key in first:
        assert torch.equal(first[key], again[key])
    assert not torch.equal(first["views"], other["views"])
    assert torch.equal(state, torch.get_rng_state())


@BOTH
def test_processes_cut_their_shares_of_one_batch(views_of, monkeypatch):
    pairs = views_of(pictures(), quarters(), size=16)
    check_shares(pairs, [6, 4], monkeypatch)


def test_threads_change_nothing():
    batches = [
        RegionViews(pictures(), quarters(), size=16, threads=n).draw(
            torch.arange(4), generator(0)
        )
        for n in (1, 4)
    ]
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])


@BOTH
def test_data_sets_are_seen_through_their_transform(views_of):
    images = Toy(3, transform=Transform.sane(10))
    batch = views_of(images, quarters(3, (10, 10)), size=8).draw(
        torch.arange(3), generator(0)
    )
    assert batch["views"].shape == (6, 3, 8, 8)
    with pytest.raises(ValueError, match=r"image train_000000 has shape \(10, 10, 3\)"):
        views_of(images, quarters(3, (16, 16))).draw(torch.tensor([0]), generator(0))


@BOTH
def test_large_ids_are_kept(views_of):
    maps = quarters() + 70_000
    cut = views_of(pictures(), maps, size=16).draw(torch.arange(4), generator(0))
    known = cut["regions"][cut["valid"]]
    assert known.min() >= 70_000


def test_images_of_several_sizes_are_read_one_by_one():
    images = [pictures(1)[0], pictures(1, (20, 50))[0]]
    maps = [quarters(1)[0], quarters(1, (20, 50))[0]]
    batch = RegionViews(images, maps, size=24).draw(torch.arange(2), generator(0))
    assert batch["views"].shape == (4, 3, 24, 24)
    with pytest.raises(ValueError, match=r"one size, got .*use RegionViews"):
        RegionViewBatches(images, maps)


@BOTH
def test_what_does_not_fit_is_refused(views_of):
    with pytest.raises(ValueError, match="3 region maps for 4 images"):
        views_of(pictures(), quarters(3))
    with pytest.raises(ValueError, match="0 region maps for 0 images"):
        views_of([], [])
    with pytest.raises(ValueError, match=r"sizes differ: the image has shape \(30, 41"):
        two_views(pictures(1)[0], quarters(1)[0][:-1], 8, generator(0))
