"""Weights of vision transformers: where they come from and whether they fit."""

import argparse
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

import safetensors
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from timm.models import eva, vision_transformer
from torch import Tensor, nn

# Entries that a backbone without classifier does not need: classifier, projection head
# of the self-supervised loss, mask token.
SPARE = ("head.", "head_dist.", "mask_token")
HUB_FILE = "model.safetensors"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a weight file, by name.

    Args:
        path: a ``.safetensors`` file, or an official ``.pth``/``.pt`` checkpoint, which
            is opened without unpickling any code.

    Returns:
        Name -> tensor; for a checkpoint of a whole training, its "teacher", without the
        prefixes ``module.`` and ``backbone.``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a damaged one, or one that holds more than
            tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is not a readable safetensors file ({error}); it may be cut "
                "short: fetch it again"
            ) from error
    if not path.name.endswith((".pth", ".pt", ".pth.tar")):
        raise ValueError(
            f"{path}: weights are read from .safetensors, .pth or .pt files"
        )
    return _unwrap(_read_pth(path), path)


def _read_pth(path: Path) -> dict:
    """Open a torch checkpoint; only tensors and plain containers are accepted."""
    try:
        # DINO's full checkpoints carry their command line, a harmless namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - damaged pickles fail in every way
        # The system's errors name the file; others come of a place it does not have.
        if isinstance(error, OSError) and error.filename:
            raise
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and was refused, because "
            "reading it would run code from the file. If you trust it, save its state "
            "dict as .safetensors (safetensors.torch.save_file) and give that file"
        ) from error


def _unwrap(content: dict, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without wrappers' prefixes."""
    for key in ("teacher", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, Tensor) and isinstance(name, str):
            for prefix in ("module.", "backbone."):
                name = name.removeprefix(prefix)
            tensors[name] = value
    if not tensors:
        raise ValueError(f"{path} holds no state dict of a model")
    return tensors


def fit(vit: nn.Module, state: dict[str, Tensor], source: str, name: str) -> None:
    """Put weights into a model, as float32; nothing may be missing or left over.

    Args:
        vit: the model to fill.
        state: timm's parameter names, or the official ones of DINO, DINOv2, DINOv3.
        source: where they came from, for messages.
        name: name of the backbone, for messages.

    Raises:
        ValueError: weights of another model, or weights with NaN.
    """
    _check_geometry(vit, state, source, name)
    module = eva if isinstance(vit, eva.Eva) else vision_transformer
    state = module.checkpoint_filter_fn(dict(state), vit)
    state = {k: v.float() for k, v in state.items() if not k.startswith(SPARE)}
    fill(vit, state, source, name)


def fill(model: nn.Module, state: dict[str, Tensor], source: str, name: str) -> None:
    """Put weights into any model; nothing may be missing or left over.

    Args:
        model: the model to fill.
        state: the model's own parameter names.
        source: where they came from, for messages.
        name: of the model, for messages.

    Raises:
        ValueError: weights of another model, or weights with NaN.
    """
    own = model.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in state]
    wrong += [f"{k} is unknown" for k in state if k not in own]
    wrong += [
        f"{k} has shape {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]
    if wrong:
        raise ValueError(
            f"{source} does not hold the weights of {name}: {'; '.join(wrong[:3])}"
            + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        )
    bad = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise ValueError(f"{source}: {bad[0]} contains NaN or infinite values")
    model.load_state_dict(state)


def _check_geometry(vit: nn.Module, state: dict, source: str, name: str) -> None:
    """Refuse another patch size or table size, which timm would silently resample."""
    kernel = state.get("patch_embed.proj.weight")
    own = vit.patch_embed.proj.weight
    if kernel is not None and kernel.shape != own.shape:
        raise ValueError(
            f"{source} does not hold the weights of {name}: its patch embedding has "
            f"shape {tuple(kernel.shape)} instead of {tuple(own.shape)}"
        )
    table = state.get("pos_embed")
    if table is None or vit.pos_embed is None:
        return
    rows, columns = vit.patch_embed.grid_size
    if table.shape[1] - rows * columns not in (0, 1, vit.num_prefix_tokens):
        raise ValueError(
            f"{source} does not hold the weights of {name}: its position table has "
            f"{table.shape[1]} entries, expected {rows} x {columns} and class token"
        )


def hub_file(repo: str, name: str, advice: str | None = None) -> Path:
    """Weight file of a timm model: from the local cache, else from the hub.

    Args:
        repo: repository on the hub, such as ``timm/vit_small_patch8_224.dino``.
        name: name of the backbone, for messages.
        advice: end of the message: how a downloaded file is given, and what works
            without; None: that of :func:`uss_utils.backbones.load`.

    Raises:
        ConnectionError: not in the cache, and the hub cannot be reached or refuses.
    """
    try:
        return Path(hf_hub_download(repo, HUB_FILE, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    # The hub's client retries for most of a minute; ask once whether anyone is there.
    reason = _unreachable(f"{constants.ENDPOINT}/{repo}/resolve/main/{HUB_FILE}")
    if reason is None:
        try:
            return Path(hf_hub_download(repo, HUB_FILE))
        except Exception as error:  # noqa: BLE001 - the client raises many kinds
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
    advice = advice or (
        f'load("{name}", weights="{HUB_FILE}"). Without network, "vit_tiny_scenes" '
        "works"
    )
    raise ConnectionError(
        f"the weights of {name} are not on this machine and could not be fetched "
        f"({reason}). Download {HUB_FILE} from {constants.ENDPOINT}/{repo} where there "
        f"is a network, and give its place: {advice}"
    )


def _unreachable(url: str, seconds: float = 6.0) -> str | None:
    """Why a web address does not answer within some seconds; None if it does.

    Looked up in a thread, as resolving a host name obeys no time-out.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    outcome = [f"no answer within {seconds:g} s"]

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
            outcome[0] = None
        except urllib.error.HTTPError as error:
            # Some answer came: let the client deal with redirects and refusals.
            error.close()
            outcome[0] = None
        except (OSError, ValueError, HTTPException) as error:
            outcome[0] = str(error) or type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0]
