"""A :class:`~uss_utils.segmenter.Segmenter` on disk: one file, and a readable twin.

The safetensors file holds head and probes, and in its metadata everything else as JSON;
the ``.json`` beside it is a copy for human eyes and is never read. The backbone's
weights are not in there: their name and fingerprint are.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from uss_utils import backbones, heads
from uss_utils.checkpoints import load_tensors, save_tensors
from uss_utils.datasets.transforms import Transform
from uss_utils.environment import pick_device
from uss_utils.frozen import Frozen
from uss_utils.last_block import LastBlockTokens
from uss_utils.paths import atomic_file
from uss_utils.probes import ClusterProbe, LinearProbe
from uss_utils.protocol import EvalProtocol

if TYPE_CHECKING:
    from uss_utils.segmenter import Segmenter

KIND = "segmenter"


def write(segmenter: "Segmenter", path: str | Path) -> Path:
    """Write a model; see :meth:`uss_utils.segmenter.Segmenter.save`."""
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    tensors = {
        f"{name}.{key}": value
        for name, part in segmenter.parts().items()
        for key, value in part.state_dict().items()
    }
    described = _describe(segmenter)
    save_tensors(path, tensors, described)
    with atomic_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return path


def read(
    make: type["Segmenter"],
    path: str | Path,
    device: str | torch.device,
    weights: str | Path | None,
) -> "Segmenter":
    """Read a model; see :meth:`uss_utils.segmenter.Segmenter.load`."""
    place = pick_device(str(device))
    tensors, described = load_tensors(path, KIND)
    try:
        fields = _fields(described, weights)
        segmenter = make(**fields)
        for name, part in segmenter.parts().items():
            part.load_state_dict(_under(tensors, f"{name}."))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{path} is an incomplete or outdated model file ({error}); "
            "train and save the model again"
        ) from error
    _check_backbone(path, described["backbone"], segmenter.backbone)
    return segmenter.to(place)


def _describe(segmenter: "Segmenter") -> dict[str, Any]:
    backbone, clusters = segmenter.backbone, segmenter.cluster_probe.clusters
    table = segmenter.cluster_to_class
    return {
        "kind": KIND,
        "method": segmenter.method,
        "preset": segmenter.preset,
        "backbone": {
            "name": backbone.name,
            "position": backbone.position,
            "view": backbone.view,
            "fingerprint": backbone.fingerprint,
        },
        "head": segmenter.head.config(),
        "clusters": {
            "dim": clusters.shape[1],
            "n_clusters": clusters.shape[0],
            "metric": segmenter.cluster_probe.metric,
        },
        "linear_probe": segmenter.linear_probe is not None,
        "classes": list(segmenter.classes),
        "palette": segmenter.palette.tolist(),
        "cluster_to_class": None if table is None else table.tolist(),
        "transform": asdict(segmenter.transform),
        "protocol": asdict(segmenter.protocol),
        "meta": segmenter.meta,
    }


def _fields(described: dict[str, Any], weights: str | Path | None) -> dict[str, Any]:
    """Arguments of the Segmenter, its parts not yet filled with their tensors."""
    dim, n_classes = described["clusters"]["dim"], len(described["classes"])
    probed = described["linear_probe"]
    plain = ("classes", "palette", "cluster_to_class", "method", "preset", "meta")
    return {
        "backbone": _backbone(described, weights),
        "head": heads.from_config(described["head"]),
        "cluster_probe": ClusterProbe(**described["clusters"]),
        "linear_probe": LinearProbe(dim, n_classes) if probed else None,
        "transform": Transform(**described["transform"]),
        "protocol": EvalProtocol.from_dict(described["protocol"]),
        **{name: described[name] for name in plain},
    }


def _backbone(described: dict[str, Any], weights: str | Path | None) -> Frozen:
    stored = described["backbone"]
    position = stored["position"]
    backbone = backbones.load(
        stored["name"],
        weights,
        # "rotary" and "none" are facts about a model, not choices.
        position=position if position in ("released", "timm") else "released",
        seed=described["meta"].get("backbone_seed", 0),
    )
    view = stored.get("view", "features")  # absent in older files
    return LastBlockTokens(backbone) if view == "tokens" else backbone


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose name starts with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _check_backbone(path: str | Path, stored: dict[str, Any], backbone: Frozen) -> None:
    if stored["fingerprint"] != backbone.fingerprint:
        raise ValueError(
            f"{path} was trained on {stored['name']!r} with other weights (fingerprint "
            f"{stored['fingerprint'][:12]}, found {backbone.fingerprint[:12]}); give "
            "the right file with weights=..., or train again"
        )
