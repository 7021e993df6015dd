"""Damaged, foreign and hostile weight files: the same content, or one clear error.

No file is ever altered by reading it, and nothing in one is ever executed.
"""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.folders import read_only_folder
from tests.fuzz.cases import documented, fewer
from tests.fuzz.nested_json import JUNK, changed_json
from tests.models import grey_model
from tests.test_checkpoint_import import hp_file, stego_file, stego_state
from tests.training_run import linear_run
from uss_utils import backbones
from uss_utils.checkpoints import load_tensors, save_tensors
from uss_utils.datasets import mat_files
from uss_utils.resnets import DilatedResNet, dilated_resnet
from uss_utils.segmenter import Segmenter, import_checkpoint
from uss_utils.vit_weights import read_weights

pytestmark = pytest.mark.fuzz

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)


class Format(NamedTuple):
    """One kind of file.

    Attributes:
        name: of the file.
        make: writes a good one.
        load: reads it, and gives something that tells its content.
        checked: the file carries a checksum: whatever loads is what was written.
    """

    name: str
    make: Callable[[Path], Any]
    load: Callable[[Path], Any]
    checked: bool


def make_tensors(path: Path) -> None:
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([True, False])}
    save_tensors(path, tensors, {"kind": "probe", "note": ["ä", None, 0.5]})


def listed(path: Path) -> str:
    tensors, meta = load_tensors(path)
    return (
        f"{sorted((k, v.tolist(), str(v.dtype)) for k, v in tensors.items())}, {meta}"
    )


def make_resnet(path: Path) -> None:
    state = DilatedResNet("resnet18", 1).state_dict()
    torch.save({"state_dict": {f"module.encoder_q.{k}": state[k] for k in state}}, path)


def make_vit(path: Path) -> None:
    safetensors.torch.save_file(backbones.tiny_vit().state_dict(), path)


def segmented(path: Path, load: Callable[[Path], Segmenter]) -> str:
    model = load(path)
    return f"{model.classes}, {model.cluster_to_class}, {model.segment(PICTURE)}"


def released(path: Path, method: str) -> str:
    model = import_checkpoint(path, method, backbone="colour")
    return str(model.segment(PICTURE).shape)


def resumed(path: Path) -> str:
    model, history = linear_run(checkpoint=path)
    return f"{model.weight.tolist()}, {history.rows}"


FORMATS = {
    "tensors": Format("a.safetensors", make_tensors, listed, True),
    "training": Format(
        "run.safetensors", lambda p: linear_run(checkpoint=p), resumed, True
    ),
    "segmenter": Format(
        "model.safetensors",
        lambda p: grey_model([2, 0, 1]).save(p),
        lambda p: segmented(p, Segmenter.load),
        True,
    ),
    "stego": Format(
        "released.ckpt",
        lambda p: stego_file(p, stego_state(width=3, dim=4, k=5)),
        lambda p: released(p, "stego"),
        False,
    ),
    "hp": Format(
        "released.pth",
        lambda p: hp_file(p, width=3, dim=4, k=5),
        lambda p: released(p, "hp"),
        False,
    ),
    "weights": Format(
        "dino.pth",
        lambda p: torch.save({"teacher": {"w": torch.ones(3), "b": torch.ones(2)}}, p),
        lambda p: sorted(read_weights(p)),
        False,
    ),
    "resnet": Format(
        "moco.pth.tar",
        make_resnet,
        lambda p: str(dilated_resnet("resnet18", p, 1).dim),
        False,
    ),
    "vit": Format(
        "vit.safetensors",
        make_vit,
        lambda p: str(backbones.load("vit_tiny", p).dim),
        False,
    ),
}
SLOW = ("vit", "resnet")  # megabytes, and a network to build
QUICK = [name for name in FORMATS if name not in SLOW]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, tuple[bytes, Any]]:
    """Of every format the bytes of a good file, and what is loaded from it."""
    found = {}
    for name, kind in FORMATS.items():
        path = tmp_path_factory.mktemp(name) / kind.name
        kind.make(path)
        found[name] = path.read_bytes(), kind.load(path)
    return found


