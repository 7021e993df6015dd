"""What a folder holds, so that two can be compared to the bit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from uss_utils.checkpoints import load_tensors

TIMED = ("seconds", "training_seconds", "when", "peak_mb")  # differ between equal runs


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with a digest of what it says, times left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = digest(path)
    return found


def digest(path: Path) -> str:
    """Digest of a file's content; of tensors, their bits."""
    if path.suffix == ".safetensors":
        tensors, meta = load_tensors(path)
        text = json.dumps(untimed(meta), sort_keys=True)
        for name in sorted(tensors):
            value = tensors[name].contiguous()
            bits = hashlib.sha256(
                value.reshape(-1).view(torch.uint8).numpy()
            ).hexdigest()
            text += f"{name} {value.dtype} {tuple(value.shape)} {bits}\n"
        return hashlib.sha256(text.encode()).hexdigest()
    content = path.read_bytes()
    if path.suffix == ".mat":
        content = content[128:]  # behind the date
    if path.suffix == ".json":
        content = json.dumps(untimed(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def untimed(node: Any) -> Any:
    """JSON without what only tells how long something took."""
    if isinstance(node, dict):
        return {k: untimed(v) for k, v in node.items() if k not in TIMED}
    return [untimed(v) for v in node] if isinstance(node, list) else node


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of the files that are not in both, or differ."""
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
