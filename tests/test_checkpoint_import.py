"""Released checkpoints become models; anything else is refused with one message."""

import sys
import types
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils import checkpoint_import, segmenter
from uss_utils.backbones import Backbone
from uss_utils.datasets.labels import CLASS_NAMES
from uss_utils.probes import upsample
from uss_utils.segmenter import Segmenter, import_checkpoint

WIDTH, DIM, K = 384, 70, 27


def conv(out, channels, draw):
    return {
        "weight": torch.randn(out, channels, 1, 1, generator=draw) / channels**0.5,
        "bias": torch.randn(out, generator=draw),
    }


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def head_state(width=WIDTH, dim=DIM, seed=0, first="cluster1", second="cluster2"):
    draw = torch.Generator().manual_seed(seed)
    return {
        **prefixed(f"{first}.0.", conv(dim, width, draw)),
        **prefixed(f"{second}.0.", conv(width, width, draw)),
        **prefixed(f"{second}.2.", conv(dim, width, draw)),
    }


def stego_state(width=WIDTH, dim=DIM, k=K, extra=0, seed=0):
    draw = torch.Generator().manual_seed(seed + 1)
    return OrderedDict(
        {
            **prefixed("net.", head_state(width, dim, seed)),
            "train_cluster_probe.clusters": torch.randn(k, dim, generator=draw),
            "cluster_probe.clusters": torch.randn(k + extra, dim, generator=draw),
            **prefixed("linear_probe.", conv(k, dim, draw)),
            **prefixed("decoder.", conv(width, dim, draw)),
        }
    )


def stego_file(path, state=None, **more):
    content = {
        "epoch": 0,
        "global_step": 5000,
        "pytorch-lightning_version": "1.4.9",
        "state_dict": stego_state() if state is None else state,
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [],
    }
    torch.save(content | more, path)
    return path


def hp_file(path, width=WIDTH, dim=512, k=K, **more):
    draw = torch.Generator().manual_seed(3)
    net = head_state(width, dim)
    net |= head_state(width, dim, seed=9, first="ema_model1", second="ema_model2")
    content = {
        "epoch": 2,
        "iter": 11000,
        "best_epoch": 2,
        "best_iter": 11000,
        "net_model_state_dict": net,
        "net_optimizer_state_dict": None,
        "linear_model_state_dict": conv(k, dim, draw),
        "linear_optimizer_state_dict": None,
        "cluster_model_state_dict": {"clusters": torch.randn(k, dim, generator=draw)},
        "cluster_optimizer_state_dict": None,
        "best": 200.0,
    }
    torch.save(content | more, path)
    return path


