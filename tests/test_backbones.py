import copy
import time

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from uss_utils import backbones, vit_weights
from uss_utils.backbones import Backbone, Control, load, tiny_vit
from uss_utils.datasets.transforms import normalise


def plain(**changes) -> VisionTransformer:
    """A ViT small enough for a test: grid 4 x 4, width 24, depth 3."""
    settings = dict(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        num_classes=0,
        dynamic_img_size=True,
    )
    torch.manual_seed(0)
    return VisionTransformer(**{**settings, **changes}).eval()


def rotary(rope_type="dinov3", **changes) -> Eva:
    settings = dict(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=0,
        dynamic_img_size=True,
        num_reg_tokens=2,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        use_fc_norm=False,
        rope_type=rope_type,
    )
    torch.manual_seed(0)
    return Eva(**{**settings, **changes}).eval()


def pictures(height=32, width=32, n=2) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


MODELS = {
    "class token": plain,
    "registers": lambda: plain(reg_tokens=4, no_embed_class=True, init_values=0.1),
    "no class token": lambda: plain(class_token=False, global_pool="avg", fc_norm=True),
    "pre-norm": lambda: plain(pre_norm=True, qk_norm=True),
    "rotary as DINOv3": lambda: rotary(rope_rotate_half=True, qkv_bias=False),
    "rotary and table": lambda: rotary("cat", use_abs_pos_emb=True, num_reg_tokens=0),
    "rotary per block": lambda: rotary("mixed"),
}


