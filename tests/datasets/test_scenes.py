"""Generated scenes: repeatable, exact, varied, and not solved by colour or layout."""

import ast
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment

from uss_utils.datasets import scenes
from uss_utils.datasets.scenes import Scenes, canvas, scene
from uss_utils.datasets.transforms import Transform

CLASSES = {"street": scenes.STREET_CLASSES, "aerial": scenes.AERIAL_CLASSES}
PALETTES = {"street": scenes.STREET_PALETTE, "aerial": scenes.AERIAL_PALETTE}
THINGS = {"street": {"car", "person"}, "aerial": {"building", "car"}}
KINDS = tuple(CLASSES)

# Shipped weights were trained on exactly these pixels.
PINNED = {
    ("street", 0, 0, 128): (
        "0507187668e598d318da9224a1b101e9eac585560a68155d2e54ff93c87d8a4d"
    ),
    ("street", 2_000_017, 3, 64): (
        "2a231b86ac26b3efc6b232eddcf9ea898ddfabd01e8461a5f276edaf2b3c8d25"
    ),
    ("street", 5, 1, 201): (
        "5ce29724b07f6ce9e8ca964fbb4310cb10dc23cc434b20ecb7b64467e244c0f0"
    ),
    ("aerial", 0, 0, 128): (
        "db8de9783768b0f519e1ecddfe3f1b52bea03ed74b873c840999e2e426e487a6"
    ),
    ("aerial", 2_000_017, 3, 64): (
        "b79d920292d9e32b4f9fcce98c4c36d4e920abd6579c776f301026afa6fd1e9c"
    ),
    ("aerial", 5, 1, 201): (
        "a84b72e3ef46a898a4fa48d1cdd068c770ad7f375f8fdf59f1cb52ef0a7f7f24"
    ),
}


def digest(drawn) -> str:
    parts = (np.ascontiguousarray(part.astype(np.uint8)) for part in drawn)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def drawn():
    """Forty scenes of each kind."""
    return {kind: [scene(i, kind=kind) for i in range(40)] for kind in KINDS}


@pytest.fixture(scope="module")
def canvases():
    """Sixty canvases of each kind."""
    return {kind: [canvas(i, kind=kind) for i in range(60)] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 65, 128, 512])
def test_shapes_types_and_ranges(kind, size):
    image, label, instances = scene(3, kind=kind, size=size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert label.shape == instances.shape == (size, size)
    assert label.dtype == instances.dtype == np.int64
    assert 0 <= label.min() and label.max() < len(CLASSES[kind])
    assert instances.min() == 0
    assert image.std() > 8, "not a blank picture"
    side = round(1.5 * size)
    assert canvas(3, kind=kind, size=size).image.shape == (side, side, 3)


@pytest.mark.parametrize("key", PINNED, ids=lambda key: "-".join(map(str, key)))
def test_pixels_are_pinned(key):
    kind, index, seed, size = key
    assert digest(scene(index, seed, kind, size)) == PINNED[key]


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_same_scene_whatever_happened_before(kind):
    first = digest(scene(12, 4, kind))
    np.random.seed(0)  # noqa: NPY002
    scene(13, 4, kind, 100)
    canvas(12, 4, kind)
    assert digest(scene(12, 4, kind)) == first


def test_index_seed_and_kind_each_change_the_scene():
    digests = {
        digest(scene(index, seed, kind, 64))
        for kind in KINDS
        for seed in range(3)
        for index in range(5)
    }
    assert len(digests) == 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 97, 128])
def test_scene_is_a_window_of_its_canvas(kind, size):
    for index in range(4):
        small, large = scene(index, 1, kind, size), canvas(index, 1, kind, size)
        room = range(len(large.label) - size + 1)
        windows = np.lib.stride_tricks.sliding_window_view(large.label, (size, size))
        places = [
            (top, left)
            for top in room
            for left in room
            if np.array_equal(windows[top, left], small.label)
        ]
        assert len(places) == 1
        top, left = places[0]
        rows, cols = slice(top, top + size), slice(left, left + size)
        assert np.array_equal(large.instances[rows, cols], small.instances)
        # Away from the rim, which is blurred differently, only the noise differs.
        difference = small.image.astype(int) - large.image[rows, cols]
        assert abs(difference[2:-2, 2:-2].mean()) < 1
        assert np.abs(difference).mean() < 20


