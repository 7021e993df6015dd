"""Checkpoints that the authors of STEGO and HP released, as parts of a Segmenter.

Both consist of STEGO's network (STEGO, section 4; HP, section 3.1): a frozen DINO, a
head of 1x1 convolutions, a cluster probe and a linear probe. Where they keep the
tensors, read off the classes and calls that write the files:

- STEGO (repository mhamilton723/STEGO, ``src/modules.py``,
  ``src/train_segmentation.py``): a Lightning checkpoint. Under ``state_dict``:
  ``net.cluster1.0``, ``net.cluster2.0``, ``net.cluster2.2`` (the head),
  ``net.model`` (the DINO), ``cluster_probe.clusters``, ``linear_probe``;
  ``train_cluster_probe`` and ``decoder`` play no part in the evaluation.
- HP (repository hynnsk/HP, ``utils/common_utils.py``, ``utils/layer_utils.py``,
  ``model/dino/DinoFeaturizer.py``): three state dicts. ``net_model_state_dict`` has
  ``cluster1``, ``cluster2`` and ``model`` as above, and the teacher ``ema_model1``,
  ``ema_model2``, which plays no part in the evaluation; ``cluster_model_state_dict``
  has ``clusters``, ``linear_model_state_dict`` has ``weight`` and ``bias``.

No code of a file is run. STEGO's files also hold their settings as objects of OmegaConf
and Lightning; an empty stand-in takes their place, so the settings stay unread.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from uss_utils import backbones
from uss_utils.datasets.labels import CLASS_NAMES, palette, voc_palette
from uss_utils.datasets.transforms import Transform
from uss_utils.frozen import Frozen
from uss_utils.heads import SegmentationHead
from uss_utils.presets import unknown
from uss_utils.probes import ClusterProbe, LinearProbe
from uss_utils.protocol import EvalProtocol

METHODS = ("stego", "hp")
_HP = tuple(f"{part}_model_state_dict" for part in ("net", "linear", "cluster"))
# Objects found in released files for which an empty stand-in will do.
_SETTINGS = ("omegaconf.", "pytorch_lightning.", "lightning.", "lightning_fabric.")
_PLAIN = ("typing.Any", "collections.defaultdict") + tuple(
    f"builtins.{name}" for name in ("bool", "int", "float", "str", "list", "dict")
)
# Width and patch of a DINO -> the name of the network that was released with them.
_DINO = {
    (384, 8): "dino_vits8",
    (384, 16): "dino_vits16",
    (768, 8): "dino_vitb8",
    (768, 16): "dino_vitb16",
}
_OURS = {
    "linear.weight": "cluster1.0.weight",
    "linear.bias": "cluster1.0.bias",
    "nonlinear.0.weight": "cluster2.0.weight",
    "nonlinear.0.bias": "cluster2.0.bias",
    "nonlinear.2.weight": "cluster2.2.weight",
    "nonlinear.2.bias": "cluster2.2.bias",
}


class _StandIn:
    """Takes whatever a pickled object was made from, and keeps none of it."""

    def __new__(cls, *_args: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *_args: Any):
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


@dataclass(frozen=True)
class Released:
    """What a released file holds, sorted by part; names without their prefix.

    Attributes:
        net: "cluster1.0.weight", ..., and "model.*" where the DINO is in the file.
        linear: "weight" (K, D, 1, 1) and "bias" (K,) of the linear probe.
        cluster: "clusters" (K + E, D) of the cluster probe.
        steps: optimiser steps, where the file tells.
    """

    net: dict[str, Tensor]
    linear: dict[str, Tensor]
    cluster: dict[str, Tensor]
    steps: int | None = None

    @property
    def dino(self) -> dict[str, Tensor]:
        """Weights of the DINO, by timm's names; empty if they are not in the file."""
        return _under(self.net, "model.")


