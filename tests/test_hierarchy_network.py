"""HSG's network at both strides, and its form as a head of a model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from uss_utils import backbones
from uss_utils.environment import generator
from uss_utils.grouping import Grouping
from uss_utils.heads import Chain, Standardise, from_config
from uss_utils.hierarchy_network import HSGHead, HSGNet
from uss_utils.probes import ClusterProbe
from uss_utils.resnets import DilatedResNet
from uss_utils.segmenter import Segmenter

D = 6


def images(height=64, width=96, n=2):
    return torch.randn(n, 3, height, width, generator=generator(0))


def grouping() -> Grouping:
    return Grouping(D, 4, 2, heads=2, layers=1, hidden=10)


def small(stages=4, hierarchy=False, **options) -> HSGNet:
    return HSGNet(D, "resnet18", hierarchy=hierarchy, n_stages=stages, **options)


def given(hierarchy=False, channels=192) -> HSGNet:
    return HSGNet(D, None, hierarchy=hierarchy, in_channels=channels, mid_channels=16)


def test_sizes_are_the_papers():
    net = HSGNet()
    sizes = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in net.named_children()
    }
    assert sizes["backbone"] == pytest.approx(23.5e6, rel=0.01)
    assert sizes["head"] == pytest.approx(4.46e6, rel=0.01)
    assert net.grouping.fine.queries.shape == (8, 128)
    assert net.grouping.coarse.queries.shape == (4, 128)
    assert net.grouping.positions.rows.shape == (50, 64)
    std = float(net.head[0].weight.detach().std())
    assert std == pytest.approx((2 / 2048) ** 0.5, rel=0.01)
    assert net.head[3].bias.all()  # a zero embedding has no direction


@torch.no_grad()
def test_grid_of_training_and_of_use():
    net = small().eval()
    coarse, fine = net(images()), net(images(), 8)
    assert coarse.shape == (2, D, 4, 6) and fine.shape == (2, D, 8, 12)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, atol=1e-4, rtol=1e-4)
    assert torch.equal(net(images()), coarse)
    assert small(output_stride=8).eval()(images()).shape == fine.shape


@torch.no_grad()
def test_dilations_of_training_and_of_use():
    net = HSGNet(hierarchy=False)
    stages = net.backbone.layer3, net.backbone.layer4

    def rates(stride):
        net.eval()(images(32, 32, 1), stride)
        return [[block.conv2.dilation[0] for block in stage] for stage in stages]

    assert rates(None) == [[1] * 6, [1, 4, 8]]
    assert rates(8) == [[1, 2, 2, 2, 2, 2], [2, 8, 16]]


@torch.no_grad()
def test_short_networks_and_given_features():
    assert small(2).eval()(images()).shape == (2, D, 8, 12)
    feat = torch.randn(2, 192, 5, 7, generator=generator(0))
    net = given().eval()
    hidden = net.head[1](net.head[0](feat)).relu()
    assert torch.equal(net(feat), net.head[3](hidden))
    assert torch.equal(net(feat, 8), net(feat))
    own = HSGNet(D, nn.Identity(), hierarchy=False, in_channels=192)
    assert own.head[0].weight.shape == (192, 192, 1, 1)


def test_weights_of_a_given_network_are_kept():
    backbone = DilatedResNet("resnet18", 3)
    net = HSGNet(D, backbone, hierarchy=False)
    assert net.backbone is backbone and backbone.stride == 16
    assert (net.in_channels, net.mid_channels) == (256, 256)


def test_float32_comes_out_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small(2).eval()(images()).dtype == torch.float32


def test_second_stage_starts_from_the_first():
    first, second = small(2), small(2, hierarchy=grouping())
    queries = second.grouping.fine.queries.clone()
    second.start_from(first)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)
    assert torch.equal(second.grouping.fine.queries, queries)
    with pytest.raises(ValueError, match="the backbone to start from is of another"):
        second.start_from(small(3))
    with pytest.raises(ValueError, match="the head to start from is of another"):
        given().start_from(given(channels=5))


def test_bad_input():
    with pytest.raises(ValueError, match="unknown ResNet 'resnet9'"):
        HSGNet(D, "resnet9")
    with pytest.raises(ValueError, match="given features need in_channels"):
        HSGNet(D, None)
    with pytest.raises(ValueError, match="or None where features .* not a Conv2d"):
        HSGNet(D, nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="stride is 8, 16 or 32"):
        small(output_stride=12)
    with pytest.raises(ValueError, match=r"\(B, 3, h, w\), got \(2, 4, 8, 8\)"):
        HSGHead(small(1))(torch.zeros(2, 4, 8, 8))


# ----------------------------------------------------------------------- as a head


@torch.no_grad()
def test_head_is_the_unit_embedding_at_stride_8():
    net = small().eval()
    code = HSGHead(net)(images())
    assert code.shape == (2, D, 8, 12)
    torch.testing.assert_close(code.norm(dim=1), torch.ones(2, 8, 12))
    assert torch.equal(code, F.normalize(net(images(), 8), dim=1))


@pytest.mark.parametrize("network", ["resnet", "given"])
@pytest.mark.parametrize("levels", [False, True])
@torch.no_grad()
def test_config_and_state_restore_it(network, levels):
    hierarchy = grouping() if levels else False
    net = small(2, hierarchy) if network == "resnet" else given(hierarchy)
    own = HSGHead(net).eval()
    before = torch.get_rng_state()
    again = from_config(own.config()).eval()
    assert torch.equal(torch.get_rng_state(), before)
    again.load_state_dict(own.state_dict())
    feat = images() if network == "resnet" else torch.randn(2, 192, 4, 6)
    assert torch.equal(again(feat), own(feat))
    assert torch.equal(again.net(feat), net(feat))
    assert again.config() == own.config()
    if levels:
        x, place = torch.randn(2, 2, D, 5)
        padding = torch.zeros(2, 5, dtype=torch.bool)
        found = again.net.grouping(x, padding, place)
        for one, other in zip(found, net.grouping(x, padding, place), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("behind", ["pixels", "vit_tiny_random"])
def test_saved_and_loaded_with_a_model(tmp_path, behind):
    if behind == "pixels":
        head = HSGHead(small(2, grouping()))
    else:
        fixed = Standardise(torch.full((192,), 0.5))
        head = Chain(fixed, HSGHead(given(grouping())))
    backbone = backbones.load(behind)
    model = Segmenter(
        backbone, head, ClusterProbe(D, 3), classes=("a", "b"), palette=[[0] * 3] * 2
    )
    loaded = Segmenter.load(model.save(tmp_path / "model"))
    code = model.code(images(32, 32))
    assert torch.equal(loaded.code(images(32, 32)), code)
    tail = loaded.head if behind == "pixels" else loaded.head.then
    own = head if behind == "pixels" else head.then
    assert torch.equal(
        tail.net.grouping.positions.rows, own.net.grouping.positions.rows
    )
