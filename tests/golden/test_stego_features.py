"""Backbone, head, sampling, heat map and neighbours against the authors' functions."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.backbones import Backbone
from uss_utils.features import correspondence_heatmap, sample_at
from uss_utils.heads import SegmentationHead
from uss_utils.neighbours import global_descriptors, nearest

pytestmark = pytest.mark.golden


def recorded_backbone(pair) -> Backbone:
    """The ViT whose parameters the file holds; all sizes come from their shapes."""
    prefix = "in_vit__"
    state = {k.removeprefix(prefix): v for k, v in pair.items() if k.startswith(prefix)}
    width, tokens = state["pos_embed"].shape[-1], state["pos_embed"].shape[1]
    side = round((tokens - 1) ** 0.5)
    vit = VisionTransformer(
        img_size=side * pair["param_patch"],
        patch_size=pair["param_patch"],
        embed_dim=width,
        depth=pair["param_depth"],
        num_heads=pair["param_heads"],
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        num_classes=0,
    )
    vit.load_state_dict(state)
    return Backbone(vit, "recorded")


def recorded_head(pair) -> SegmentationHead:
    dim, in_dim = pair["in_head_linear_w"].shape[:2]
    head = SegmentationHead(in_dim, dim, nonlinear="in_head_nl0_w" in pair)
    rename = {"linear": "linear", "nl0": "nonlinear.0", "nl2": "nonlinear.2"}
    head.load_state_dict(
        {
            f"{ours}.{full}": pair[f"in_head_{theirs}_{short}"]
            for theirs, ours in rename.items()
            for short, full in (("w", "weight"), ("b", "bias"))
            if f"in_head_{theirs}_{short}" in pair
        }
    )
    return head.eval()


@pytest.mark.parametrize("path", golden_files("stego", "featurizer*.npz"))
def test_featurizer(path):
    pair = load(path)
    backbone, head = recorded_backbone(pair), recorded_head(pair)
    out = backbone(pair["in_image"], keys=True, cls=True)
    feat = out.keys if pair["param_keys"] else out.feat
    assert_close(feat, pair["out_feats"], 1e-4)
    assert_close(head(feat).detach(), pair["out_code"], 1e-4)
    assert_close(out.cls, pair["out_cls"], 1e-4)


@pytest.mark.parametrize("path", golden_files("hp", "attention_logits*.npz"))
def test_attention_logits(path):
    pair = load(path)
    out = recorded_backbone(pair)(pair["in_image"], attention=True, cls=True)
    tokens = torch.cat([out.cls.flatten(2), out.feat.flatten(2)], 2).transpose(1, 2)
    assert_close(tokens, pair["out_tokens"], 1e-4)
    assert_close(out.attention, pair["out_attn_logits"], 1e-4)


@pytest.mark.parametrize("path", golden_files("stego", "sample_coords*.npz"))
def test_sample_at(path):
    pair = load(path)
    feat = pair["in_map"].requires_grad_()
    sampled = sample_at(feat, pair["in_coords"])
    assert_close(sampled.detach(), pair["out_sampled"], 1e-5)
    (sampled * pair["in_cotangent"]).sum().backward()
    assert_close(feat.grad, pair["out_grad_map"], 1e-5)


@pytest.mark.parametrize("path", golden_files("stego", "correspondence_heatmap*.npz"))
def test_correspondence_heatmap(path):
    pair = load(path)
    size = (pair["param_height"], pair["param_width"])
    feat, query = pair["in_feats"], pair["in_query"]
    own = correspondence_heatmap(feat, query, size=size)
    assert_close(own, pair["out_self"], 1e-5)
    other = correspondence_heatmap(feat, query, pair["in_feats_other"], size=size)
    assert_close(other, pair["out_other"], 1e-5)


@pytest.mark.parametrize("path", golden_files("stego", "knn*.npz"))
def test_nearest(path):
    pair = load(path)
    descriptors = global_descriptors(pair["in_feats"])
    assert_close(descriptors, pair["out_global"], 1e-5)
    indices, similarities = nearest(descriptors, pair["param_k"])
    assert torch.equal(indices, pair["out_nns"])
    assert_close(similarities, pair["out_sims"], 1e-5)