def fields(
    path: str | Path,
    method: str,
    backbone: str | Frozen | None,
    dataset: str | None,
) -> dict[str, Any]:
    """Arguments of a Segmenter; see :func:`uss_utils.segmenter.import_checkpoint`."""
    if method not in METHODS:
        raise ValueError(unknown("method of a released checkpoint", method, METHODS))
    if dataset is not None and dataset not in CLASS_NAMES:
        raise ValueError(unknown("class list", dataset, CLASS_NAMES))
    path = Path(path).expanduser()
    released = read(path, method)
    try:
        head, cluster_probe, linear_probe = _parts(released)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no released {method} checkpoint of the DINO architecture: "
            f"{error.args[0]}"
        ) from error
    classes, colours = _classes(path, dataset, len(linear_probe.weight))
    return {
        "backbone": _backbone(path, backbone, released, head.in_dim),
        "head": head,
        "cluster_probe": cluster_probe,
        "linear_probe": linear_probe,
        "classes": classes,
        "palette": colours,
        "transform": Transform("center", 224, "nearest"),
        # STEGO averages with the mirror image when it evaluates, HP does not.
        "protocol": EvalProtocol(flip=method == "stego"),
        "method": method,
        "preset": "released",
        "meta": {"name": f"{method} (released)", "steps": released.steps},
    }


def read(path: Path, method: str) -> Released:
    """Open a released file and sort its tensors.

    Args:
        path: the file.
        method: "stego" or "hp".

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, one that holds other objects than tensors and
            settings, or one of another method.
    """
    content = _open(path)
    has_all = all(isinstance(content.get(key), dict) for key in _HP)
    state = content.get("state_dict", content)
    lightning = isinstance(state, dict) and "net.cluster1.0.weight" in state
    found = "hp" if has_all else "stego" if lightning else None
    if found is None:
        raise ValueError(
            f"{path} is no released {method} checkpoint; it should hold "
            + (
                "a state_dict with net.cluster1.0.weight"
                if method == "stego"
                else ", ".join(_HP)
            )
            + f", but it has: {_shortened(content)}"
        )
    if found != method:
        raise ValueError(
            f"{path} is laid out as a checkpoint of {found!r}, not of {method!r}; "
            f'import it with method="{found}"'
        )
    if found == "hp":
        return Released(*(_tensors(content[key]) for key in _HP))
    steps = content.get("global_step")
    return Released(
        *(_under(state, p) for p in ("net.", "linear_probe.", "cluster_probe.")),
        steps=steps if isinstance(steps, int) else None,
    )


def _open(path: Path) -> dict:
    """The dict in a file; settings become stand-ins, other objects are refused."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_globals([(_StandIn, name) for name in _settings_in(path)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - damaged pickles fail in every way
        # The system's errors name the file; others come of a place it does not have.
        if isinstance(error, OSError) and error.filename:
            raise
        reason = str(error).partition("Unsupported global: GLOBAL ")[2].split(" ")[0]
        raise ValueError(
            f"{path} is no torch checkpoint, is damaged, or holds more than tensors "
            "and settings" + (f" ({reason})" if reason else "") + " and was refused, "
            "because reading it could run code from the file. If you trust it, save "
            "its state dicts alone with torch.save and import that file"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not a checkpoint's dict"
        )
    return content


def _settings_in(path: Path) -> list[str]:
    """Full names of the harmless classes that a file mentions."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - older formats; torch.load has the last word
        return []
    return [name for name in names if name.startswith(_SETTINGS) or name in _PLAIN]


