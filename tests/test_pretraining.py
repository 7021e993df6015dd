import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from uss_utils import backbones, pretraining
from uss_utils.checkpoints import load_tensors
from uss_utils.environment import generator
from uss_utils.pretraining import Config, Unlabelled
from uss_utils.weights_card import save_weights

SMALL = Config(
    datasets=("scenes", "scenes-aerial"),
    images=3,
    window=64,
    view=48,
    batch_size=4,
    vicreg_steps=4,
    distil_steps=3,
    expander=32,
    prototypes=8,
    precision="no",
)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return Unlabelled([rng.integers(0, 256, (72, 72, 3), np.uint8) for _ in range(6)])


def test_vicreg_terms_by_hand():
    z = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    z2 = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    terms = pretraining.vicreg_loss(z, z2)
    assert terms["invariance"] == pytest.approx(0.5)
    # Biased standard deviations: 1 and 1 in the first view, 1 and 0 in the second.
    assert terms["variance"].item() == pytest.approx((1 - 1e-4**0.5) / 4, abs=1e-4)
    # Off-diagonal covariance: 2 in the first view, 0 in the second.
    assert terms["covariance"].item() == pytest.approx(2 * 2**2 / 2)
    assert terms["loss"] == pytest.approx(
        25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
    )


def test_collapsed_codes_are_punished_by_the_variance_term():
    spread = torch.randn(256, 8, generator=generator(0)) * 2
    collapsed = torch.ones(256, 8)
    good = pretraining.vicreg_loss(spread, spread)
    bad = pretraining.vicreg_loss(collapsed, collapsed)
    assert good["invariance"] == bad["invariance"] == 0
    assert bad["variance"] > 0.9 and good["variance"] < 0.01


def test_sinkhorn_balances_the_names():
    scores = torch.rand(512, 8, generator=generator(0))
    scores[:, 0] += 0.5  # one prototype would win nearly everywhere
    plain = (scores / 0.1).softmax(-1).mean(0)
    balanced = pretraining.sinkhorn(scores, 0.1, iterations=20)
    assert plain.max() > 0.5
    assert torch.allclose(balanced.sum(1), torch.ones(512))
    assert torch.allclose(balanced.mean(0), torch.full((8,), 1 / 8), atol=1e-3)


def test_hidden_patches_do_not_reach_the_tokens():
    torch.manual_seed(0)
    vit = backbones.tiny_vit().eval()
    image = torch.randn(1, 3, 48, 48)
    other = image.clone()
    other[..., :8, :8] = torch.randn(1, 3, 8, 8)
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[0, 0, 0] = True
    seen = [pretraining.patch_tokens(vit, x, None) for x in (image, other)]
    assert (seen[0] - seen[1]).abs().max() > 1e-2
    # The hidden patch still enters through the batch's mean embedding: 1/36 of it.
    hidden = [pretraining.patch_tokens(vit, x, mask) for x in (image, other)]
    assert (hidden[0] - hidden[1]).abs().max() < (seen[0] - seen[1]).abs().max() / 4


def test_patch_tokens_equal_the_backbone_features():
    backbone = backbones.load("vit_tiny_random")
    image = torch.randn(2, 3, 64, 48)
    tokens = pretraining.patch_tokens(backbone.vit, image, None)
    timm_way = backbones.load("vit_tiny_random", position="timm").features(image)
    torch.testing.assert_close(tokens, timm_way, atol=1e-5, rtol=1e-5)


