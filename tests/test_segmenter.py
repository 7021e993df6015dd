"""A model as one object: any picture in, labels of its size out; to disk and back."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.models import CLASSES, PALETTE, Stripes, grey_model
from uss_utils import backbones, crf
from uss_utils.checkpoints import load_tensors, save_tensors
from uss_utils.datasets.transforms import Transform, normalise
from uss_utils.heads import SegmentationHead, Standardise
from uss_utils.probes import ClusterProbe, LinearProbe, upsample
from uss_utils.protocol import EvalProtocol
from uss_utils.segmenter import Segmenter

TABLE = [2, 0, 1]  # clusters of grey_model() in class ids


def vit_model(seed=3, **options) -> Segmenter:
    draw = torch.Generator().manual_seed(seed)
    backbone = backbones.load("vit_tiny_random", seed=seed)
    mean = torch.randn(backbone.dim, generator=draw)
    projection = torch.randn(backbone.dim, 6, generator=draw)
    return Segmenter(
        backbone,
        Standardise(mean, projection),
        ClusterProbe(6, 3, generator=draw),
        LinearProbe(6, 3, generator=draw),
        classes=CLASSES,
        palette=PALETTE,
        cluster_to_class=[1, 2, 0],
        method="test",
        preset="smoke",
        meta={"backbone_seed": seed, "seed": seed},
        **options,
    )


@pytest.fixture(scope="module")
def vit():
    return vit_model()


def stripes(height=16, width=24) -> np.ndarray:
    return Stripes(size=(height, width)).read(0)[0]


def noise(height, width, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


# -------------------------------------------------------------------- segment()


def test_segment_gives_classes_when_the_map_is_known():
    expected = torch.tensor([0, 1, 2, 0]).repeat_interleave(4)[:, None].expand(16, 24)
    assert torch.equal(grey_model(TABLE).segment(stripes()), expected)
    assert torch.equal(grey_model().segment(stripes()), (expected + 1) % 3)
    assert torch.equal(grey_model().segment(stripes(), which="linear"), expected)


def test_a_cluster_without_class_is_ignored():
    found = grey_model([2, -1, 1]).segment(stripes())
    assert sorted(found.unique().tolist()) == [-1, 1, 2]


def test_legend_names_what_segment_returns():
    names, colours = grey_model(TABLE).legend()
    assert names == CLASSES
    assert np.array_equal(colours, PALETTE)
    names, colours = grey_model().legend()
    assert names == ("cluster 0", "cluster 1", "cluster 2")
    assert len(np.unique(colours, axis=0)) == 3


@pytest.mark.parametrize("size", [(64, 96), (61, 97), (5, 7), (130, 9), (1, 300)])
def test_any_size_comes_back_at_its_own_size(vit, size):
    found = vit.segment(noise(*size))
    assert found.shape == size
    assert found.dtype == torch.int64
    assert 0 <= int(found.min()) <= int(found.max()) <= 2


def test_all_kinds_of_pictures_agree(tmp_path, vit):
    pixels = noise(40, 56)
    expected = vit.segment(pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(vit.segment(tmp_path / "a.png"), expected)
    assert torch.equal(vit.segment(str(tmp_path / "a.png")), expected)
    assert torch.equal(vit.segment(Image.fromarray(pixels)), expected)
    opaque = np.dstack([pixels, np.full((40, 56), 255, np.uint8)])
    assert torch.equal(vit.segment(opaque), expected)
    several = vit.segment([pixels, tmp_path / "a.png"])
    assert [torch.equal(each, expected) for each in several] == [True, True]


def test_the_scores_are_upsampled_before_the_argmax(vit):
    pixels = noise(40, 56)
    code = vit.code(normalise(pixels)[None], flip=True)
    expected = vit.cluster_probe.scores(upsample(code, (40, 56))).argmax(1)[0]
    expected = vit.cluster_to_class[expected]
    assert (vit.segment(pixels) == expected).float().mean() > 0.999


def test_camera_orientation_is_applied(tmp_path):
    pixels = stripes(16, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned = Image.fromarray(np.rot90(pixels).copy())
    turned.save(tmp_path / "a.png", exif=exif)
    model = grey_model(TABLE)
    upright = model.segment(tmp_path / "a.png")
    assert torch.equal(upright, model.segment(pixels))
    assert torch.equal(model.segment(Image.open(tmp_path / "a.png")), upright)


def test_greyscale_and_transparency():
    model = grey_model(TABLE)
    grey = stripes()[..., 0]
    assert torch.equal(model.segment(grey), model.segment(stripes()))
    assert torch.equal(model.segment(grey[..., None]), model.segment(stripes()))
    dark = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert model.segment(dark).unique().tolist() == [2]  # laid on white


def test_folder_gives_labels_by_file_name(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.fromarray(stripes()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = grey_model(TABLE).segment(tmp_path)
    assert list(found) == ["a.jpg", "b.png"]
    assert found["b.png"].shape == (16, 24)


def test_large_pictures_are_shrunk_but_labelled_at_their_own_size():
    model = grey_model(TABLE)
    seen = []
    features = model.backbone.features
    model.backbone.features = lambda images: (
        seen.append(images.shape) or features(images)
    )
    found = model.segment(stripes(600, 1200), max_side=128)
    assert found.shape == (600, 1200)
    assert all(tuple(shape[-2:]) == (64, 128) for shape in seen)
    # Away from the borders of the blocks nothing changes.
    assert found[75::150, 0].tolist() == [0, 1, 2, 0]


@pytest.mark.skipif(not crf.available(), reason="pydensecrf is missing")
def test_crf_keeps_size_and_classes(vit):
    found = vit.segment(noise(41, 57), crf=True)
    assert found.shape == (41, 57)
    assert set(found.unique().tolist()) <= {0, 1, 2}
    pixels = noise(40, 56)
    image = normalise(pixels)
    log_probs = vit.log_probs(image[None])[0]
    expected = vit.cluster_to_class[crf.dense_crf(image, log_probs).argmax(0)]
    assert torch.equal(vit.segment(pixels, crf=True), expected)


def test_crf_without_the_library_says_so(monkeypatch):
    monkeypatch.setattr(crf, "available", lambda: False)
    with pytest.raises(ImportError, match="pip install pydensecrf2"):
        grey_model().segment(stripes(), crf=True)


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        ("absent.png", FileNotFoundError, "absent.png"),
        (np.zeros((4, 4, 3)), ValueError, "must be uint8.*float64"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"channels come last"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"\(0, 8, 3\)"),
        (12, ValueError, "cannot segment a int"),
    ],
)
def test_unusable_pictures(picture, error, message):
    with pytest.raises(error, match=message):
        grey_model().segment(picture)


def test_a_file_that_is_cut_off(tmp_path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="cannot read image .*a.png"):
        grey_model().segment(tmp_path / "a.png")


def test_folder_without_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture in .*known endings: .jpg"):
        grey_model().segment(tmp_path)


def test_unusable_choices(vit):
    with pytest.raises(ValueError, match="no linear probe.*use which='cluster'"):
        grey_model(linear=False).segment(stripes(), which="linear")
    with pytest.raises(ValueError, match="unknown probe 'both'; known: cluster, linea"):
        grey_model().segment(stripes(), which="both")
    with pytest.raises(ValueError, match="max_side 4 is smaller than a patch of 8"):
        vit.segment(stripes(), max_side=4)


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="class 0..2 .* for each of 3 clusters"):
        grey_model([0, 1])
    with pytest.raises(ValueError, match="for each of 3 clusters, got .0, 1, 5"):
        grey_model([0, 1, 5])
    model = grey_model()
    parts = (model.backbone, model.head, model.cluster_probe)
    with pytest.raises(ValueError, match="3 outputs for 2 classes"):
        Segmenter(*parts, model.linear_probe, classes=("a", "b"), palette=PALETTE[:2])
    with pytest.raises(ValueError, match="3 classes need as many colours, got 2"):
        Segmenter(*parts, classes=CLASSES, palette=PALETTE[:2])


# -------------------------------------------------------------------- tensors


def test_flip_average_is_symmetric(vit):
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    code = vit.code(images, flip=True)
    mirrored = vit.code(images.flip(-1), flip=True)
    torch.testing.assert_close(code, mirrored.flip(-1))
    assert not torch.allclose(code, vit.code(images))


def test_prediction_is_the_argmax_of_the_probabilities(vit):
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    code = vit.code(images)
    for which in ("cluster", "linear"):
        log_probs = vit.log_probs_of(code, (33, 50), which=which)
        torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(2, 33, 50))
        same = vit.predict_of(code, (33, 50), which) == log_probs.argmax(1)
        assert same.float().mean() > 0.999


def test_a_model_is_a_snapshot_that_leaves_training_alone():
    head = SegmentationHead(3, 3).train()
    model = grey_model()
    parts = (model.cluster_probe, model.linear_probe)
    model = Segmenter(model.backbone, head, *parts, classes=CLASSES, palette=PALETTE)
    before = model.segment(stripes())
    assert head.training and head.linear.weight.requires_grad
    with torch.no_grad():
        head.linear.weight.neg_()
        head.nonlinear[2].weight.zero_()
    assert torch.equal(model.segment(stripes()), before)


# -------------------------------------------------------------------- on disk


@pytest.mark.parametrize("kind", ["whitening", "centring", "head", "dot"])
def test_round_trip_gives_the_same_labels(tmp_path, kind):
    model = vit_model(transform=None, protocol=EvalProtocol(matching="majority"))
    if kind == "centring":
        model.head = Standardise(torch.randn(192))
        model.cluster_probe = ClusterProbe(192, 3, "euclidean")
        model.linear_probe = None
    if kind == "head":
        model.head = SegmentationHead(192, 6).eval()
    if kind == "dot":
        model.cluster_probe = ClusterProbe(6, 3, "dot")
        model.transform = Transform("center", 32, "tensor")
    path = model.save(tmp_path / "model")
    assert path == tmp_path / "model.safetensors"
    again = Segmenter.load(path)
    pixels = noise(40, 56)
    assert torch.equal(again.segment(pixels), model.segment(pixels))
    assert again.cluster_probe.metric == model.cluster_probe.metric
    assert again.protocol == model.protocol
    assert again.transform == model.transform
    assert (again.method, again.preset, again.meta) == ("test", "smoke", model.meta)
    assert again.classes == CLASSES
    assert np.array_equal(again.palette, PALETTE)
    assert (again.linear_probe is None) == (model.linear_probe is None)


def test_saving_twice_gives_the_same_bytes(tmp_path, vit):
    first = vit.save(tmp_path / "a.safetensors").read_bytes()
    again = Segmenter.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert again.read_bytes() == first


def test_the_json_beside_it_is_readable_and_holds_no_weights(tmp_path, vit):
    path = vit.save(tmp_path / "model.safetensors")
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["classes"] == list(CLASSES)
    assert described["backbone"]["name"] == "vit_tiny_random"
    tensors, _ = load_tensors(path)
    assert sum(tensor.numel() for tensor in tensors.values()) < 2000


def test_loading_what_is_no_model(tmp_path, vit):
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        Segmenter.load(tmp_path / "absent.safetensors")
    path = vit.save(tmp_path / "model.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cut.safetensors is not a readable"):
        Segmenter.load(cut)
    damaged = bytearray(path.read_bytes())
    damaged[-8] ^= 255
    cut.write_bytes(damaged)
    with pytest.raises(ValueError, match="does not agree with its checksum"):
        Segmenter.load(cut)
    save_file({"weight": torch.zeros(3)}, cut)
    with pytest.raises(ValueError, match="none that this package wrote"):
        Segmenter.load(cut)
    save_tensors(cut, {"weight": torch.zeros(3)}, {"kind": "training"})
    with pytest.raises(ValueError, match="'training', but a 'segmenter' was expected"):
        Segmenter.load(cut)


def test_loading_an_incomplete_or_changed_model(tmp_path, vit):
    path = vit.save(tmp_path / "model.safetensors")
    tensors, described = load_tensors(path)
    changed = tmp_path / "changed.safetensors"

    def store(tensors=tensors, **changes):
        save_tensors(changed, tensors, described | changes)

    store(head={"kind": "magic"})
    with pytest.raises(ValueError, match="unknown head 'magic'; known: segmentation"):
        Segmenter.load(changed)
    store({k: v for k, v in tensors.items() if k != "head.mean"})
    with pytest.raises(ValueError, match="incomplete or outdated model file"):
        Segmenter.load(changed)
    save_tensors(changed, tensors, {"kind": "segmenter"})
    with pytest.raises(ValueError, match="incomplete or outdated model file"):
        Segmenter.load(changed)
    store(meta=described["meta"] | {"backbone_seed": 4})
    with pytest.raises(ValueError, match="'vit_tiny_random' with other weights"):
        Segmenter.load(changed)
    store(backbone=described["backbone"] | {"name": "vit_nope"})
    with pytest.raises(ValueError, match="unknown backbone 'vit_nope'"):
        Segmenter.load(changed)


def test_a_failed_save_leaves_the_old_file(tmp_path, vit, monkeypatch):
    path = vit.save(tmp_path / "model.safetensors")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        vit.save(path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


def test_an_absent_device(tmp_path, vit):
    path = vit.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unknown device 'quantum'"):
        Segmenter.load(path, device="quantum")
