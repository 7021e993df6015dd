"""MaskContrast's pairs of views: geometry, area gate, colours, what is refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop

from tests.models import check_shares
from uss_utils import datasets, views
from uss_utils.datasets.transforms import Transform, denormalise
from uss_utils.environment import generator
from uss_utils.methods import _maskcontrast_data as data
from uss_utils.methods._maskcontrast_batches import TwoViewBatches
from uss_utils.methods._maskcontrast_data import (
    TwoViewDataset,
    crop_pair,
    draw_accepted,
    draw_change,
)
from uss_utils.photometric import Change

BOTH = pytest.mark.parametrize("views_of", [TwoViewDataset, TwoViewBatches])
SIDE = 32
PLAIN = Change()


def pictures(n=4, size=(SIDE, SIDE), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)


def centred(n=4, size=(SIDE, SIDE), value=1, dtype=np.int64):
    masks = np.zeros((n, *size), dtype)
    masks[:, size[0] // 4 : -size[0] // 4, size[1] // 4 : -size[1] // 4] = value
    return masks


def encoded(masks):
    """Pictures that show their masks: red is the id times 40."""
    images = np.zeros((*masks.shape, 3), np.uint8)
    images[..., 0] = masks * 40
    return images


@pytest.fixture
def no_colours(monkeypatch):
    """Views keep their colours, so that geometry can be read off them."""
    for module in (data, "uss_utils.methods._maskcontrast_batches"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.draw_change", lambda generator: PLAIN)


@BOTH
def test_a_batch_of_pairs(views_of):
    pairs = views_of(pictures(), centred(), size=24)
    batch = pairs.draw(torch.tensor([0, 3, 1]), generator(0))
    assert set(batch) == {"view_q", "mask_q", "view_k", "mask_k"}
    for name in "qk":
        assert batch[f"view_{name}"].shape == (3, 3, 24, 24)
        assert batch[f"view_{name}"].dtype == torch.float32
        assert batch[f"mask_{name}"].shape == (3, 24, 24)
        assert batch[f"mask_{name}"].dtype == torch.int64
        rgb = denormalise(batch[f"view_{name}"])
        assert -1e-5 <= rgb.min() and rgb.max() <= 1 + 1e-5
    assert not torch.equal(batch["view_q"], batch["view_k"])
    assert len(pairs) == 4


@BOTH
def test_masks_follow_their_images(views_of, no_colours):
    masks = centred(6)
    masks[:, 10:14, 8:20] = 3
    pairs = views_of(encoded(masks), masks, size=48)
    batch = pairs.draw(torch.arange(6).repeat(5), generator(1))
    for name in "qk":
        red = denormalise(batch[f"view_{name}"])[:, 0] * 255
        ids = batch[f"mask_{name}"]
        # Edges are mixed in the picture only: most pixels agree exactly.
        exact = (red - ids * 40).abs() < 0.5
        assert exact.float().mean() > 0.8
        assert set(ids.unique().tolist()) <= {0, 1, 3}
        assert len(red.flatten(1).unique(dim=0)) > 20  # every item has a box of its own


@BOTH
def test_draws_follow_the_generator_alone(views_of, monkeypatch):
    pairs = views_of(pictures(), centred(), size=16)

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
    assert not torch.equal(first["view_q"], other["view_q"])
    assert torch.equal(state, torch.get_rng_state())


@BOTH
def test_processes_cut_their_shares_of_one_batch(views_of, monkeypatch):
    pairs = views_of(pictures(), centred(), size=16)
    check_shares(pairs, [3, 2], monkeypatch)


def test_threads_change_nothing():
    batches = [
        TwoViewDataset(pictures(), centred(), size=16, threads=n).draw(
            torch.arange(4), generator(0)
        )
        for n in (1, 4)
    ]
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_draws_anew_in_every_worker_and_epoch(workers):
    image, mask = pictures(1), centred(1)
    pairs = TwoViewDataset(np.repeat(image, 4, 0), np.repeat(mask, 4, 0), size=16)
    loader = DataLoader(pairs, 1, num_workers=workers, generator=generator(5))
    seen = [item["view_q"] for _ in range(2) for item in loader]
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) == 8


@BOTH
def test_data_sets_are_seen_through_their_transform(views_of):
    scenes = datasets.load("scenes", limit=3, size=64, transform=Transform.sane(40))
    masks = centred(3, (40, 40))
    batch = views_of(scenes, masks, size=16).draw(torch.arange(3), generator(0))
    assert batch["view_k"].shape == (3, 3, 16, 16)
    with pytest.raises(ValueError, match=r"image train_000000 has 40x40 .* mask 64x64"):
        views_of(scenes, centred(3, (64, 64))).draw(torch.tensor([0]), generator(0))


class Stored:
    """Masks as they lie on disk: some were rejected."""

    def __init__(self, masks, rejected):
        self.masks, self.rejected = torch.from_numpy(masks), rejected

    def has(self, index):
        return index not in self.rejected

    def read(self, indices):
        assert self.has(indices[0])
        return self.masks[list(indices)]


@BOTH
def test_images_without_a_mask_are_left_out(views_of, no_colours):
    masks = centred(4)
    images = np.repeat(np.arange(4, dtype=np.uint8)[:, None] * 50, SIDE**2 * 3, 1)
    images = images.reshape(4, SIDE, SIDE, 3)
    pairs = views_of(images, Stored(masks, {0, 2}), size=16)
    assert len(pairs) == 2
    batch = pairs.draw(torch.tensor([0, 1]), generator(0))
    shown = (denormalise(batch["view_q"])[:, 0, 0, 0] * 255).round()
    assert shown.tolist() == [50, 150]
    with pytest.raises(ValueError, match="none of the 4 images has a mask"):
        views_of(images, Stored(masks, {0, 1, 2, 3}))


# ---------------------------------------------------------------------- the area gate


@BOTH
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32])
@pytest.mark.parametrize("value", [1, 255])
def test_binary_masks_of_every_kind(views_of, dtype, value):
    masks = centred(2, value=value, dtype=dtype)
    batch = views_of(pictures(2), masks, size=16).draw(torch.arange(2), generator(0))
    expected = {0, 1} if dtype is bool else {0, value}
    assert set(batch["mask_q"].unique().tolist()) == expected


@BOTH
@pytest.mark.parametrize("bad", ["empty", "whole"])
def test_unusable_images_are_replaced(views_of, bad, no_colours):
    masks = centred(3)
    masks[1] = 0 if bad == "empty" else 1
    images = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    images[1] = 255
    pairs = views_of(images, masks, size=16)
    batch = pairs.draw(torch.tensor([0, 1, 1, 2]), generator(0))
    for name in "qk":
        assert denormalise(batch[f"view_{name}"]).max() < 0.5  # never the white one
        area = (batch[f"mask_{name}"] > 0).float().mean((1, 2))
        assert ((area > 0.01) & (area < 0.99)).all()


@BOTH
@pytest.mark.parametrize("value", [0, 1])
def test_a_set_in_which_nothing_passes(views_of, value, monkeypatch):
    for module in ("data", "batches"):
        place = f"uss_utils.methods._maskcontrast_{module}.MOST_DRAWS"
        monkeypatch.setattr(place, 20)
    pairs = views_of(pictures(), np.full((4, SIDE, SIDE), value), size=16)
    match = (
        r"no pair of views passes the area gate: of 20 draws none covers between 0.01 "
        rf"and 0.99 of both .*last {value}.000 and {value}.000.*Look at the masks"
    )
    with pytest.raises(ValueError, match=match):
        pairs.draw(torch.arange(4), generator(0))


@BOTH
def test_limits_of_the_gate(views_of):
    pairs = views_of(pictures(), centred(), size=16, min_area=0.5, max_area=0.7)
    batch = pairs.draw(torch.arange(4), generator(0))
    for name in "qk":
        area = (batch[f"mask_{name}"] > 0).float().mean((1, 2))
        assert ((area > 0.5) & (area < 0.7)).all()


def test_the_gate_is_strict_and_replaces_after_three():
    asked = []

    def draw(another):
        asked.append(another)
        return len(asked), [0.5, (0.01, 0.99, 0.0, 1.0, 0.0101)[len(asked) - 1]]

    assert draw_accepted(draw) == 5
    assert asked == [False] * 3 + [True] * 2


def test_rejected_draws_read_no_image(monkeypatch):
    masks = centred(4)
    masks[0] = 0
    pairs = TwoViewDataset(pictures(), masks, size=16, threads=1)
    read, plain = [], pairs.source.image
    monkeypatch.setattr(
        pairs.source, "image", lambda i, size: read.append(i) or plain(i, size)
    )
    pairs.draw(torch.tensor([0]), generator(0))
    assert len(read) == 1 and read[0] != 0


# --------------------------------------------------------------------------- bad input


@BOTH
def test_masks_that_do_not_fit(views_of):
    with pytest.raises(ValueError, match="3 masks for 4 images; give one per image"):
        views_of(pictures(), centred(3))
    with pytest.raises(ValueError, match=r"mask of image 0 is float64 .*0 background"):
        views_of(pictures(), centred().astype(float)).draw(
            torch.arange(1), generator(0)
        )
    with pytest.raises(ValueError, match=r"of shape \(32, 32, 3\); expected integers"):
        views_of(pictures(), pictures())[0]
    with pytest.raises(ValueError, match=r"image 0 has 32x32 .* its mask 20x32; make"):
        views_of(pictures(), centred(4, (20, 32))).draw(torch.arange(1), generator(0))


def test_batches_in_memory_need_one_size():
    sizes = [(20, 30), (30, 20)]
    images = [pictures(1, size)[0] for size in sizes]
    masks = [centred(1, size)[0] for size in sizes]
    with pytest.raises(
        ValueError, match=r"of one size, got \[\(20, 30\), \(30, 20\)\]"
    ):
        TwoViewBatches(images, masks)
    batch = TwoViewDataset(images, masks, size=16).draw(torch.arange(2), generator(0))
    assert batch["view_q"].shape == (2, 3, 16, 16)


# --------------------------------------------------------------------- both are alike


def test_both_ways_cut_the_same_pixels(no_colours):
    """At the image's own scale nothing is antialiased: a box, cut by either."""
    images, masks = pictures(), centred()
    box = torch.tensor([5, 3, 20, 26])
    batches = TwoViewBatches(images, masks, size=40)
    ids = batches._cropped(torch.arange(4), box.expand(4, 2, 4))
    source = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    across = box[[1, 0, 3, 2]].float().expand(4, 4)
    for flip in (False, True):
        mirrored = torch.tensor([[flip, False]]).expand(4, 2)
        fast = views.crop(source, across, mirrored, 40).permute(0, 2, 3, 1)
        for i in range(4):
            crop, mask = crop_pair(images[i], masks[i], box.tolist(), 40, flip)
            inner = slice(2, -2)  # borders: one looks outside the box, one does not
            difference = fast[i].numpy()[inner, inner] - crop[inner, inner]
            assert np.abs(difference).max() <= 1
            expected = ids[i, 0].flip(-1) if flip else ids[i, 0]
            assert np.array_equal(expected, mask)


