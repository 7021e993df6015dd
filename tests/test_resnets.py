"""ResNets at stride 8, and where their weights come from."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from uss_utils import vit_weights
from uss_utils.environment import generator
from uss_utils.resnets import RESNETS, DilatedResNet, dilated_resnet


def images(height=64, width=96, n=2):
    return torch.randn(n, 3, height, width, generator=generator(0))


def original(name, **options) -> nn.Module:
    """torchvision's network; its statistics are those of a batch, so that it answers.

    With the statistics of the start, or any others, its maps would explode or be zero.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = getattr(torchvision.models, name)(**options)
        network.avgpool = nn.Identity()
        network.fc = nn.Identity()
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        network(images(96, 128))
    assert 0.1 < network.eval()(images()).std() < 10
    return network


def shared(name, like) -> DilatedResNet:
    network = DilatedResNet(name).eval()
    network.load_state_dict(like.state_dict())
    return network


@torch.no_grad()
def test_resnet50_equals_torchvisions_dilated_one():
    like = original("resnet50", replace_stride_with_dilation=[False, True, True])
    maps = shared("resnet50", like)(images())
    assert maps.shape == (2, 2048, 8, 12)
    assert torch.equal(maps.flatten(1), like(images()))


@pytest.mark.parametrize("name", RESNETS)
@torch.no_grad()
def test_every_fourth_place_is_what_the_network_computes_at_stride_32(name):
    like = original(name)
    network = shared(name, like)
    maps = network(images())
    expected = like(images()).view(2, -1, 2, 3)
    assert maps.shape == (2, network.dim, 8, 12)
    torch.testing.assert_close(maps[..., ::4, ::4], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", RESNETS)
def test_names_are_torchvisions_and_timms(name):
    own = {k: v.shape for k, v in DilatedResNet(name).state_dict().items()}
    for other in (getattr(torchvision.models, name)(), timm.create_model(name)):
        shapes = {k: v.shape for k, v in other.state_dict().items()}
        assert own == {k: v for k, v in shapes.items() if not k.startswith("fc.")}
    repository = timm.get_pretrained_cfg(f"{name}.tv_in1k").hf_hub_id
    assert repository == RESNETS[name][1]


def test_size_of_resnet50_and_odd_images():
    network = DilatedResNet()
    n = sum(p.numel() for p in network.parameters())
    assert n == pytest.approx(23.5e6, rel=0.01)
    small = DilatedResNet("resnet18").eval()
    assert small.dim == 512
    with torch.no_grad():
        assert small(images(65, 40)).shape == (2, 512, 9, 5)


@pytest.mark.parametrize("name", RESNETS)
@torch.no_grad()
def test_stride_can_be_chosen_later(name):
    like = original(name)
    network, fine = shared(name, like), shared(name, like)(images())
    for stride in (16, 32, 8):
        network.set_stride(stride)
        maps = network(images())
        assert network.stride == stride
        assert maps.shape == (2, network.dim, 64 // stride, 96 // stride)
        every = stride // 8
        expected = fine[..., ::every, ::every]
        torch.testing.assert_close(maps, expected, atol=1e-4, rtol=1e-4)


def rates_of(stage):
    return [block.conv2.dilation[0] for block in stage]


@pytest.mark.parametrize("name", RESNETS)
@torch.no_grad()
def test_rates_of_the_last_stage_keep_what_is_looked_at(name):
    network = shared(name, original(name))
    network.set_stride(16, (1, 4, 8))
    coarse, at_16 = network(images()), rates_of(network.layer4)
    assert rates_of(network.layer3) == [1] * len(network.layer3)
    network.set_stride(8, (1, 4, 8))
    fine, at_8 = network(images()), rates_of(network.layer4)
    expected = ([1, 4, 8], [2, 8, 16])
    blocks = len(network.layer4)
    assert (at_16, at_8) == tuple(x[:blocks] for x in expected)
    assert set(rates_of(network.layer3)[1:]) == {2}
    assert coarse.shape[2:] == (4, 6) and fine.shape[2:] == (8, 12)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, atol=1e-4, rtol=1e-4)
    network.set_stride(8)
    assert not torch.allclose(network(images()), fine, atol=1e-2)


def test_resnet50_with_rates_has_the_papers_dilations():
    network = DilatedResNet()
    network.set_stride(8, (1, 4, 8))
    assert rates_of(network.layer3) == [1, 2, 2, 2, 2, 2]
    strides = [m.stride for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert strides.count((2, 2)) == 3  # the stem, and stage 2 with its shortcut
    padding = [b.conv2.padding[0] for b in network.layer4]
    assert padding == rates_of(network.layer4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_stride_of_short_networks(n):
    network = DilatedResNet("resnet18", n).eval()
    network.set_stride(16, (1, 4, 8))
    assert network.stride == (4, 8, 16)[n - 1]
    with torch.no_grad():
        assert network(images()).shape[2] == 64 // network.stride


def test_strides_and_rates_there_are_not():
    network = DilatedResNet()
    with pytest.raises(ValueError, match="stride is 8, 16 or 32 here, got 4"):
        network.set_stride(4)
    with pytest.raises(ValueError, match="need a stride of 8 or 16, not 32"):
        network.set_stride(32, (1, 4, 8))
    with pytest.raises(ValueError, match=r"resnet50 has 3 blocks, got rates \(1, 4\)"):
        network.set_stride(16, (1, 4))


def test_start_of_the_convolutions():
    weight = DilatedResNet().layer4[0].conv2.weight
    assert float(weight.detach().std()) == pytest.approx(
        (2 / (9 * 512)) ** 0.5, rel=0.01
    )


def test_stages_hold_every_parameter_once():
    network = DilatedResNet("resnet18")
    held = [
        id(p)
        for stage in network.stages()
        for module in stage
        for p in module.parameters()
    ]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    assert len(network.stages()) == 4


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_short_network_is_the_beginning_of_the_whole_one(n):
    whole, short = DilatedResNet("resnet18").eval(), DilatedResNet("resnet18", n).eval()
    state = {k: v for k, v in whole.state_dict().items() if k in short.state_dict()}
    short.load_state_dict(state)
    seen = {}
    getattr(whole, f"layer{n}").register_forward_hook(
        lambda module, given, result: seen.update(result=result)
    )
    with torch.no_grad():
        maps = short(images())
        whole(images())
    assert torch.equal(maps, seen["result"])
    assert maps.shape == (2, short.dim, 64 // short.stride, 96 // short.stride)
    assert len(short.stages()) == n


@pytest.mark.parametrize("n", [0, 5])
def test_stages_there_are_not(n):
    with pytest.raises(ValueError, match=f"1 to 4 stages, got {n}"):
        DilatedResNet("resnet18", n)


# --------------------------------------------------------------------------- weights


def state(name="resnet18"):
    return DilatedResNet(name).state_dict()


def moco(encoder):
    """What a MoCo v2 checkpoint holds."""
    kept = {f"module.encoder_q.{k}": v for k, v in encoder.items()}
    kept["module.encoder_q.fc.0.weight"] = torch.zeros(8, 8)
    kept |= {f"module.encoder_k.{k}": torch.zeros_like(v) for k, v in encoder.items()}
    return kept | {"module.queue": torch.zeros(8, 3)}


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_from_files(tmp_path, suffix, wrapped):
    encoder = state()
    path = tmp_path / f"weights{suffix}"
    content = moco(encoder) if wrapped else encoder | {"fc.bias": torch.zeros(3)}
    if suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in content.items()}, path)
    else:
        settings = {"epoch": 800, "arch": "resnet18", "optimizer": {"lr": 0.03}}
        torch.save({"state_dict": content, **settings} if wrapped else content, path)
    loaded = dilated_resnet("resnet18", path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in encoder.items())


def test_counters_of_batches_may_be_missing_nothing_else(tmp_path):
    encoder = {k: v for k, v in state().items() if v.ndim}
    torch.save(encoder, tmp_path / "old.pth")
    dilated_resnet("resnet18", tmp_path / "old.pth")
    del encoder["layer1.0.conv1.weight"]
    torch.save(encoder, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"resnet18: layer1\.0\.conv1\.weight is miss"):
        dilated_resnet("resnet18", tmp_path / "cut.pth")


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(state("resnet50"), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights of resnet18"):
        dilated_resnet("resnet18", tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        dilated_resnet("resnet18", tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="unknown ResNet 'resnet34'; known: resnet18"):
        dilated_resnet("resnet34")


def test_imagenet_weights_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(vit_weights.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(vit_weights.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError) as caught:
        dilated_resnet("resnet18", "imagenet")
    for part in ("timm/resnet18.tv_in1k", 'dilated_resnet("resnet18", weights='):
        assert part in str(caught.value)


def test_imagenet_weights_from_the_hub(tmp_path, monkeypatch):
    encoder = state() | {"fc.weight": torch.zeros(1000, 512)}
    save_file(encoder, tmp_path / "model.safetensors")
    asked = []

    def hub(repository, file, **options):
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(vit_weights, "hf_hub_download", hub)
    loaded = dilated_resnet("resnet18", "imagenet").state_dict()
    assert asked == [("timm/resnet18.tv_in1k", "model.safetensors")]
    assert all(torch.equal(v, encoder[k]) for k, v in loaded.items())