def test_teacher_is_a_slow_average_of_the_student(images):
    torch.manual_seed(0)
    model = pretraining.DenseDistillation(backbones.tiny_vit(), 8)
    same = zip(model.student.parameters(), model.teacher.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    start = model.teacher.vit.norm.weight.clone()
    cfg = replace(SMALL, distil_steps=2, teacher_momentum=0.9, distil_lr=0.05)
    pretraining._stage("distil", model, cfg, images, None, "cpu", None)
    moved = (model.teacher.vit.norm.weight - start).abs().mean()
    ahead = (model.student.vit.norm.weight - start).abs().mean()
    assert 0 < moved < ahead / 5
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_what_is_alike_all_over_an_image_is_removed_from_both_views():
    draws = generator(0)
    first, second = torch.randn(2, 3, 4, 4, 5, generator=draws)
    style = torch.randn(3, 1, 1, 5, generator=draws)
    plain = pretraining.without_image_mean(first, second)
    styled = pretraining.without_image_mean(first + style, second + style)
    for a, b in zip(plain, styled, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(plain[0] - plain[1], first - second)
    # A change between the views is not hidden by it.
    one_sided = pretraining.without_image_mean(first + style, second)
    assert not torch.allclose(one_sided[0], plain[0], atol=1e-3)


def test_another_seed_gives_other_initial_weights(images):
    cfg = replace(SMALL, vicreg_steps=0, distil_steps=0)
    a, b = (
        pretraining.pretrain(replace(cfg, seed=seed), images, progress=None)[0]
        for seed in (0, 1)
    )
    assert not torch.equal(a.patch_embed.proj.weight, b.patch_embed.proj.weight)


def test_a_seed_gives_the_same_weights_and_training_changes_them(images):
    runs = [
        pretraining.pretrain(SMALL, images, progress=None)[0].state_dict()
        for _ in range(2)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    longer, histories = pretraining.pretrain(
        replace(SMALL, vicreg_steps=30, vicreg_lr=3e-3), images, progress=None
    )
    rows = histories["vicreg"].rows
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not torch.equal(
        longer.state_dict()["patch_embed.proj.weight"],
        runs[0]["patch_embed.proj.weight"],
    )


def test_both_stages_resume_from_their_checkpoints(images, tmp_path):
    whole, _ = pretraining.pretrain(SMALL, images, progress=None)
    pretraining.pretrain(SMALL, images, folder=tmp_path, progress=None)
    again, histories = pretraining.pretrain(
        SMALL, images, folder=tmp_path, progress=None
    )
    assert len(histories["distil"].rows) > 0
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_checkpoints_of_other_settings_are_refused(images, tmp_path):
    pretraining.pretrain(SMALL, images, folder=tmp_path, progress=None)
    with pytest.raises(ValueError, match="expander"):
        pretraining.pretrain(
            replace(SMALL, expander=16), images, folder=tmp_path, progress=None
        )


def test_saved_weights_load_as_a_backbone_and_the_card_tells_how(images, tmp_path):
    vit, histories = pretraining.pretrain(SMALL, images, progress=None)
    path = tmp_path / "mine.safetensors"
    card_path = save_weights(
        path, vit, SMALL, histories, command="python -m uss_utils pretrain"
    )
    card = json.loads(card_path.read_text())
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["config"]["vicreg_steps"] == 4 and card["labels_used"] is False
    assert card["history"]["vicreg"][0]["loss"] > 0
    tensors, meta = load_tensors(path, kind="vit_tiny")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert meta["trained_on"] == ["scenes", "scenes-aerial"]
    backbone = backbones.load("vit_tiny_scenes", weights=path)
    feat = backbone.features(torch.randn(1, 3, 64, 64))
    assert feat.shape == (1, 192, 8, 8) and torch.isfinite(feat).all()


def test_scenes_are_uncut_renders_of_their_own_index_range():
    data = pretraining.unlabelled(replace(SMALL, images=2))
    assert data.images.shape == (4, 192, 192, 3) and data.images.dtype == torch.uint8


def test_images_of_several_sizes_or_none_are_refused():
    with pytest.raises(ValueError, match="one size"):
        Unlabelled([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])
    with pytest.raises(ValueError, match="no images"):
        Unlabelled([])


def test_photographs_are_resized_to_one_size(camvid_root):
    cfg = replace(SMALL, datasets=("camvid",), images=3, image_size=(96, 128))
    data = pretraining.unlabelled(cfg, camvid_root)
    assert data.images.shape == (3, 96, 128, 3)