def _tensors(state: dict) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _under(state: dict, prefix: str) -> dict[str, Tensor]:
    """Tensors whose name starts with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in _tensors(state).items()
        if name.startswith(prefix)
    }


def _shortened(content: dict, most: int = 6) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


# ------------------------------------------------------------------------- the parts


def _parts(released: Released) -> tuple[SegmentationHead, ClusterProbe, LinearProbe]:
    """Head and probes with the file's values.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has another shape, or values that are not finite.
    """
    dim, width = _shape(released.net, "cluster1.0.weight", 4)[:2]
    n_clusters = _shape(released.cluster, "clusters", 2)[0]
    n_classes = _shape(released.linear, "weight", 4)[0]
    nonlinear = any(name.startswith("cluster2.") for name in released.net)
    with torch.random.fork_rng(devices=[]):  # their initial values are overwritten
        head = SegmentationHead(width, dim, nonlinear)
        probes = ClusterProbe(dim, n_clusters), LinearProbe(dim, n_classes)
    return (
        _filled(head, released.net),
        _filled(probes[0], released.cluster),
        _filled(probes[1], released.linear),
    )


def _shape(state: dict[str, Tensor], name: str, axes: int) -> torch.Size:
    shape = _get(state, name).shape
    if len(shape) != axes:
        raise ValueError(f"{name} has shape {tuple(shape)}, but needs {axes} axes")
    return shape


def _get(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise KeyError(f"{name} is missing")
    return state[name]


def _filled(part: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    own = part.state_dict()
    for ours in own:
        theirs = _OURS.get(ours, ours)
        value = _get(state, theirs).float()
        if value.shape != own[ours].shape:
            raise ValueError(
                f"{theirs} has shape {tuple(value.shape)} instead of "
                f"{tuple(own[ours].shape)}"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"{theirs} contains NaN or infinite values")
        own[ours] = value
    part.load_state_dict(own)
    return part


def _classes(
    path: Path, dataset: str | None, n: int
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and colours of the n classes of the linear probe."""
    if dataset is None:
        return tuple(f"class {k}" for k in range(n)), voc_palette(n + 1)[1:]
    names = CLASS_NAMES[dataset]
    if len(names) != n:
        fitting = [name for name, known in CLASS_NAMES.items() if len(known) == n]
        raise ValueError(
            f"{path} was trained on {n} classes, but {dataset!r} has {len(names)}; "
            f"class lists of that length: {', '.join(fitting) or 'none'}"
        )
    return names, palette(dataset)


# ---------------------------------------------------------------------- the backbone


def _backbone(
    path: Path, backbone: str | Frozen | None, released: Released, width: int
) -> Frozen:
    """The backbone asked for, or the DINO that the file's own weights belong to."""
    dino = released.dino
    kernel = dino.get("patch_embed.proj.weight")
    if backbone is None:
        key = None if kernel is None else (kernel.shape[0], kernel.shape[-1])
        if key not in _DINO:
            raise ValueError(
                f"{path} does not tell which DINO it belongs to; give backbone=..., "
                f"one of {width} channels (of {', '.join(_DINO.values())})"
            )
        backbone = _DINO[key]
    named = isinstance(backbone, str)
    frozen = backbones.load(backbone) if named else backbone
    if frozen.dim != width:
        raise ValueError(
            f"{path} needs a backbone of {width} channels, {frozen.name!r} has "
            f"{frozen.dim}"
        )
    if kernel is not None and kernel.shape[-1] != frozen.patch:
        raise ValueError(
            f"{path} was trained with patches of {kernel.shape[-1]} pixels, "
            f"{frozen.name!r} has {frozen.patch}"
        )
    if named:
        _compare(path, frozen, dino)
    return frozen


def _compare(path: Path, frozen: Frozen, dino: dict[str, Tensor]) -> None:
    """Refuse a backbone with other weights than those the head was trained on."""
    own = {k.removeprefix("vit."): v for k, v in frozen.state_dict().items()}
    for name in own.keys() & dino.keys():
        theirs = dino[name].float()
        if theirs.shape != own[name].shape or not torch.allclose(
            theirs, own[name].cpu(), rtol=1e-3, atol=1e-4
        ):
            raise ValueError(
                f"{path} was trained on another network than {frozen.name!r} ({name} "
                'differs); give its own: backbone=backbones.load("'
                f'{frozen.name}", weights=<file>)'
            )