def test_changes_have_the_published_odds():
    source = generator(0)
    changes = [draw_change(source) for _ in range(2000)]
    assert np.mean([bool(c.jitter) for c in changes]) == pytest.approx(0.8, abs=0.03)
    assert np.mean([c.grey for c in changes]) == pytest.approx(0.2, abs=0.03)
    for k, centre, reach in ((0, 1, 0.4), (1, 1, 0.4), (2, 1, 0.4), (3, 0, 0.1)):
        drawn = [dict(c.jitter)[k] for c in changes if c.jitter]
        assert centre - reach <= min(drawn) and max(drawn) <= centre + reach
        assert np.std(drawn) == pytest.approx(reach / 3**0.5, rel=0.1)
    assert len({tuple(k for k, _ in c.jitter) for c in changes}) == 25


@BOTH
def test_half_of_the_views_are_mirrored(views_of, no_colours):
    images, masks = np.zeros((1, SIDE, SIDE, 3), np.uint8), centred(1)
    images[:, :, :, :] = np.linspace(0, 255, SIDE, dtype=np.uint8)[None, None, :, None]
    batch = views_of(images, masks, size=16).draw(
        torch.zeros(300, dtype=torch.int64), generator(0)
    )
    falls = batch["view_q"][:, 0, 8, 0] > batch["view_q"][:, 0, 8, -1]
    assert falls.float().mean().item() == pytest.approx(0.5, abs=0.1)
    other = batch["view_k"][:, 0, 8, 0] > batch["view_k"][:, 0, 8, -1]
    assert (falls == other).float().mean().item() == pytest.approx(0.5, abs=0.1)


# ---------------------------------------------------------------------- boxes of views


@pytest.mark.parametrize("size", [(40, 60), (128, 128), (300, 10)])
def test_boxes_are_distributed_like_torchvisions(size):
    n = 4000
    boxes = views.draw_resized_crops(torch.tensor(size).expand(n, 2), generator(0))
    top, left, height, width = boxes.T
    assert (height > 0).all() and (width > 0).all()
    assert (top >= 0).all() and (top + height <= size[0]).all()
    assert (left >= 0).all() and (left + width <= size[1]).all()
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    other = torch.tensor(
        [
            RandomResizedCrop.get_params(image, (0.2, 1), (3 / 4, 4 / 3))
            for _ in range(n)
        ]
    )
    mine, theirs = boxes.double(), other.double()
    error = theirs.std(0) / n**0.5 + 1e-3
    assert ((mine.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    assert ((mine.std(0) - theirs.std(0)).abs() < 5 * error).all()


def test_boxes_of_images_of_several_sizes():
    sizes = torch.tensor([[10, 20], [200, 100]]).repeat(50, 1)
    boxes = views.draw_resized_crops(sizes, generator(0))
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    assert boxes[1::2, 2].max() > 20
