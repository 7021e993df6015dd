"""Tensors and a little structure in one file, without pickle.

A file is an ordinary safetensors file whose metadata carries one JSON object and a
checksum: :func:`save_tensors` and :func:`load_tensors`. Nested state, such as an
optimiser's ``state_dict()``, goes through :func:`flatten` and :func:`unflatten`.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from uss_utils.json_files import parse_object
from uss_utils.paths import atomic_file

_KEY, _FORMAT = "uss_utils", 1


def save_tensors(
    path: str | Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]
) -> None:
    """Write tensors and a JSON object to one file, completely or not at all.

    Args:
        path: file to create or replace; missing folders are made.
        tensors: name to tensor, any shape, dtype and device. Tensors that share
            memory are stored apart.
        meta: JSON-able object (NaN and infinity are not JSON; tuples come back as
            lists). By convention ``meta["kind"]`` says what the file is.

    Raises:
        ValueError: ``meta`` is not JSON-able.
        OSError: the folder is read-only or the disk is full; a previous file at
            ``path`` is untouched.
    """
    try:
        text = json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the meta data of {path} is not JSON: {error}") from error
    ready = _dense(tensors)
    envelope = {"format": _FORMAT, "crc32": _checksum(ready, text), "meta": meta}
    # One entry only: safetensors writes several in an order that varies, and equal
    # content should make equal files.
    header = {_KEY: json.dumps(envelope)}
    content = safetensors.torch.save(ready, metadata=header)
    with atomic_file(path) as temporary:
        # Our own write: safetensors' save_file renames a temporary file of its own over
        # the target, and reports a full disk as no OSError.
        temporary.write_bytes(content)


def load_tensors(
    path: str | Path, kind: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Args:
        path: the file.
        kind: where given, ``meta["kind"]`` has to be this.

    Returns:
        The tensors, on the CPU, and the JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, damaged, or something else altogether.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file: it is cut off, damaged or of "
            f"another kind ({error}). Delete it and make it anew"
        ) from error
    meta, checksum = _envelope(path, content)
    if checksum != _checksum(tensors, json.dumps(meta)):
        raise ValueError(
            f"the content of {path} does not agree with its checksum: the file is "
            "damaged. Delete it and make it anew"
        )
    if kind is not None and meta.get("kind") != kind:
        raise ValueError(
            f"{path} holds a {meta.get('kind')!r}, but a {kind!r} was expected"
        )
    return tensors, meta


def flatten(state: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Take the tensors out of a nested state.

    Args:
        state: any nesting of dict (keys str or int), list and tuple around tensors
            and None, bool, int, float, str.

    Returns:
        The tensors under their paths ("state/0/exp_avg"), and a JSON-able tree that
        :func:`unflatten` turns back into the same nesting, key types and NaN included.

    Raises:
        ValueError: something else is in there, or two paths coincide.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, torch.Tensor):
            if path in tensors:
                raise ValueError(f"two tensors would be stored as {path!r}")
            tensors[path] = node
            return {"tensor": path}
        if isinstance(node, dict):
            if not all(isinstance(key, str | int) for key in node):
                raise ValueError(f"a key at {path!r} is neither text nor an integer")
            return {"dict": [[k, walk(v, _join(path, k))] for k, v in node.items()]}
        if isinstance(node, list | tuple):
            name = "list" if isinstance(node, list) else "tuple"
            return {name: [walk(v, _join(path, i)) for i, v in enumerate(node)]}
        if isinstance(node, float) and not math.isfinite(node):
            return {"float": repr(float(node))}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise ValueError(f"cannot store a {type(node).__name__} (at {path!r})")

    return tensors, walk(state, "")


def unflatten(tensors: dict[str, torch.Tensor], tree: Any) -> Any:
    """Inverse of :func:`flatten`.

    Raises:
        ValueError: the tree names a tensor that is not there.
    """
    if not isinstance(tree, dict):
        return tree
    (name, value), *_ = tree.items()
    if name == "tensor":
        if value not in tensors:
            raise ValueError(f"the tensor {value!r} is missing")
        return tensors[value]
    if name == "dict":
        return {key: unflatten(tensors, node) for key, node in value}
    if name == "float":
        return float(value)
    nodes = [unflatten(tensors, node) for node in value]
    return nodes if name == "list" else tuple(nodes)


def _envelope(path: Path, content: bytes) -> tuple[dict[str, Any], str | None]:
    """The JSON object and the checksum that a file's header carries."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = parse_object(content[8 : 8 + length]).get("__metadata__")
        envelope = parse_object(header[_KEY])
        if envelope["format"] != _FORMAT:
            raise ValueError(f"its format is {envelope['format']!r}, not {_FORMAT}")
        if not isinstance(envelope["meta"], dict):
            raise ValueError("its meta data are no JSON object")
        return envelope["meta"], envelope["crc32"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is a safetensors file, but none that this package wrote, or it is "
            f"damaged ({type(error).__name__}: {error})"
        ) from error


def _join(path: str, key: str | int) -> str:
    return f"{path}/{key}" if path else str(key)


def _dense(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, contiguous, none sharing memory with another."""
    ready: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        ready[name] = tensor
    return ready


def _checksum(tensors: dict[str, torch.Tensor], text: str) -> str:
    """CRC-32 over the JSON, and names and bytes in the order of the names."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        content = tensors[name].reshape(-1).view(torch.uint8)
        crc = zlib.crc32(content.numpy(), crc)
    return f"{crc:08x}"
