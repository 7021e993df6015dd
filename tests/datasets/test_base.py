"""What every data set offers."""

import pickle

import numpy as np
import pytest
import torch

from tests.datasets.benchmark_files import noise, write
from uss_utils import datasets
from uss_utils.datasets.base import Mirrored, SegmentationDataset
from uss_utils.datasets.transforms import Transform, normalise


class Toy(SegmentationDataset):
    """Item i is an image full of i; counts how often it is read."""

    def __init__(self, sizes=((4, 6),) * 5, labels=True, **kwargs):
        colours = np.zeros((2, 3), np.uint8)
        super().__init__("toy", "train", ("a", "b"), colours, None, labels, **kwargs)
        self.sizes, self.shift, self.reads = sizes, 0, 0

    def __len__(self):
        return len(self.sizes)

    def read(self, index):
        self.reads += 1
        size = self.sizes[index]
        image = np.full((*size, 3), index + self.shift, np.uint8)
        return image, np.full(size, index % 2) if self.has_labels else None


def test_item():
    data = Toy()
    item = data[3]
    assert list(item) == ["image", "label", "index", "name"]
    assert torch.equal(item["image"], normalise(np.full((4, 6, 3), 3, np.uint8)))
    assert item["label"].unique().tolist() == [1]
    assert (item["index"], item["name"]) == (3, "train_000003")
    assert data[-2]["index"] == 3
    assert data.n_classes == 2


def test_sizes():
    data = Toy(sizes=((4, 6), (5, 3)))
    assert [data.read_size(i) for i in range(2)] == [(4, 6), (5, 3)]
    assert data.subset([1]).read_size(0) == (5, 3)


def test_item_without_labels():
    assert (Toy(labels=False)[0]["label"] == -1).all()


def test_iteration_ends_and_bad_indices_say_so():
    data = Toy()
    assert [item["index"] for item in data] == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError, match="item 5 of 5 in toy train"):
        data[5]
    with pytest.raises(TypeError):
        data["0"]


@pytest.mark.parametrize("threads", [1, 3])
def test_batch_keeps_the_order(threads):
    data = Toy()
    data.threads = threads
    for indices in ([4, 0, 4], torch.tensor([4, 0, 4]), np.array([4, 0, 4])):
        image, label = data.batch(indices)
        assert image.shape == (3, 3, 4, 6)
        assert torch.equal(image[1], data[0]["image"])
        assert label[:, 0, 0].tolist() == [0, 0, 0]


def test_batch_of_different_sizes_names_the_remedy():
    data = Toy(sizes=((4, 6), (5, 6)))
    match = r"_000000 is 4x6, .*_000001 is 5x6\..*Transform\(\"resize\", \(H, W\)\) or"
    with pytest.raises(ValueError, match=match):
        data.batch([0, 1])
    resized = data.with_transform(Transform("resize", (8, 8)))
    assert resized.batch([0, 1])[0].shape == (2, 3, 8, 8)
    assert data.transform == Transform()


@pytest.mark.parametrize("labels", [True, False])
def test_labels_are_those_of_the_batch(labels):
    data = Toy(labels=labels).with_transform(Transform("resize", (8, 4)))
    for chosen in (data, data.subset([4, 1, 2])):
        assert torch.equal(chosen.labels([2, 0]), chosen.batch([2, 0])[1])
        assert chosen.labels(torch.tensor([1])).dtype == torch.int64
    with pytest.raises(IndexError, match="item 5 of 5"):
        data.labels([5])
    with pytest.raises(ValueError, match="_000001 is 5x6"):
        Toy(sizes=((4, 6), (5, 6)), labels=labels).labels([0, 1])


def test_batch_needs_an_index():
    with pytest.raises(ValueError, match="at least one index"):
        Toy().batch([])
    with pytest.raises(ValueError, match="at least one index"):
        Toy().labels([])


def test_error_in_a_thread_reaches_the_caller():
    with pytest.raises(IndexError, match="item 9 of 5"):
        Toy().batch([0, 9])


def test_palette_must_fit_the_classes():
    with pytest.raises(ValueError, match=r"2 classes need a palette of shape \(2, 3\)"):
        SegmentationDataset("x", "train", ("a", "b"), np.zeros((3, 3)))


def test_fingerprint_follows_pixels_labels_names_and_geometry():
    data = Toy()
    first = data.fingerprint()
    assert first == Toy().fingerprint()
    assert len(first) == 64
    moved, fewer, renamed = Toy(), Toy(sizes=((4, 6),) * 4), Toy()
    moved.shift, renamed.split = 1, "val"
    others = [
        moved,
        fewer,
        renamed,
        Toy(labels=False),
        Toy(sizes=((6, 4),) * 5),
        data.with_transform(Transform.sane(4)),
        data.with_transform(Transform.authors(4)),
        data.subset([0, 1, 2, 4, 3]),
    ]
    assert len({first, *(other.fingerprint() for other in others)}) == 9


def test_fingerprint_reads_once():
    data = Toy()
    data.threads = 1
    data.fingerprint()
    data.with_transform(Transform.sane(4)).fingerprint()
    assert data.reads == 5


def test_subset():
    data = Toy()
    chosen = data.subset(torch.tensor([3, -1]))
    assert len(chosen) == 2
    assert [item["name"] for item in chosen] == ["train_000003", "train_000004"]
    assert chosen[1]["index"] == 1
    assert torch.equal(chosen.batch([0])[0][0], data[3]["image"])
    assert (chosen.classes, chosen.has_labels) == (data.classes, True)
    assert chosen.fingerprint() == data.subset([3, 4]).fingerprint()
    assert data.subset(range(5)).fingerprint() == data.fingerprint()
    assert chosen.subset([1])[0]["name"] == "train_000004"
    with pytest.raises(IndexError, match="item 7 of 5"):
        data.subset([7])


def test_data_sets_travel_to_worker_processes():
    data = pickle.loads(pickle.dumps(Toy().subset([1, 2])))  # noqa: S301
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    assert next(iter(loader))["name"] == ["train_000001", "train_000002"]


def street():
    return datasets.load("scenes", "val", size=64, limit=3)


class TestMirrored:
    def test_is_the_mirror_image_of_what_the_geometry_left(self):
        plain = street().with_transform(Transform("center", (48, 57)))
        turned = Mirrored(plain)
        assert len(turned) == 3 and turned.item_name(1) == plain.item_name(1)
        image, label = plain.batch([0, 2])
        turned_image, turned_label = turned.batch([0, 2])
        assert torch.equal(turned_image, image.flip(-1))
        assert not torch.equal(turned_image, image)
        assert torch.equal(turned_label, label.flip(-1))
        assert torch.equal(turned.labels([0, 2]), label.flip(-1))

    def test_is_another_set_to_a_cache(self):
        plain = street()
        assert Mirrored(plain).fingerprint() != plain.fingerprint()
        assert Mirrored(plain).fingerprint() == Mirrored(street()).fingerprint()


def test_images_are_read_without_their_labels(tmp_path):
    write(tmp_path / "images" / "a.png", noise(8, 10, 3, 0))
    label = tmp_path / "labels" / "a.png"
    write(label, np.zeros((8, 10), np.uint8))
    data = datasets.load("folder", None, tmp_path)
    label.write_bytes(b"no picture")
    assert np.array_equal(data.read_image(0), noise(8, 10, 3, 0))
    assert np.array_equal(data.subset([0]).read_image(0), data.read_image(0))
    assert data.read_size(0) == data.subset([0]).read_size(0) == (8, 10)
    with pytest.raises((OSError, ValueError)):
        data.read(0)
