"""The last block of a vision transformer, taken off and put back."""

import pytest
import torch
from timm.layers import QuickGELU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer

from tests.models import Stripes
from uss_utils import backbones
from uss_utils.environment import generator
from uss_utils.feature_cache import FeatureCache
from uss_utils.heads import Chain, SegmentationHead, Standardise, from_config
from uss_utils.last_block import BlockHead, LastBlockTokens
from uss_utils.probes import ClusterProbe
from uss_utils.segmenter import Segmenter
from uss_utils.sources import FeatureSource
from uss_utils.vit import Backbone


def images(height, width, n=2):
    return torch.randn(n, 3, height, width, generator=generator(0))


def small(**options) -> Backbone:
    """An untrained ViT whose norms and scales are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=56,
            patch_size=14,
            embed_dim=24,
            depth=3,
            num_heads=2,
            num_classes=0,
            dynamic_img_size=True,
            **options,
        )
        for p in vit.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    return Backbone(vit, "small")


KINDS = {
    "tiny": lambda: backbones.load("vit_tiny_scenes"),
    "dinov2": lambda: small(init_values=1e-5),
    "registers": lambda: small(
        init_values=1e-5, reg_tokens=4, no_embed_class=True, mlp_ratio=2.7
    ),
    "unbiased": lambda: small(qkv_bias=False),
}
# Parts of a block that its settings do not tell.
ODD = {
    "activation": {"act_layer": QuickGELU},
    "gate": {"mlp_layer": SwiGLUPacked},
    "norms": {"qk_norm": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_untouched_block_gives_the_features(kind):
    backbone = KINDS[kind]()
    batch = images(3 * backbone.patch, 7 * backbone.patch)
    tokens = LastBlockTokens(backbone)
    maps = tokens.features(batch)
    assert maps.shape == (2, backbone.dim, 4, 7)
    assert (maps[:, :, 0, backbone.prefix :] == 0).all()
    head = BlockHead.from_backbone(tokens).eval()
    expected = backbone.features(batch)
    torch.testing.assert_close(head(maps), expected, atol=1e-5, rtol=1e-4)
    again = from_config(head.config())
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval()(maps), head(maps))


def test_the_copy_learns_and_the_rest_does_not():
    backbone = KINDS["tiny"]()
    head = BlockHead.from_backbone(backbone)
    head(LastBlockTokens(backbone).features(images(32, 32))).square().sum().backward()
    assert all(p.grad is not None for p in head.block.parameters())
    assert not any(p.requires_grad for p in head.norm.parameters())
    assert not any(p.requires_grad for p in backbone.parameters())
    with torch.no_grad():
        head.block.mlp.fc1.weight.add_(1)
    other = BlockHead.from_backbone(backbone)
    assert not torch.equal(other.block.mlp.fc1.weight, head.block.mlp.fc1.weight)


def test_making_a_head_draws_nothing():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    BlockHead(24, 2, 48)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("place", ["memory", "disk", "images"])
def test_source_of_tokens(place, tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    tokens = LastBlockTokens(backbones.load("vit_tiny_random"))
    data = Stripes(n=3, size=(32, 48))
    source = FeatureSource.open(tokens, data, cache=place)
    assert source.shape == (3, 192, 5, 6)
    maps = source.feat(source.inputs([2, 0]))
    expected = tokens.features(data.batch([2, 0])[0])
    torch.testing.assert_close(maps, expected, atol=2e-3, rtol=2e-3)


def test_tokens_are_another_cache_than_features(tmp_path):
    backbone = backbones.load("vit_tiny_random")
    data = Stripes(n=3, size=(32, 48))
    FeatureCache.build(LastBlockTokens(backbone), data, tmp_path / "cache")
    with pytest.raises(ValueError, match="made from something else"):
        FeatureCache.open(tmp_path / "cache", backbone=backbone, dataset=data)


@pytest.mark.parametrize("centred", [False, True])
def test_model_on_disk(tmp_path, centred):
    tokens = LastBlockTokens(backbones.load("vit_tiny_scenes"))
    head = BlockHead.from_backbone(tokens)
    if centred:
        head = Chain(head, Standardise(torch.full((192,), 0.5)))
    model = Segmenter(
        tokens, head, ClusterProbe(192, 3), classes=(), palette=torch.zeros(0, 3)
    )
    loaded = Segmenter.load(model.save(tmp_path / "model"))
    assert loaded.backbone.view == "tokens"
    batch = images(40, 24)
    assert torch.equal(loaded.code(batch, flip=True), model.code(batch, flip=True))
    picture = (torch.rand(37, 50, 3, generator=generator(1)) * 255).byte().numpy()
    assert torch.equal(loaded.segment(picture), model.segment(picture))


def test_float32_comes_out_under_autocast():
    backbone = KINDS["tiny"]()
    head, batch = BlockHead.from_backbone(backbone).eval(), images(32, 40)
    maps = LastBlockTokens(backbone).features(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(maps).dtype == torch.float32
        assert LastBlockTokens(backbone).features(batch).dtype == torch.float32


@pytest.mark.parametrize("name", ["colour", "attention", "single", *ODD])
def test_backbones_without_such_a_block_are_refused(name):
    if name == "colour":
        backbone = backbones.load("colour")
    elif name in ODD:
        backbone = small(**ODD[name])
    elif name == "single":
        vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=1)
        backbone = Backbone(vit, name)
    else:
        backbone = KINDS["tiny"]()
        backbone.vit.blocks[-1].attn = torch.nn.Identity()
    for make in (LastBlockTokens, BlockHead.from_backbone):
        with pytest.raises(ValueError, match="cannot be trained on its own"):
            make(backbone)


def test_sizes_that_do_not_fit_are_refused():
    tokens = LastBlockTokens(KINDS["registers"]())
    with pytest.raises(ValueError, match="at least 70 wide"):
        tokens.features(images(56, 56))
    with pytest.raises(ValueError, match="does not divide into patches"):
        tokens.features(images(56, 71))
    with pytest.raises(ValueError, match=r"\(B, 24, h \+ 1, w\), got \(2, 5, 4, 4\)"):
        BlockHead(24, 2, 48)(torch.zeros(2, 5, 4, 4))


def test_a_chain_takes_the_block():
    with pytest.raises(ValueError, match="gives 24 channels"):
        Chain(BlockHead(24, 2, 48), SegmentationHead(5, 3))