@pytest.mark.parametrize("size", [(32, 32), (48, 24)], ids=["native", "other"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_features_equal_timms_own_forward(make, size):
    vit = make()
    images = pictures(*size)
    with torch.no_grad():
        tokens = vit.forward_features(images)[:, vit.num_prefix_tokens :]
    backbone = Backbone(vit, "small", position="timm")
    h, w = size[0] // 8, size[1] // 8
    expected = tokens.transpose(1, 2).unflatten(2, (h, w))
    torch.testing.assert_close(backbone.features(images), expected)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_attention_and_keys_explain_the_last_block(make):
    """Softmax of the logits times the values gives the block's attention output."""
    vit = make()
    backbone = Backbone(vit, "small")
    attn, seen = vit.blocks[-1].attn, {}
    attn.proj.register_forward_pre_hook(lambda m, args: seen.update(mixed=args[0]))
    attn.norm.register_forward_pre_hook(lambda m, args: seen.update(mixed=args[0]))
    attn.register_forward_pre_hook(lambda m, args: seen.update(input=args[0]))
    out = backbone(pictures(48, 24), attention=True, keys=True)
    values = torch.nn.functional.linear(seen["input"], attn.qkv.weight)
    if attn.qkv.bias is not None:
        values = values + attn.qkv.bias
    elif getattr(attn, "q_bias", None) is not None:
        values = values + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    count = backbone.prefix + 18
    values = values.unflatten(2, (3, backbone.heads, -1)).permute(2, 0, 3, 1, 4)
    assert out.attention.shape == (2, backbone.heads, count, count)
    mixed = (out.attention.softmax(-1) @ values[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, seen["mixed"], atol=1e-5, rtol=1e-4)
    keys = values[1] if not hasattr(attn.k_norm, "weight") else attn.k_norm(values[1])
    keys = keys.transpose(1, 2).flatten(2)[:, backbone.prefix :].transpose(1, 2)
    torch.testing.assert_close(out.keys, keys.unflatten(2, (6, 3)))


def test_one_pass_gives_all_outputs_and_leaves_no_hook():
    vit, calls = plain(), []
    vit.blocks[0].register_forward_hook(lambda *args: calls.append(1))
    backbone = Backbone(vit, "small")
    out = backbone(pictures(), layers=(0, -2, 2), attention=True, keys=True, cls=True)
    assert len(calls) == 1
    assert out.feat.shape == out.keys.shape == (2, 24, 4, 4)
    assert out.cls.shape == (2, 24, 1, 1)
    assert set(out.layers) == set(out.tokens) == {0, -2, 2}
    attn = vit.blocks[-1].attn
    assert not attn.q_norm._forward_hooks and not attn.k_norm._forward_hooks


def test_layers_are_raw_block_outputs_with_prefix_tokens_beside_them():
    vit = plain()
    out = Backbone(vit, "small")(pictures(), layers=(-2, 2), cls=True)
    with torch.no_grad():
        last = vit.blocks[-1](out.tokens[-2])
        final = vit.norm(last)
    torch.testing.assert_close(out.tokens[2], last)
    torch.testing.assert_close(out.feat.flatten(2), final[:, 1:].transpose(1, 2))
    torch.testing.assert_close(out.cls[:, :, 0, 0], final[:, 0])
    torch.testing.assert_close(out.layers[2].flatten(2).mT, last[:, 1:])


def test_nothing_more_than_asked():
    out = Backbone(plain(), "small")(pictures())
    assert out.cls is out.keys is out.attention is None
    assert out.layers == out.tokens == {}


def test_released_position_is_the_offset_scale_rule():
    vit = plain()
    backbone = Backbone(vit, "small")
    grid = vit.pos_embed[:, 1:].transpose(1, 2).reshape(1, 24, 4, 4)
    scale = (6.1 / 4, 3.1 / 4)
    wanted = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    table = torch.cat([vit.pos_embed[:, :1], wanted.flatten(2).mT], 1)
    fixed = copy.deepcopy(vit)
    fixed.dynamic_img_size = False
    fixed.pos_embed = torch.nn.Parameter(table)
    fixed.patch_embed.strict_img_size = False
    fixed.patch_embed.output_fmt, fixed.patch_embed.flatten = None, True
    with torch.no_grad():
        tokens = fixed.forward_features(pictures(48, 24))[:, 1:]
    torch.testing.assert_close(
        backbone.features(pictures(48, 24)).flatten(2).mT, tokens
    )
    other = Backbone(vit, "small", position="timm").features(pictures(48, 24))
    assert (backbone.features(pictures(48, 24)) - other).abs().max() > 1e-3


def test_released_position_resamples_when_only_the_token_count_is_native():
    """16 tokens as 2 x 8 are not the native 4 x 4 grid."""
    vit = plain()
    with torch.no_grad():
        vit.pos_embed *= 50
    backbone = Backbone(vit, "small")
    assert not torch.equal(
        backbone._grid(vit.pos_embed[:, 1:], 2, 8), vit.pos_embed[:, 1:]
    )
    assert torch.equal(backbone._grid(vit.pos_embed[:, 1:], 4, 4), vit.pos_embed[:, 1:])


def test_registers_use_the_plain_resize_of_their_released_code():
    vit = plain(reg_tokens=4, no_embed_class=True)
    images = pictures(48, 24)
    released = Backbone(vit, "small").features(images)
    assert torch.equal(released, Backbone(vit, "s", position="timm").features(images))


def test_rotary_models_have_no_position_table():
    assert Backbone(rotary(), "small").position == "rotary"


def test_frozen_and_always_in_eval_mode():
    backbone = Backbone(plain(proj_drop_rate=0.5), "small")
    backbone.train()
    assert not backbone.training and not backbone.vit.training
    assert not any(p.requires_grad for p in backbone.parameters())
    feat = backbone.features(pictures())
    assert torch.equal(feat, backbone.features(pictures())) and not feat.requires_grad
    # Not an inference tensor: a head must be able to learn from it.
    weight = torch.ones(24, requires_grad=True)
    (feat.mean((0, 2, 3)) * weight).sum().backward()
    assert weight.grad is not None


def test_tiny_vit_is_the_documented_architecture_and_disturbs_no_generator():
    before = torch.get_rng_state()
    vit = tiny_vit(seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert sum(p.numel() for p in vit.parameters()) == 1_866_432
    assert torch.equal(vit.pos_embed, tiny_vit(seed=3).pos_embed)
    assert not torch.equal(vit.pos_embed, tiny_vit(seed=4).pos_embed)


def test_vit_tiny_random():
    backbone = load("vit_tiny_random", seed=2)
    assert (backbone.dim, backbone.patch, backbone.depth, backbone.heads) == (
        192,
        8,
        4,
        3,
    )
    assert backbone.untrained and backbone.prefix == 1
    assert backbone.features(torch.zeros(1, 3, 64, 128)).shape == (1, 192, 8, 16)


@pytest.mark.parametrize(
    ("name", "prefix", "position"),
    [
        ("dino_vits16", 1, "timm"),
        ("dinov2_vits14_reg", 5, "timm"),
        ("dinov3_vits16", 5, "rotary"),
    ],
)
def test_published_architectures_equal_timms_forward(name, prefix, position):
    if not timm.is_model(backbones.ALIASES[name]):
        pytest.skip(f"this timm has no {name}")
    vit = backbones._timm_vit(name).eval()
    backbone = Backbone(vit, name, position="timm")
    assert (backbone.prefix, backbone.position) == (prefix, position)
    side = backbone.patch
    images = pictures(2 * side, 3 * side, n=1)
    with torch.no_grad():
        tokens = vit.forward_features(images)[:, prefix:]
    torch.testing.assert_close(backbone.features(images).flatten(2).mT, tokens)


def test_outputs_are_float32_under_autocast():
    backbone, images = Backbone(plain(), "small"), pictures(48, 24)
    asked = dict(layers=(0,), attention=True, keys=True, cls=True)
    exact = backbone(images, **asked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = backbone(images, **asked)
    pairs = [(getattr(o, k) for o in (out, exact)) for k in ("feat", "cls", "keys")]
    for half, full in [*pairs, (out.attention, exact.attention)]:
        assert half.dtype == torch.float32 and not torch.equal(half, full)
        torch.testing.assert_close(half, full, atol=0.1, rtol=0.1)
    assert out.layers[0].dtype == out.tokens[0].dtype == torch.float32


def test_fingerprint_follows_the_weights():
    first, again = load("vit_tiny_random"), load("vit_tiny_random")
    assert first.fingerprint == again.fingerprint and len(first.fingerprint) == 64
    assert first.fingerprint != load("vit_tiny_random", seed=1).fingerprint
    with torch.no_grad():
        again.vit.cls_token += 1
    assert first.fingerprint != again.fingerprint
    assert load("colour").fingerprint != load("row").fingerprint


def test_controls():
    pixels = torch.randint(0, 256, (2, 16, 24, 3), dtype=torch.uint8)
    images = normalise(pixels)
    colour = load("colour").features(images)
    expected = pixels.permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(colour, expected, atol=1e-6, rtol=0)
    row = load("row").features(images)
    assert row.shape == (2, 1, 2, 3)
    assert row[1, 0].tolist() == [[0.25] * 3, [0.75] * 3]
    with pytest.raises(ValueError, match="'row' has no layers, attention, keys"):
        load("row")(images, cls=True)
    assert torch.equal(load("pixels").features(images), images)
    known = "known: pixels, colour, row"
    with pytest.raises(ValueError, match=f"unknown control 'hue'; {known}"):
        Control("hue")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((50, 32), "height 50 -> 48 or 56; width 32 fits"),
        ((32, 61), "height 32 fits; width 61 -> 56 or 64"),
        ((63, 65), "height 63 -> 56 or 64; width 65 -> 64 or 72"),
        ((7, 64), "7 x 64 .* smaller than one patch of 8 x 8"),
    ],
)
def test_sizes_that_do_not_divide(size, message):
    with pytest.raises(ValueError, match=message):
        Backbone(plain(), "small").features(pictures(*size))


def test_images_that_are_no_normalised_floats():
    backbone = Backbone(plain(), "small")
    with pytest.raises(ValueError, match="normalised floats of shape .*uint8"):
        backbone.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"normalised floats of shape .*\(3, 32, 32\)"):
        backbone.features(torch.zeros(3, 32, 32))


def test_bad_requests():
    with pytest.raises(ValueError, match=r"no layer 3 in small: .* 3 blocks, 0\.\.2"):
        Backbone(plain(), "small")(pictures(), layers=(3,))
    with pytest.raises(ValueError, match="unknown position 'bilinear'; known: rel"):
        Backbone(plain(), "small", position="bilinear")
    headless = Backbone(MODELS["no class token"](), "small")
    with pytest.raises(ValueError, match="small has no class token"):
        headless(pictures(), cls=True)
    odd = Backbone(plain(attn_layer="diff", embed_dim=48), "odd")
    assert odd.features(pictures()).shape == (2, 48, 4, 4)
    for asked in ({"keys": True}, {"attention": True}):
        with pytest.raises(ValueError, match="odd has another kind of attention"):
            odd(pictures(), **asked)
    net = timm.create_model("resnet18", num_classes=0)
    with pytest.raises(ValueError, match="net is a ResNet, not a plain ViT"):
        Backbone(net, "net")


def test_unknown_names():
    with pytest.raises(ValueError, match="known: vit_tiny_scenes, .*Did you mean dino"):
        load("dino_vits9")
    with pytest.raises(ValueError, match="'resnet50' is not a plain ViT; known: "):
        load("resnet50")
    with pytest.raises(ValueError, match="cannot make .*Invalid pretrained tag"):
        load("vit_small_patch8_224.nonsense")
    with pytest.raises(ValueError, match="takes no weights"):
        load("colour", weights="a.safetensors")
    with pytest.raises(ValueError, match="device 'cuda:99'|sees no CUDA"):
        load("vit_tiny_random", device="cuda:99")


def test_every_short_name_is_a_plain_vit_of_timm():
    listed = backbones.names()
    assert listed[0] == "vit_tiny_scenes" and listed[-2:] == ["colour", "row"]
    for short, full in backbones.ALIASES.items():
        assert (short in listed) == timm.is_model(full)
        assert timm.get_pretrained_cfg(full).hf_hub_id == f"timm/{full}"


# --- weight files -----------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder in the place of the shipped weights."""
    monkeypatch.setattr(backbones, "weights_dir", lambda: tmp_path)
    return tmp_path / "vit_tiny_scenes.safetensors"


def test_half_precision_weights_are_cast_up(shipped):
    state = {k: v.half() for k, v in tiny_vit(5).state_dict().items()}
    save_file(state, shipped, metadata={"card": "{}"})
    backbone = load("vit_tiny_scenes")
    assert backbone.features(torch.zeros(1, 3, 16, 16)).dtype == torch.float32
    assert not backbone.untrained
    torch.testing.assert_close(backbone.vit.cls_token, state["cls_token"].float())
    own = load("vit_tiny", weights=shipped)
    assert own.fingerprint == backbone.fingerprint and own.name == "vit_tiny"


def test_shipped_weights_absent(shipped):
    with pytest.raises(FileNotFoundError, match="python -m uss_utils pretrain"):
        load("vit_tiny_scenes")
    with pytest.raises(ValueError, match="needs weights=<file>"):
        load("vit_tiny")
    with pytest.raises(FileNotFoundError, match="no weight file at .*none.safetensors"):
        load("vit_tiny", weights=shipped.with_name("none.safetensors"))


def test_damaged_files(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file(tiny_vit().state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load("vit_tiny", weights=path)
    state = tiny_vit().state_dict()
    state["cls_token"][0, 0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="cls_token contains NaN"):
        load("vit_tiny", weights=tmp_path / "nan.safetensors")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="is damaged, or holds more than tensors"):
        load("vit_tiny", weights=tmp_path / "cut.pth")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="read from .safetensors, .pth or .pt files"):
        load("vit_tiny", weights=tmp_path / "w.npz")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load("vit_tiny", weights=tmp_path / "empty.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_cut_off_anywhere(tmp_path, zipped):
    """The older format, in which DINO was published, is a bare pickle."""
    path = tmp_path / "cut.pth"
    state = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert vit_weights.read_weights(path).keys() == state.keys()
    content = path.read_bytes()
    for size in range(0, len(content), 13):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut.pth is damaged, or holds more"):
            vit_weights.read_weights(path)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code ran')",))

    torch.save({"teacher": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="would run code from the file"):
        load("vit_tiny", weights=tmp_path / "evil.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 16}, r"patch embedding has shape \(24, 3, 16, 16\)"),
        ({"embed_dim": 48}, r"patch embedding has shape \(48, 3, 8, 8\)"),
        ({"img_size": 64}, "position table has 65 entries, expected 4 x 4"),
        ({"depth": 2}, "blocks.2.norm1.weight is missing; .* and 9 more"),
        ({"depth": 4}, "blocks.3.norm1.weight is unknown"),
        ({"mlp_ratio": 2}, r"fc1.weight has shape \(48, 24\) instead of \(96, 24\)"),
    ],
)
def test_weights_of_another_model_are_refused(changes, message):
    with pytest.raises(
        ValueError, match=f"here does not hold .* of small: .*{message}"
    ):
        vit_weights.fit(plain(), plain(**changes).state_dict(), "here", "small")


def test_full_training_checkpoint(tmp_path):
    """DINO's: a teacher with prefixes and a projection head, and the command line."""
    from argparse import Namespace

    state = {f"module.backbone.{k}": v for k, v in plain().state_dict().items()}
    state["module.head.mlp.0.weight"] = torch.zeros(2, 2)
    content = {"teacher": state, "epoch": 3, "args": Namespace(lr=0.1, arch="vit")}
    torch.save(content, tmp_path / "full.pth")
    vit = plain(embed_dim=24)
    with torch.no_grad():
        vit.cls_token += 1
    vit_weights.fit(vit, vit_weights.read_weights(tmp_path / "full.pth"), "f", "small")
    assert torch.equal(vit.cls_token, plain().cls_token)


@pytest.mark.parametrize("registers", [0, 4])
def test_official_dinov2_names(registers):
    """The published files name registers and class position their own way."""
    target = plain(
        init_values=1.0, reg_tokens=registers, no_embed_class=bool(registers)
    )
    state = dict(plain(init_values=1.0, reg_tokens=0).state_dict())
    state["mask_token"] = torch.zeros(1, 24)
    if registers:
        state["register_tokens"] = torch.randn(1, registers, 24)
    vit_weights.fit(target, state, "file", "dinov2")
    with torch.no_grad():
        first = target._pos_embed(torch.zeros(1, 4, 4, 24))[:, 0]
    expected = state["cls_token"][:, 0] + state["pos_embed"][:, 0]
    torch.testing.assert_close(first, expected)


@pytest.mark.parametrize("offline", [False, True])
def test_offline_hub_answers_quickly_and_says_what_to_do(
    tmp_path, monkeypatch, offline
):
    monkeypatch.setattr(vit_weights.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(vit_weights.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(vit_weights.constants, "HF_HUB_OFFLINE", offline)
    start = time.monotonic()
    with pytest.raises(ConnectionError) as caught:
        load("dino_vits16")
    assert time.monotonic() - start < 30
    assert ("HF_HUB_OFFLINE is set" in str(caught.value)) == offline
    for part in ("dino_vits16", "timm/vit_small_patch16_224.dino", "weights="):
        assert part in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_a_name_server_that_never_answers_does_not_hang(monkeypatch):
    def silent(*args, **options):
        time.sleep(0.5)
        raise TimeoutError

    monkeypatch.setattr(vit_weights.urllib.request, "urlopen", silent)
    assert vit_weights._unreachable("http://x", 0.1) == "no answer within 0.1 s"


def test_timms_cache_is_used_without_network(tmp_path, monkeypatch):
    """A file in the local cache is found before anyone is asked."""
    path = tmp_path / "model.safetensors"
    vit = timm.create_model("vit_small_patch16_224.dino", num_classes=0)
    save_file(vit.state_dict(), path)
    asked = []

    def cached(repo, file, **options):
        asked.append((repo, file, options))
        return str(path)

    monkeypatch.setattr(vit_weights, "hf_hub_download", cached)
    backbone = load("dino_vits16")
    wanted = ("timm/vit_small_patch16_224.dino", "model.safetensors")
    assert asked == [(*wanted, {"local_files_only": True})]
    assert (backbone.dim, backbone.patch, backbone.heads) == (384, 16, 6)
    assert torch.equal(backbone.vit.cls_token, vit.cls_token)
