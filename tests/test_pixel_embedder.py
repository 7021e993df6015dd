"""The pixel embedder: its maps, freezing, and its form as a head of a model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50

from uss_utils import backbones
from uss_utils.environment import generator
from uss_utils.heads import Chain, Standardise, from_config
from uss_utils.pixel_embedder import EmbedderHead, PixelEmbedder
from uss_utils.probes import ClusterProbe
from uss_utils.resnets import DilatedResNet
from uss_utils.segmenter import Segmenter


def images(height=32, width=48, n=2):
    return torch.randn(n, 3, height, width, generator=generator(0))


def small(head="conv", upsample=True) -> PixelEmbedder:
    network = DilatedResNet("resnet18")
    return PixelEmbedder(network, 512, 5, 16, head, upsample)


def decoder(channels=192, head="conv") -> PixelEmbedder:
    return PixelEmbedder(nn.Identity(), channels, 5, 16, head)


# ------------------------------------------------------------------------------ maps


@torch.no_grad()
def test_network_equals_torchvisions_deeplab():
    like = deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=32, aux_loss=False
    )
    for norm in like.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0  # statistics of this batch, or the maps would be zero
    assert like(images(64, 96))["out"].any()
    like.eval()
    own = PixelEmbedder(DilatedResNet(), 2048).eval()
    state = {f"saliency.{k}": v for k, v in own.saliency.state_dict().items()}
    for name, value in like.state_dict().items():
        last = name.replace("classifier.4", "embedding")
        state[last.replace("classifier", "decoder")] = value
    own.load_state_dict(state)
    maps = like.backbone(images())["out"]
    assert maps.std() > 0.1
    shared = nn.Sequential(*list(like.classifier)[:-1])
    assert torch.equal(own.features(images()), shared(maps))
    assert torch.equal(own.maps(images())[0], like.classifier(maps))
    upsampled = like(images())["out"]
    embedding, saliency = own(images())
    torch.testing.assert_close(embedding, upsampled, atol=1e-5, rtol=1e-4)
    assert saliency.shape == (2, 32, 48)
    head = sum(p.numel() for m in (own.decoder, own.embedding) for p in m.parameters())
    assert head == pytest.approx(16.1e6, rel=0.01)
    assert own.embedding.bias is not None and own.saliency.bias is None


@pytest.mark.parametrize("head", ["deeplab", "conv", "linear"])
@pytest.mark.parametrize("upsample", [True, False])
def test_shapes_and_sizes(head, upsample):
    embedder = small(head, upsample).eval()
    size = (32, 48) if upsample else (4, 6)
    embedding, saliency = embedder(images())
    assert embedding.shape == (2, 5, *size) and saliency.shape == (2, *size)
    assert embedder.features(images()).shape == (2, 16, 4, 6)
    assert torch.equal(embedder.embed(images()), embedding)
    coarse, logits = embedder.maps(images())
    assert coarse.shape == (2, 5, 4, 6) and logits.shape == (2, 4, 6)
    for low, high in ((coarse, embedding), (logits[:, None], saliency[:, None])):
        expected = F.interpolate(low, size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(high, expected, atol=1e-5, rtol=1e-5)


def test_given_features_keep_their_grid():
    feat = torch.randn(2, 192, 5, 7, generator=generator(0))
    embedding, saliency = decoder()(feat)
    assert embedding.shape == (2, 5, 5, 7) and saliency.shape == (2, 5, 7)


@pytest.mark.parametrize("upsample", [True, False])
def test_float32_comes_out_under_autocast(upsample):
    embedder = small(upsample=upsample).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [*embedder(images()), embedder.embed(images())]
    assert {x.dtype for x in found} == {torch.float32}


def test_batch_of_one():
    embedder = small("deeplab")
    with pytest.raises(ValueError, match="deeplab decoder .* batch of one image"):
        embedder(images(n=1))
    assert embedder.eval()(images(n=1))[1].shape == (1, 32, 48)
    assert small("conv")(images(n=1))[1].shape == (1, 32, 48)


def test_unknown_head():
    message = "unknown head 'fcn'; known: deeplab, conv, linear"
    with pytest.raises(ValueError, match=message):
        decoder(head="fcn")


# -------------------------------------------------------------------------- freezing


@pytest.mark.parametrize("n", [1, 2, 4])
def test_frozen_stages_stay_as_they_are(n):
    embedder = small()
    embedder.freeze_backbone_stages(n)
    before = {k: v.clone() for k, v in embedder.state_dict().items()}
    embedder.eval().train()
    optimiser = torch.optim.SGD(embedder.parameters(), 0.1, weight_decay=0.1)
    embedding, saliency = embedder(images())
    (embedding.square().sum() + saliency.sum()).backward()
    optimiser.step()
    frozen = ["conv1", "bn1", *(f"layer{i}" for i in range(1, n + 1))]
    for name, value in embedder.state_dict().items():
        part = name.split(".")[1] if name.startswith("backbone.") else name
        same = torch.equal(value, before[name])
        assert same == (part in frozen), name


def test_stages_can_be_freed_again():
    embedder = small()
    embedder.freeze_backbone_stages(3)
    embedder.freeze_backbone_stages(0)
    assert all(p.requires_grad for p in embedder.parameters())
    assert all(m.training for m in embedder.modules())


def test_what_cannot_be_frozen():
    with pytest.raises(ValueError, match="has 4 stages that can be frozen, got n=5"):
        small().freeze_backbone_stages(5)
    with pytest.raises(ValueError, match="has 0 stages that can be frozen, got n=1"):
        decoder().freeze_backbone_stages(1)
    decoder().freeze_backbone_stages(0)


# --------------------------------------------------------------------------- as head


@pytest.mark.parametrize("kind", ["network", "decoder"])
@pytest.mark.parametrize("head", ["deeplab", "conv", "linear"])
def test_head_from_its_config(kind, head):
    embedder = small(head) if kind == "network" else decoder(3, head)
    own = EmbedderHead(embedder).eval()
    assert (own.in_dim, own.dim) == (3, 5)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    again = from_config(own.config())
    assert torch.rand(1) == expected
    again.load_state_dict(own.state_dict())
    for one, other in zip(own.maps(images()), again.eval().maps(images()), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(own(images()), embedder.maps(images())[0])


@pytest.mark.parametrize("name", ["pixels", "vit_tiny_scenes"])
def test_model_on_disk(tmp_path, name):
    backbone = backbones.load(name)
    if name == "pixels":
        head = EmbedderHead(small())
    else:
        head = Chain(Standardise(torch.full((192,), 0.5)), EmbedderHead(decoder()))
    head.train()
    model = Segmenter(
        backbone, head, ClusterProbe(5, 3), classes=(), palette=torch.zeros(0, 3)
    )
    loaded = Segmenter.load(model.save(tmp_path / "model"))
    batch = images(40, 24)
    assert model.code(batch).shape == (2, 5, 5, 3)
    assert torch.equal(loaded.code(batch, flip=True), model.code(batch, flip=True))
    feat = backbone.features(batch)
    for one, other in zip(model.head.maps(feat), loaded.head.maps(feat), strict=True):
        assert torch.equal(one, other)
    picture = (torch.rand(37, 50, 3, generator=generator(1)) * 255).byte().numpy()
    labels = loaded.segment(picture)
    assert labels.shape == (37, 50)
    assert torch.equal(labels, model.segment(picture))


def test_what_is_no_head():
    other = PixelEmbedder(nn.Conv2d(3, 4, 1), 4)
    with pytest.raises(ValueError, match="DilatedResNet .*not with Conv2d"):
        EmbedderHead(other)
    with pytest.raises(ValueError, match=r"\(B, 3, h, w\), got \(2, 4, 8, 8\)"):
        EmbedderHead(small())(torch.zeros(2, 4, 8, 8))