@pytest.fixture(scope="module")
def vits8():
    """A DINO of the right width and patch; one random block instead of twelve."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = timm.create_model(
            "vit_small_patch8_224", depth=1, num_classes=0, dynamic_img_size=True
        )
    return Backbone(vit, "dino_vits8", untrained=True)


def expected_code(net, feat):
    """The head by hand: two 1x1 convolutions are two matrix products."""

    def apply(name, x):
        weight, bias = net[f"{name}.weight"][..., 0, 0], net[f"{name}.bias"]
        return torch.einsum("dc,bchw->bdhw", weight, x) + bias[:, None, None]

    return apply("cluster1.0", feat) + apply(
        "cluster2.2", apply("cluster2.0", feat).clamp(min=0)
    )


# ------------------------------------------------------------------ what is imported


@pytest.mark.parametrize("method", ["stego", "hp"])
def test_head_and_probes_compute_what_the_file_says(tmp_path, vits8, method):
    if method == "stego":
        path, state = tmp_path / "stego.ckpt", stego_state()
        stego_file(path, state)
        net = {k.removeprefix("net."): v for k, v in state.items()}
        clusters = state["cluster_probe.clusters"]
        weight, bias = state["linear_probe.weight"], state["linear_probe.bias"]
    else:
        path = hp_file(tmp_path / "ckpt.pth")
        content = torch.load(path, weights_only=True)
        net = content["net_model_state_dict"]
        clusters = content["cluster_model_state_dict"]["clusters"]
        linear = content["linear_model_state_dict"]
        weight, bias = linear["weight"], linear["bias"]
    model = import_checkpoint(path, method, backbone=vits8, dataset="cocostuff27")
    feat = torch.randn(2, WIDTH, 3, 5, generator=torch.Generator().manual_seed(1))
    code = model.code_of(feat)
    assert_close(code, expected_code(net, feat), 1e-4)
    directions = torch.nn.functional.normalize(clusters, dim=1)
    cosines = torch.einsum("kd,bdhw->bkhw", directions, upsample(code, (6, 10)))
    assert torch.equal(model.predict_of(code, (6, 10)), cosines.argmax(1))
    logits = torch.einsum("kd,bdhw->bkhw", weight[..., 0, 0], code)
    assert_close(model.linear_probe(code), logits + bias[:, None, None], 1e-4)
    assert model.backbone is vits8
    assert model.method == method and model.cluster_to_class is None
    assert model.protocol.flip == (method == "stego")  # HP evaluates in a single pass
    assert model.classes == CLASS_NAMES["cocostuff27"]


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("stego", "featurizer*.npz"))
def test_an_imported_head_gives_the_authors_code(path, tmp_path):
    pair = load(path)
    if "in_head_nl0_w" not in pair:
        pytest.skip("recorded without the non-linear branch")
    names = {"linear": "cluster1.0", "nl0": "cluster2.0", "nl2": "cluster2.2"}
    state = {
        f"net.{theirs}.{full}": torch.as_tensor(pair[f"in_head_{recorded}_{short}"])
        for recorded, theirs in names.items()
        for short, full in (("w", "weight"), ("b", "bias"))
    }
    dim, width = state["net.cluster1.0.weight"].shape[:2]
    probes = stego_state(width, dim, k=3)
    probes = {k: v for k, v in probes.items() if "probe" in k}
    file = stego_file(tmp_path / "golden.ckpt", state | probes)
    frozen = types.SimpleNamespace(dim=width, patch=8, name="recorded")
    made = checkpoint_import.fields(file, "stego", frozen, None)
    code = made["head"].eval()(pair["out_feats"])
    assert_close(code.detach(), pair["out_code"], 1e-4)


def test_pictures_can_be_segmented_saved_and_read_back(tmp_path, vits8, monkeypatch):
    file = stego_file(tmp_path / "stego.ckpt")
    model = import_checkpoint(file, "stego", backbone=vits8, dataset="cityscapes27")
    picture = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    ids = model.segment(picture)
    assert ids.shape == (32, 40) and ids.max() < K
    assert model.meta["steps"] == 5000
    saved = model.save(tmp_path / "model.safetensors")
    monkeypatch.setattr(segmenter.model_file.backbones, "load", lambda *a, **k: vits8)
    assert torch.equal(Segmenter.load(saved).segment(picture), ids)


def test_bare_state_dicts_extra_clusters_and_linear_heads_are_fine(tmp_path, vits8):
    state = stego_state(k=3, extra=2)
    for name in [name for name in state if name.startswith("net.cluster2.")]:
        del state[name]
    torch.save(state, tmp_path / "bare.pt")
    model = import_checkpoint(tmp_path / "bare.pt", "stego", backbone=vits8)
    assert model.head.nonlinear is None
    assert (model.n_clusters, model.classes) == (5, ("class 0", "class 1", "class 2"))
    assert model.meta["steps"] is None


def test_random_numbers_are_left_as_found(tmp_path, vits8):
    file = stego_file(tmp_path / "stego.ckpt")
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    import_checkpoint(file, "stego", backbone=vits8)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------- the settings


def fake_module(monkeypatch, name, **content):
    """A module that only exists while the file is written."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        full = ".".join(parts[:n])
        monkeypatch.setitem(sys.modules, full, types.ModuleType(full))
    for key, value in content.items():
        value.__module__, value.__qualname__ = name, key
        setattr(sys.modules[name], key, value)


def test_settings_of_packages_that_are_absent_do_not_matter(
    tmp_path, vits8, monkeypatch
):
    class DictConfig:
        def __init__(self, content):
            self.content = content

        def __setstate__(self, state):
            raise AssertionError("code of the file's class was run")

    class ModelCheckpoint:
        pass

    with monkeypatch.context() as patch:
        fake_module(patch, "omegaconf.dictconfig", DictConfig=DictConfig)
        fake_module(patch, "pytorch_lightning.callbacks", Model=ModelCheckpoint)
        ModelCheckpoint.__qualname__ = ModelCheckpoint.__name__ = "Model"
        file = stego_file(
            tmp_path / "stego.ckpt",
            hyper_parameters={"n_classes": 27, "cfg": DictConfig({"dim": 70})},
            callbacks={ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}},
        )
    before = torch.serialization.get_safe_globals()
    model = import_checkpoint(file, "stego", backbone=vits8)
    assert model.n_clusters == K
    assert torch.serialization.get_safe_globals() == before


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('ran').touch()",))


