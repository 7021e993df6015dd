"""A :class:`~uss_utils.segmenter.Segmenter` on disk: one file, and a readable twin.

The safetensors file holds head and probes, and in its metadata everything else as JSON;
the ``.json`` beside it is a copy for human eyes and is never read. The backbone's
weights are not in there: their name and fingerprint are.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
# What the JSON of a model holds, and of which type.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("method", "preset"), str),
    **dict.fromkeys(("backbone", "head", "clusters"), dict),
    **dict.fromkeys(("transform", "protocol", "meta"), dict),
    **dict.fromkeys(("classes", "palette"), list),
    "linear_probe": bool,
    "cluster_to_class": list | None,
}


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
    with _explained(path):
        _check_types(described)
        _check_sizes(described, tensors)
        options = _backbone_options(described)
    # Its errors name another file: the backbone's.
    backbone = backbones.load(weights=weights, **options)
    with _explained(path):
        if described["backbone"].get("view", "features") == "tokens":
            backbone = LastBlockTokens(backbone)  # absent in older files
        segmenter = make(backbone, **_fields(described))
        for name, part in segmenter.parts().items():
            _fill(part, _under(tensors, f"{name}."), name)
        fingerprint = str(described["backbone"]["fingerprint"])
    _check_backbone(path, fingerprint, segmenter.backbone)
    return segmenter.to(place)


@contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong while a model is put together is the file's fault."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - what does not fit fails in every way
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} is an incomplete or outdated model file ({reason}); "
            "train and save the model again"
        ) from error


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


def _check_types(described: dict[str, Any]) -> None:
    """Refuse what is no description of a model.

    Raises:
        ValueError: something is of another type.
        KeyError: something is missing.
    """
    for name, kind in _TYPES.items():
        if not isinstance(described[name], kind):
            raise ValueError(f"{name} is {str(described[name])[:50]!r}")
    if not all(isinstance(name, str) for name in described["classes"]):
        raise ValueError("the names of its classes are no text")


def _check_sizes(described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse sizes that no tensor in the file has, before memory is taken for them."""
    largest = max([64, *(n for tensor in tensors.values() for n in tensor.shape)])
    for number in _integers([described["head"], described["clusters"]]):
        if not 0 <= number <= largest:
            raise ValueError(f"no tensor in it has the size {number}")


def _integers(node: Any) -> Iterator[int]:
    """All integers in nested JSON."""
    if isinstance(node, int):
        yield node
    inner = node.values() if isinstance(node, dict) else node
    if isinstance(node, dict | list):
        for value in inner:
            yield from _integers(value)


def _fill(part: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load a part's tensors.

    Raises:
        ValueError: numbers of another kind, or not finite.
        RuntimeError: tensors are missing, left over, or of other shapes.
    """
    own = part.state_dict()
    for key, value in state.items():
        if key in own and value.is_floating_point() != own[key].is_floating_point():
            raise ValueError(f"{name}.{key} is of type {value.dtype}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}.{key} contains NaN or infinite values")
    part.load_state_dict(state)


def _fields(described: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the Segmenter, its parts not yet filled with their tensors."""
    dim, n_classes = described["clusters"]["dim"], len(described["classes"])
    probed = described["linear_probe"]
    plain = ("classes", "palette", "cluster_to_class", "method", "preset", "meta")
    return {
        "head": heads.from_config(described["head"]),
        "cluster_probe": ClusterProbe(**described["clusters"]),
        "linear_probe": LinearProbe(dim, n_classes) if probed else None,
        "transform": Transform(**described["transform"]),
        "protocol": EvalProtocol.from_dict(described["protocol"]),
        **{name: described[name] for name in plain},
    }


def _backbone_options(described: dict[str, Any]) -> dict[str, Any]:
    """Name, position and seed of the backbone."""
    stored = described["backbone"]
    name, position = stored["name"], stored["position"]
    seed = described["meta"].get("backbone_seed", 0)
    if not isinstance(name, str) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"its backbone is {str(name)[:50]!r} of seed {seed!r}")
    # "rotary" and "none" are facts about a model, not choices.
    known = position in ("released", "timm")
    return {"name": name, "position": position if known else "released", "seed": seed}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose name starts with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _check_backbone(path: str | Path, fingerprint: str, backbone: Frozen) -> None:
    if fingerprint != backbone.fingerprint:
        raise ValueError(
            f"{path} was trained on {backbone.name!r} with other weights (fingerprint "
            f"{fingerprint[:12]}, found {backbone.fingerprint[:12]}); give "
            "the right file with weights=..., or train again"
        )