def check(name: str, content: bytes, folder: Path, expected: Any = None) -> None:
    """Read a file of this content: what is expected, or one documented error."""
    kind = FORMATS[name]
    path = folder / kind.name
    path.write_bytes(content)
    with documented(ValueError, OSError, path=path):
        loaded = kind.load(path)
        if kind.checked or expected is not None:
            assert loaded == expected
    assert path.read_bytes() == content
    assert [place.name for place in folder.iterdir()] == [kind.name]


# -------------------------------------------------------------------- damaged at random


@st.composite
def damage(draw, content: bytes) -> bytes:
    """A file that was cut off, or some bytes of which were changed, lost or added."""
    size = len(content)
    # Headers are short and matter most.
    place = st.one_of(st.integers(0, min(size, 600)), st.integers(0, size))
    kind = draw(st.sampled_from(["cut", "flip", "flip", "write", "lose", "add"]))
    at = draw(place)
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        changed = bytearray(content)
        for position in [at, *draw(st.lists(place, max_size=2))]:
            changed[min(position, size - 1)] ^= draw(st.integers(1, 255))
        return bytes(changed)
    piece = draw(st.binary(min_size=1, max_size=16))
    if kind == "write":
        return content[:at] + piece + content[at + len(piece) :]
    if kind == "lose":
        return content[:at] + content[at + len(piece) :]
    return content[:at] + piece + content[at:]


@pytest.mark.parametrize("name", QUICK)
@given(data=st.data())
def test_damaged_files(name, data, good, tmp_path):
    content, expected = good[name]
    check(name, data.draw(damage(content)), tmp_path, expected_of(name, expected))


@pytest.mark.parametrize("name", SLOW)
@fewer(5)
@given(data=st.data())
def test_damaged_files_of_networks(name, data, good, tmp_path):
    content, _ = good[name]
    check(name, data.draw(damage(content)), tmp_path)


@pytest.mark.parametrize("name", ["stego", "hp", "weights", "resnet"])
def test_archives_that_point_outside_themselves(name, good, tmp_path):
    """torch reports a place that is not in the file as an error of the system."""
    content, _ = good[name]
    at = content.rindex(b"PK\x06\x06") + 48  # where the archive's table of files is
    check(name, content[:at] + b"\xff" * 8 + content[at + 8 :], tmp_path, "refused")


def expected_of(name: str, expected: Any) -> Any:
    """What a damaged file may load as; without a checksum another value may come."""
    return expected if FORMATS[name].checked else None


@pytest.mark.parametrize("name", ["tensors", "segmenter"])
def test_every_cut_and_every_flipped_bit_is_noticed(
    name, good, tmp_path, record_property
):
    """Of files with a checksum, byte by byte; no bit goes unnoticed."""
    content, _ = good[name]
    path = tmp_path / FORMATS[name].name
    step = 1 if os.environ.get("USS_FUZZ", "quick") != "quick" else 37
    positions = range(0, len(content), step)
    for at in positions:
        for changed in (content[:at], flipped(content, at)):
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=path.name):
                load_tensors(path)
    record_property("cases", 2 * len(positions))


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1 << at % 8
    return bytes(changed)


# ------------------------------------------------------------------------ lying headers


def with_header(content: bytes, header: bytes, length: int | None = None) -> bytes:
    """A safetensors file with another header, whose length may be a lie."""
    old = int.from_bytes(content[:8], "little")
    length = len(header) if length is None else length
    return length.to_bytes(8, "little") + header + content[8 + old :]


def header_of(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


@pytest.mark.parametrize("name", ["tensors", "segmenter", "training"])
@given(data=st.data())
def test_headers_of_wrong_types(name, data, good, tmp_path):
    content, expected = good[name]
    header = data.draw(changed_json(header_of(content)))
    check(name, with_header(content, json.dumps(header).encode()), tmp_path, expected)


@pytest.mark.parametrize("name", ["tensors", "segmenter", "training"])
@given(length=st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 4000)))
@example(length=0)
@example(length=2**64 - 1)
def test_header_lengths_that_lie(name, length, good, tmp_path):
    content, expected = good[name]
    old = int.from_bytes(content[:8], "little")
    lying = with_header(content, content[8 : 8 + old], length)
    check(name, lying, tmp_path, expected)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000])
@pytest.mark.parametrize("name", ["tensors", "segmenter", "training"])
def test_metadata_that_is_nested_without_end(name, text, good, tmp_path):
    content, _ = good[name]
    header = header_of(content)
    header["__metadata__"]["uss_utils"] = text
    check(name, with_header(content, json.dumps(header).encode()), tmp_path, "refused")


