"""The tiny ViT's weights as a file that ships, and the card that tells their story."""

import hashlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from timm.models import VisionTransformer

from uss_utils.checkpoints import save_tensors
from uss_utils.environment import versions
from uss_utils.paths import atomic_file
from uss_utils.pretraining import Config
from uss_utils.training import History


def save_weights(
    path: str | Path,
    vit: VisionTransformer,
    cfg: Config,
    histories: dict[str, History],
    *,
    command: str,
    half: bool = True,
) -> Path:
    """Write the network as safetensors and its card as JSON beside it.

    Args:
        path: ``.safetensors`` file; the card gets the same name ending in ``.json``.
        vit: trained network.
        cfg: settings of the run.
        histories: loss curves by stage.
        command: command line that repeats the run.
        half: store as float16 (half the size) or float32.

    Returns:
        Path of the card.
    """
    path = Path(path)
    dtype = torch.float16 if half else torch.float32
    tensors = {name: t.detach().to(dtype) for name, t in vit.state_dict().items()}
    save_tensors(path, tensors, {"kind": "vit_tiny", "trained_on": cfg.datasets})
    card = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "dtype": str(dtype).removeprefix("torch."),
        "labels_used": False,
        "command": command,
        "config": asdict(cfg),
        "seconds": round(sum(history.seconds for history in histories.values())),
        "machine": machine(),
        "versions": versions(),
        "history": {name: history.rows for name, history in histories.items()},
    }
    card_path = path.with_suffix(".json")
    with atomic_file(card_path) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n")
    return card_path


def machine() -> str:
    """Processor or GPU, in words; no host name."""
    threads = f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores"
    cpuinfo = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        names = [
            line.split(":", 1)[1].strip() for line in lines if "model name" in line
        ]
        model = names[0] if names else model
    return f"{model}, {threads}"
