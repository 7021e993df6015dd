"""Frozen backbones by name: the course's tiny ViT, DINO, DINOv2, any plain timm ViT.

Every backbone turns ``image (B,3,H,W)`` into ``feat (B,C,h,w)`` behind one interface
(:class:`~uss_utils.frozen.Frozen`). Controls that learn nothing, "colour" and "row",
stand behind the same interface, so that a comparison is one code path; so does
"pixels", the image itself, for heads that are whole networks.
"""

import difflib
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from uss_utils.environment import pick_device
from uss_utils.frozen import BackboneOutput, Control, Frozen
from uss_utils.paths import weights_dir
from uss_utils.vit import Backbone, check_plain
from uss_utils.vit_weights import fit, hub_file, read_weights

__all__ = [
    "ALIASES",
    "Backbone",
    "BackboneOutput",
    "Control",
    "Frozen",
    "load",
    "names",
    "tiny_vit",
    "untrained",
]

# Short name -> timm's name. DINOv3 is listed where the installed timm has it.
ALIASES = {
    "dino_vits8": "vit_small_patch8_224.dino",
    "dino_vits16": "vit_small_patch16_224.dino",
    "dino_vitb8": "vit_base_patch8_224.dino",
    "dino_vitb16": "vit_base_patch16_224.dino",
    "dinov2_vits14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_vitb14": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_vitl14": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2_vitl14_reg": "vit_large_patch14_reg4_dinov2.lvd142m",
    "dinov3_vits16": "vit_small_patch16_dinov3.lvd1689m",
    "dinov3_vits16plus": "vit_small_plus_patch16_dinov3.lvd1689m",
    "dinov3_vitb16": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3_vitl16": "vit_large_patch16_dinov3.lvd1689m",
}
SHIPPED = "vit_tiny_scenes"
TINY = (SHIPPED, "vit_tiny", "vit_tiny_random")
CONTROLS = tuple(Control.PATCH)


def names() -> list[str]:
    """All short names; the plain ViTs of ``timm.list_models("vit_*")`` work as well."""
    present = [short for short, full in ALIASES.items() if timm.is_model(full)]
    return [*TINY, *present, *CONTROLS]


def tiny_vit(seed: int = 0) -> VisionTransformer:
    """The course's own small ViT, freshly initialised (1.9 million parameters).

    Patch 8, width 192, depth 4, 3 heads; position table for 128 x 128 images.

    Args:
        seed: seed of the initial weights; the global generators are left as found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(
            img_size=128,
            patch_size=8,
            embed_dim=192,
            depth=4,
            num_heads=3,
            mlp_ratio=4,
            num_classes=0,
            dynamic_img_size=True,
        )


def load(
    name: str,
    weights: str | Path | None = None,
    *,
    position: str = "released",
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Frozen:
    """A frozen backbone in eval mode.

    Args:
        name: "vit_tiny_scenes" (the weights that ship with the course), "vit_tiny" (the
            same architecture with your ``weights``), "vit_tiny_random" (untrained),
            "dino_vits8", "dinov2_vitb14_reg", ... (see :func:`names`), the name of any
            plain ViT in timm, or "colour", "row" or "pixels".
        weights: your own file for this model (``.safetensors``, or an official
            ``.pth``); None takes the shipped file, timm's cache, or the model hub.
        position: resampling of a learned position table at other image sizes,
            "released" or "timm"; see :class:`~uss_utils.vit.Backbone`.
        device: where to put it; "auto" picks.
        seed: seed of "vit_tiny_random"; no other name is random.

    Raises:
        ValueError: unknown name (the known ones are listed) or position, weights of
            another model, damaged weights, absent device.
        FileNotFoundError: the weight file is absent.
        ConnectionError: weights that are not here cannot be fetched.
    """
    place = pick_device(str(device))
    if weights is not None and name in (*CONTROLS, "vit_tiny_random"):
        raise ValueError(f"{name!r} takes no weights; leave weights=None")
    if name in CONTROLS:
        return Control(name).to(place)
    vit = tiny_vit(seed) if name in TINY else _timm_vit(name)
    if name != "vit_tiny_random":
        path = _weight_file(name, weights)
        fit(vit, read_weights(path), str(path), name)
    untrained = name == "vit_tiny_random"
    return Backbone(vit, name, position=position, untrained=untrained).to(place)


def untrained(
    name: str,
    *,
    position: str = "released",
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Frozen:
    """The architecture of a backbone with random weights: as fast, nothing is fetched.

    Args:
        name: see :func:`load`, as are the others.
        position: resampling of a learned position table.
        device: where to put it; "meta" gives the sizes alone, without any numbers.
        seed: of the tiny ViT's weights.

    Raises:
        ValueError: unknown name or position.
    """
    if name in CONTROLS:
        return Control(name).to(device)
    with torch.device(device):
        vit = tiny_vit(seed) if name in TINY else _timm_vit(name)
        return Backbone(vit, name, position=position, untrained=True)


def _timm_vit(name: str) -> torch.nn.Module:
    """An empty timm ViT; its random initial weights disturb no generator."""
    full = ALIASES.get(name, name)
    if not timm.is_model(full):
        close = difflib.get_close_matches(
            name, [*names(), *timm.list_models("vit*")], 3
        )
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"unknown backbone {name!r}; known: {', '.join(names())}, and timm's plain "
            f"ViTs (timm.list_models('vit_*')).{hint}"
        )
    architecture = full.split(".")[0]
    if not timm.models.is_model_in_modules(architecture, ["vision_transformer", "eva"]):
        raise ValueError(f"{name!r} is not a plain ViT; known: {', '.join(names())}")
    with torch.random.fork_rng(devices=[]):
        try:
            vit = timm.create_model(full, num_classes=0, dynamic_img_size=True)
        except RuntimeError as error:
            raise ValueError(f"timm cannot make {name!r}: {error}") from error
    check_plain(vit, name)
    return vit


def _weight_file(name: str, weights: str | Path | None) -> Path:
    """Where the weights of a model are: the user's file, the shipped one, the hub's."""
    if weights is not None:
        return Path(weights).expanduser()
    if name == "vit_tiny":
        raise ValueError(
            '"vit_tiny" needs weights=<file>, as written by python -m uss_utils '
            f'pretrain; the shipped weights are called "{SHIPPED}"'
        )
    if name == SHIPPED:
        path = weights_dir() / f"{SHIPPED}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"the shipped weights are not at {path}; restore the file, or make "
                "it anew with: python -m uss_utils pretrain"
            )
        return path
    repo = timm.get_pretrained_cfg(ALIASES.get(name, name)).hf_hub_id
    if repo is None:
        raise ValueError(f"timm publishes no weights for {name!r}; give weights=<file>")
    return hub_file(repo, name)