def test_a_file_that_would_run_code_is_refused(tmp_path, vits8, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = stego_file(tmp_path / "evil.ckpt", extra=Payload())
    with pytest.raises(ValueError, match=r"evil.ckpt .*\(exec\) and was refused"):
        import_checkpoint(file, "stego", backbone=vits8)
    other = stego_file(tmp_path / "other.ckpt", extra=Namespace(dim=3))
    with pytest.raises(ValueError, match=r"\(argparse.Namespace\) and was refused"):
        import_checkpoint(other, "stego", backbone=vits8)
    assert not (tmp_path / "ran").exists()


# ----------------------------------------------------------------------- wrong files


def test_what_is_no_checkpoint(tmp_path, vits8):
    with pytest.raises(FileNotFoundError, match="there is no file .*nowhere.ckpt"):
        import_checkpoint(tmp_path / "nowhere.ckpt", "stego", backbone=vits8)
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="text.ckpt is no torch checkpoint"):
        import_checkpoint(tmp_path / "text.ckpt", "stego", backbone=vits8)
    whole = stego_file(tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.ckpt is no torch checkpoint, is damaged"):
        import_checkpoint(tmp_path / "cut.ckpt", "stego", backbone=vits8)
    torch.save([torch.zeros(2)], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="holds a list, not a checkpoint's dict"):
        import_checkpoint(tmp_path / "list.ckpt", "stego", backbone=vits8)
    torch.save({"teacher": {}, "epoch": 3}, tmp_path / "dino.pth")
    with pytest.raises(ValueError, match="net.cluster1.0.weight, but it has: teacher"):
        import_checkpoint(tmp_path / "dino.pth", "stego", backbone=vits8)
    with pytest.raises(ValueError, match="net_model_state_dict, .* it has: teacher"):
        import_checkpoint(tmp_path / "dino.pth", "hp", backbone=vits8)


def test_names_are_checked(tmp_path, vits8):
    with pytest.raises(ValueError, match="unknown method .* 'steg', known are: stego"):
        import_checkpoint("any", "steg")
    with pytest.raises(ValueError, match="class list 'coco', known are: .*cocostuff27"):
        import_checkpoint("any", "stego", dataset="coco")
    stego = stego_file(tmp_path / "stego.ckpt")
    with pytest.raises(ValueError, match="laid out as .* 'stego', not of 'hp'"):
        import_checkpoint(stego, "hp", backbone=vits8)
    hp = hp_file(tmp_path / "ckpt.pth")
    with pytest.raises(ValueError, match='stego.; import it with method="hp"'):
        import_checkpoint(hp, "stego", backbone=vits8)
    wrong = "trained on 27 classes, but 'potsdam3' has 3; .* cocostuff27, cityscapes27"
    with pytest.raises(ValueError, match=wrong):
        import_checkpoint(stego, "stego", backbone=vits8, dataset="potsdam3")


BROKEN = [
    ("net.cluster1.0.bias", None, "cluster1.0.bias is missing"),
    ("net.cluster2.2.weight", None, "cluster2.2.weight is missing"),
    ("cluster_probe.clusters", None, "clusters is missing"),
    ("linear_probe.bias", None, "bias is missing"),
    ("net.cluster1.0.weight", (70, 384), "but needs 4 axes"),
    ("net.cluster2.0.weight", (384, 768, 1, 1), r"cluster2.0.weight .* \(384, 384, 1"),
    ("cluster_probe.clusters", (27, 90), r"shape \(27, 90\) instead of \(27, 70\)"),
    ("linear_probe.weight", (27, 70, 3, 3), r"weight has shape \(27, 70, 3, 3\)"),
    ("cluster_probe.clusters", float("nan"), "clusters contains NaN"),
]


@pytest.mark.parametrize(("name", "value", "message"), BROKEN)
def test_missing_tensors_and_other_shapes(tmp_path, vits8, name, value, message):
    state = stego_state()
    if value is None:
        del state[name]
    elif isinstance(value, float):
        state[name] = torch.full_like(state[name], value)
    else:
        state[name] = torch.zeros(value)
    file = stego_file(tmp_path / "broken.ckpt", state)
    with pytest.raises(ValueError, match=f"broken.ckpt is no released .*{message}"):
        import_checkpoint(file, "stego", backbone=vits8)


# ---------------------------------------------------------------------- the backbone


def test_the_backbone_has_to_fit(tmp_path, vits8):
    wide = stego_file(tmp_path / "wide.ckpt", stego_state(width=768, dim=90))
    with pytest.raises(ValueError, match="a backbone of 768 channels, .* has 384"):
        import_checkpoint(wide, "stego", backbone=vits8)
    with pytest.raises(ValueError, match="wide.ckpt does not tell which DINO"):
        import_checkpoint(wide, "stego")
    state = stego_state()
    state["net.model.patch_embed.proj.weight"] = torch.zeros(384, 3, 16, 16)
    coarse = stego_file(tmp_path / "coarse.ckpt", state)
    with pytest.raises(ValueError, match="patches of 16 pixels, 'dino_vits8' has 8"):
        import_checkpoint(coarse, "stego", backbone=vits8)


def test_the_weights_in_the_file_only_serve_to_check(tmp_path, vits8, monkeypatch):
    asked = []

    def answer(name):
        asked.append(name)
        return vits8

    monkeypatch.setattr(checkpoint_import.backbones, "load", answer)
    own = prefixed("net.model.", vits8.vit.state_dict())
    right = stego_file(tmp_path / "right.ckpt", stego_state() | own)
    assert import_checkpoint(right, "stego").backbone is vits8
    assert asked == ["dino_vits8"]  # recognised by width and patch
    own["net.model.blocks.0.mlp.fc1.bias"] = torch.ones(4 * WIDTH)
    other = stego_file(tmp_path / "other.ckpt", stego_state() | own)
    with pytest.raises(ValueError, match="another network .*mlp.fc1.bias differs"):
        import_checkpoint(other, "stego", backbone="dino_vits8")
    # A backbone that was loaded by hand is taken as it is.
    assert import_checkpoint(other, "stego", backbone=vits8).backbone is vits8
    assert not vits8.vit.blocks[0].mlp.fc1.bias.equal(torch.ones(4 * WIDTH))