@pytest.mark.parametrize("kind", KINDS)
def test_windows_move_over_the_whole_canvas(kind, monkeypatch):
    places = []
    painter = scenes.Painter

    def spy(side, top, left, size):
        places.append((top, left))
        return painter(side, top, left, size)

    monkeypatch.setattr(scenes, "Painter", spy)
    for index in range(150):
        scene(index, kind=kind, size=64)
    tops, lefts = np.array(places).T
    for values in (tops, lefts):
        assert values.min() <= 1 and values.max() >= 31 and values.max() <= 32
        assert 12 < values.mean() < 20
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_is_numbered_and_of_one_class(kind, canvases):
    things = {CLASSES[kind].index(name) for name in THINGS[kind]}
    for _, label, instances in canvases[kind]:
        assert set(np.unique(label[instances > 0])) <= things
        assert not set(np.unique(label[instances == 0])) & things
        for number in np.unique(instances[instances > 0]):
            assert len(np.unique(label[instances == number])) == 1


def test_cars_and_persons_look_like_objects(canvases):
    """Unoccluded persons are upright, cars are not; both stand on the ground."""
    shapes = {"car": [], "person": []}
    for _, label, instances in canvases["street"]:
        for number in np.unique(instances[instances > 0]):
            rows, cols = np.nonzero(instances == number)
            name = scenes.STREET_CLASSES[label[rows[0], cols[0]]]
            shapes[name].append(np.ptp(rows) / max(np.ptp(cols), 1))
    assert np.median(shapes["person"]) > 1.8
    assert np.median(shapes["car"]) < 1.1
    per_canvas = {name: len(found) / 60 for name, found in shapes.items()}
    assert 1 < per_canvas["car"] < 4 and 1.5 < per_canvas["person"] < 5


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_present_and_balanced(kind, canvases):
    k = len(CLASSES[kind])
    counts = np.stack(
        [np.bincount(c.label.ravel(), minlength=k) for c in canvases[kind]]
    )
    presence = dict(zip(CLASSES[kind], (counts > 0).mean(0), strict=True))
    rare = {"water": 0.7}
    assert all(share >= rare.get(name, 0.9) for name, share in presence.items())
    shares = counts.sum(0) / counts.sum()
    assert shares.max() < 0.7


def test_cars_and_persons_take_a_few_percent_of_street_pixels(drawn):
    labels = np.concatenate([d.label.ravel() for d in drawn["street"]])
    shares = np.bincount(labels, minlength=7) / len(labels)
    car, person = (scenes.STREET_CLASSES.index(name) for name in ("car", "person"))
    assert 0.03 < shares[car] < 0.08
    assert 0.02 < shares[person] < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_looks_the_same_at_any_size(kind):
    """Details grow with the size; only thin structures differ."""
    for index in range(4):
        small = canvas(index, 2, kind, 64)
        large = canvas(index, 2, kind, 192)
        middle = large.label[1::3, 1::3]
        assert (small.label == middle).mean() > 0.85
        shape = (96, 3, 96, 3, 3)
        averaged = large.image.reshape(shape).mean((1, 3))
        assert np.abs(averaged - small.image).mean() < 16


def horizon(label: np.ndarray) -> int:
    """First row with ground."""
    ground = np.isin(label, [2, 3]).any(1)
    return int(ground.argmax())


def test_the_horizon_moves(drawn):
    rows = [horizon(d.label) for d in drawn["street"]]
    assert np.std(rows) > 15 and min(rows) < 30 and max(rows) > 75