# -------------------------------------- whole files with a right checksum, wrong inside


@pytest.mark.parametrize("name", ["segmenter", "training"])
@given(data=st.data())
def test_described_wrongly(name, data, good, tmp_path):
    """The JSON beside the tensors is of wrong types, incomplete or of huge numbers."""

    def change(tensors, meta):
        meta = data.draw(changed_json(meta))
        return tensors, meta if isinstance(meta, dict) else {"kind": meta}

    check_changed(name, good, tmp_path, change)


def check_changed(name, good, folder, change):
    """A file of other content is read, or refused as documented, and stays."""
    kind, path = FORMATS[name], folder / FORMATS[name].name
    path.write_bytes(good[name][0])
    save_tensors(path, *change(*load_tensors(path)))
    before = path.read_bytes()
    with documented(ValueError, OSError, path=path):
        kind.load(path)
    assert path.read_bytes() == before


@st.composite
def other_tensors(draw, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Some missing, added, or of another shape, dtype or value."""
    tensors = dict(tensors)
    names = st.sampled_from([*tensors])
    changes = {
        "missing": lambda t: None,
        "flat": lambda t: t.reshape(-1),
        "longer": lambda t: torch.cat([t.reshape(-1), t.reshape(-1)]),
        "empty": lambda t: t.reshape(-1)[:0],
        "scalar": lambda t: torch.tensor(1.0),
        "turned": lambda t: t.reshape(t.shape[::-1]),
        "half": lambda t: t.half(),
        "integers": lambda t: t.long(),
        "booleans": lambda t: t.bool(),
        "complex": lambda t: t.to(torch.complex64),
        "nan": lambda t: torch.full_like(t.double(), torch.nan).to(t.dtype),
        "infinite": lambda t: torch.full_like(t.double(), torch.inf),
    }
    for name in draw(st.lists(names, min_size=1, max_size=2, unique=True)):
        made = changes[draw(st.sampled_from([*changes]))](tensors.pop(name))
        if made is not None:
            tensors[draw(st.one_of(st.just(name), st.text(max_size=9)))] = made
    return tensors


@pytest.mark.parametrize("name", ["segmenter", "training"])
@given(data=st.data())
def test_other_tensors_than_described(name, data, good, tmp_path):
    def change(tensors, meta):
        return data.draw(other_tensors(tensors)), meta

    check_changed(name, good, tmp_path, change)


def test_weights_that_are_not_finite_are_no_model(good, tmp_path):
    path = tmp_path / FORMATS["segmenter"].name
    path.write_bytes(good["segmenter"][0])
    tensors, meta = load_tensors(path)
    for name, tensor in tensors.items():
        save_tensors(path, tensors | {name: torch.full_like(tensor, torch.nan)}, meta)
        with pytest.raises(ValueError, match=f"{path.name}.*NaN"):
            Segmenter.load(path)


@pytest.mark.parametrize("name", ["stego", "hp", "weights"])
@given(data=st.data())
def test_released_files_with_other_content(name, data, good, tmp_path):
    """Any nesting of tensors and plain values in a torch file."""
    path = tmp_path / FORMATS[name].name
    content = torch.load(io.BytesIO(good[name][0]), weights_only=True)
    parts = [key for key, value in content.items() if isinstance(value, dict)]
    part = data.draw(st.sampled_from(parts))
    if data.draw(st.booleans()) and content[part]:
        content[part] = data.draw(other_tensors(content[part]))
    else:
        content[data.draw(st.sampled_from([part, *content]))] = data.draw(JUNK)
    torch.save(content, path)
    with documented(ValueError, OSError, path=path):
        FORMATS[name].load(path)


# -------------------------------------------------------------------------- other files


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", "hello")
        archive.writestr("../outside.txt", "hello")
    return buffer.getvalue()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


OTHERS = {
    "empty": b"",
    "text": b"these are no weights\n",
    "html": b"<!DOCTYPE html><title>404 Not Found</title>",
    "zip": zipped(),
    "zeros": bytes(5000),
    "foreign safetensors": safetensors.torch.save({"w": torch.ones(2)}),
    "no tensors": safetensors.torch.save({}),
    "a list": saved([1, 2]),
    "a tensor": saved(torch.ones(2)),
    "an empty dict": saved({}),
    "numbers as names": saved({1: torch.ones(2), None: torch.ones(1)}),
    "an array": pickle.dumps(np.ones(3)),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", FORMATS)
def test_other_files(name, other, tmp_path):
    path = tmp_path / FORMATS[name].name
    path.write_bytes(OTHERS[other])
    with pytest.raises(ValueError) as error, documented(path=path):
        FORMATS[name].load(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    assert path.read_bytes() == OTHERS[other]


@pytest.mark.parametrize("taken", FORMATS)
@pytest.mark.parametrize("name", FORMATS)
def test_files_of_another_format_of_ours(name, taken, good, tmp_path):
    path = tmp_path / FORMATS[name].name
    path.write_bytes(good[taken][0])
    with documented(ValueError, path=path):
        FORMATS[name].load(path)
        # The plain readers take whatever holds named tensors.
        assert name in (taken, "tensors", "weights")


@pytest.mark.parametrize("name", FORMATS)
def test_places_that_are_no_files(name, tmp_path):
    path = tmp_path / FORMATS[name].name
    path.mkdir()
    with pytest.raises((ValueError, OSError), match=path.name):
        FORMATS[name].load(path)
    path.rmdir()
    path.symlink_to(path)  # to itself
    if name != "training":  # there is no checkpoint yet: a new one takes its place
        with pytest.raises((ValueError, OSError), match=path.name):
            FORMATS[name].load(path)


@pytest.mark.parametrize("name", FORMATS)
def test_files_that_may_not_be_read(name, good):
    with read_only_folder() as folder:
        path = folder / FORMATS[name].name
        if os.geteuid() != 0 and os.getuid() == 0:
            os.seteuid(0)
            path.write_bytes(good[name][0])
            path.chmod(0)
            os.seteuid(65534)
        else:
            folder.chmod(0o755)
            path.write_bytes(good[name][0])
            path.chmod(0)
        with pytest.raises(OSError, match=path.name):
            FORMATS[name].load(path)


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 4}, {"seed": 1}, {"steps": 12}, {"config": {"method": "hp"}}],
)
def test_checkpoints_of_other_settings(changes, good, tmp_path):
    path = tmp_path / FORMATS["training"].name
    path.write_bytes(good["training"][0])
    with pytest.raises(ValueError, match=f"{path.name} was made with other settings"):
        linear_run(checkpoint=path, **changes)
    assert path.read_bytes() == good["training"][0]


# ------------------------------------------------------------------ files that run code


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def array_with(trap: Trap) -> np.ndarray:
    array = np.empty(2, dtype=object)
    array[0] = trap
    return array


def npz(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=array_with(trap), allow_pickle=True)
    return buffer.getvalue()


def npy(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array_with(trap), allow_pickle=True)
    return buffer.getvalue()


def in_metadata(trap: Trap) -> bytes:
    text = pickle.dumps(trap, protocol=0).decode("latin-1")
    return safetensors.torch.save({"w": torch.ones(1)}, {"uss_utils": text})


def as_legacy(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": trap}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


TRAPS = {
    "pickle": pickle.dumps,
    "old pickle": lambda trap: pickle.dumps(trap, protocol=0),
    "torch": lambda trap: saved({"state_dict": {"net.cluster1.0.weight": trap}}),
    "torch, hidden": lambda trap: saved(stego_state(3, 4, 5) | {"more": [{"x": trap}]}),
    "torch before 1.6": as_legacy,
    "npy": npy,
    "npz": npz,
    "safetensors": in_metadata,
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", [*FORMATS, "matlab"])
def test_no_code_of_a_file_is_run(name, trap, tmp_path):
    marker = tmp_path / "was here"
    load = read_matlab if name == "matlab" else FORMATS[name].load
    path = tmp_path / ("a.mat" if name == "matlab" else FORMATS[name].name)
    path.write_bytes(TRAPS[trap](Trap(marker)))
    with pytest.raises((ValueError, OSError), match=path.name):
        load(path)
    assert not marker.exists()


def test_the_traps_work(tmp_path):
    marker = tmp_path / "was here"
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()


def read_matlab(path: Path) -> np.ndarray:
    return mat_files.read(path, "x")