@pytest.mark.parametrize("kind", KINDS)
def test_hue_does_not_tell_the_class(kind, drawn):
    """The mean colour of a class varies more within it than between classes."""
    k = len(CLASSES[kind])
    means = np.full((len(drawn[kind]), k, 3), np.nan)
    for i, (image, label, _) in enumerate(drawn[kind]):
        for c in np.unique(label):
            means[i, c] = image[label == c].mean(0)
    # Chroma: what is left without brightness.
    chroma = means - means.mean(-1, keepdims=True)
    within = np.nanstd(chroma, axis=0).mean()
    between = np.nanstd(np.nanmean(chroma, axis=0), axis=0).mean()
    assert between < 0.6 * within


def matched_miou(confusion: np.ndarray) -> float:
    rows, cols = linear_sum_assignment(-confusion)
    hits = confusion[rows, cols]
    union = confusion.sum(1)[rows] + confusion.sum(0)[cols] - hits
    return 100 * float((hits / union).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_colour_and_row_clusters_score_below_twenty(kind, drawn):
    k = len(CLASSES[kind])
    images = np.stack([d.image for d in drawn[kind]]) / 255.0
    labels = np.stack([d.label for d in drawn[kind]])
    rng = np.random.default_rng(0)
    pixels = images.reshape(-1, 3)
    centres, _ = kmeans2(rng.choice(pixels, 5000), k, minit="++", rng=0)
    far = ((pixels[:, None] - centres) ** 2).sum(-1)
    rows = np.broadcast_to((np.arange(128) * k // 128)[:, None], labels.shape)
    for clusters in (far.argmin(1), rows.ravel()):
        confusion = np.bincount(clusters * k + labels.ravel(), minlength=k * k)
        assert matched_miou(confusion.reshape(k, k)) < 20


@pytest.mark.parametrize("kind", KINDS)
def test_classes_differ_in_texture(kind, drawn):
    """What colour hides, neighbouring pixels show."""
    k = len(CLASSES[kind])
    contrast = np.zeros(k)
    for c in range(k):
        values = []
        for image, label, _ in drawn[kind]:
            inside = (label[:, 1:] == c) & (label[:, :-1] == c)
            if inside.sum() > 50:
                step = np.abs(np.diff(image.astype(float), axis=1)).mean(-1)
                values.append(step[inside].mean() / image[label == c].mean())
        contrast[c] = np.median(values)
    assert contrast.max() > 2 * contrast.min()


@pytest.mark.parametrize("kind", KINDS)
def test_palettes_are_distinct(kind):
    palette = PALETTES[kind]
    assert palette.shape == (len(CLASSES[kind]), 3) and palette.dtype == np.uint8
    far = np.abs(palette[:, None].astype(int) - palette).sum(-1)
    assert far[~np.eye(len(palette), dtype=bool)].min() > 60


@pytest.mark.parametrize("function", [scene, canvas])
def test_bad_arguments(function):
    with pytest.raises(ValueError, match="'forest'; known: street, aerial"):
        function(0, kind="forest")
    for size in (63, 513, 0, -128):
        with pytest.raises(ValueError, match=f"size {size} is outside 64..512"):
            function(0, size=size)
    with pytest.raises(ValueError, match="index and seed must be 0 or more, got -1"):
        function(-1)
    with pytest.raises(ValueError, match="got 0 and -2"):
        function(0, seed=-2)
    with pytest.raises(TypeError):
        function(1.5)


class TestDataset:
    """The scenes as a data set."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_items(self, kind):
        data = Scenes(kind, "val", 3, size=64)
        assert len(data) == 3 and data.n_classes == len(CLASSES[kind])
        assert data.name == {"street": "scenes", "aerial": "scenes-aerial"}[kind]
        assert data.split == "val" and data.has_labels
        item = data[2]
        assert item["image"].shape == (3, 64, 64)
        assert item["label"].shape == (64, 64) and item["label"].dtype == torch.int64
        image, label = data.read(2)
        expected = scene(1_000_002, kind=kind, size=64)
        np.testing.assert_array_equal(image, expected.image)
        np.testing.assert_array_equal(label, expected.label)
        np.testing.assert_array_equal(data.instances(2), expected.instances)
        assert data.instances(2).dtype == label.dtype == np.int64

    def test_splits_are_disjoint(self):
        parts = {split: Scenes("street", split, 2, 64) for split in scenes._SPLITS}
        assert set(parts) == {"train", "val", "pretrain"}
        pixels = {p.read(i)[0].tobytes() for p in parts.values() for i in range(2)}
        assert len(pixels) == 6
        train = parts["train"].read(1)[0]
        np.testing.assert_array_equal(train, scene(1, size=64).image)

    def test_seed_gives_other_scenes(self):
        one, two = (Scenes("street", n=1, size=64, seed=seed) for seed in (0, 1))
        assert not np.array_equal(one.read(0)[0], two.read(0)[0])
        assert one.fingerprint() != two.fingerprint()

    def test_drawn_once_when_asked_for(self, monkeypatch):
        calls = []

        def spy(index, *rest):
            calls.append(index)
            return scene(index, *rest)

        monkeypatch.setattr(scenes, "scene", spy)
        data = Scenes("aerial", "train", 1_000_000, 64)
        assert not calls
        data.read(999_999), data.instances(999_999), data[-1]
        data.with_transform(Transform("center", 32))[999_999]
        data.subset([999_999]).read(0)
        assert calls == [999_999]

    def test_callers_cannot_spoil_the_stored_scene(self):
        data = Scenes("street", n=1, size=64)
        image, label = data.read(0)
        image[:], label[:] = 0, 0
        data.instances(0)[:] = 99
        np.testing.assert_array_equal(data.read(0)[0], scene(0, size=64).image)
        np.testing.assert_array_equal(data.instances(0), scene(0, size=64).instances)

    def test_fingerprint_is_that_of_the_content(self):
        same = [Scenes("street", n=2, size=64).fingerprint() for _ in range(2)]
        assert same[0] == same[1]
        others = [
            Scenes("street", n=3, size=64),
            Scenes("street", n=2, size=65),
            Scenes("street", "val", n=2, size=64),
            Scenes("aerial", n=2, size=64),
            Scenes("street", n=2, size=64, transform=Transform("center", 32)),
        ]
        prints = {data.fingerprint() for data in others} | {same[0]}
        assert len(prints) == 6

    def test_batch_and_transform(self):
        data = Scenes("street", n=4, size=96, transform=Transform("center", 64))
        image, label = data.batch([3, 1])
        assert image.shape == (2, 3, 64, 64) and label.shape == (2, 64, 64)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="known: street, aerial"):
            Scenes("streets")
        with pytest.raises(ValueError, match="'test'; known: train, val, pretrain"):
            Scenes("street", "test")
        for n in (0, -1, 1_000_001):
            with pytest.raises(ValueError, match=f"scenes {n} is outside 1..1000000"):
                Scenes("street", n=n)
        with pytest.raises(ValueError, match="outside 64..512"):
            Scenes("street", size=32)
        with pytest.raises(ValueError, match="0 or more"):
            Scenes("street", seed=-1)
        with pytest.raises(IndexError, match="item 5 of 5"):
            Scenes("street", n=5, size=64).read(5)


# Functions of arrays whose last bit differs between machines, and sums of many
# numbers, whose order does.
INEXACT = {
    *("sin", "cos", "tan", "exp", "exp2", "log", "log2", "power", "arctan2", "hypot"),
    *("interp", "einsum", "convolve", "linalg"),
}
SUMS = {"sum", "mean", "std", "var", "dot", "matmul"}


def test_pixels_are_made_of_exact_operations():
    folder = Path(scenes.__file__).parent
    sources = sorted(folder.glob("_[a-z]*.py"))
    assert len(sources) >= 6
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                of_numpy = getattr(node.value, "id", "") == "np"
                banned = SUMS | INEXACT if of_numpy else SUMS
                where = f"{source.name}:{node.lineno}"
                assert node.attr not in banned, f"{where} uses {node.attr}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                names.append(getattr(node, "module", None) or "")
                assert not {"torch", "PIL", "scipy"} & set(names), source.name
