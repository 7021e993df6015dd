import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.folders import read_only_folder
from tests.toy_images import Toy
from uss_utils import feature_cache, resumable
from uss_utils.backbones import Backbone, load
from uss_utils.datasets.transforms import Transform
from uss_utils.features import FeatureCache, extract

BATCH = 3  # 20 batches: journal entries after 8, 16 and at the end


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes started below: sums in the same order, equal bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def backbone():
    return load("vit_tiny_random")


@pytest.fixture(scope="module")
def whole(one_thread, backbone, tmp_path_factory):
    """A cache that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return FeatureCache.build(backbone, Toy(), folder, batch_size=BATCH)


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_holds_the_features_in_half_precision(whole, backbone):
    feat = extract(backbone, Toy())
    assert len(whole) == 60 and whole.shape == (60, 192, 2, 2)
    picked = whole.batch([5, 0, 5])
    assert picked.dtype == torch.float32
    torch.testing.assert_close(picked, feat[[5, 0, 5]], atol=2e-3, rtol=1e-3)
    assert torch.equal(whole[5], picked[0]) and torch.equal(whole[-1], whole[59])
    assert torch.equal(whole.batch(torch.tensor([1, 2])), whole[1:3])
    with pytest.raises(IndexError):
        whole.batch([60])


def test_reading_is_memory_mapped_and_files_are_as_documented(whole):
    assert isinstance(whole._map, np.memmap)
    assert sorted(content(whole.folder)) == ["features.json", "features.npy"]
    array = np.load(whole.folder / "features.npy")
    assert array.dtype == np.float16 and array.shape == whole.shape
    record = json.loads((whole.folder / "features.json").read_text())
    assert record["backbone_name"] == "vit_tiny_random"
    assert record["image_size"] == [16, 16]


def test_announces_its_size_before_writing(backbone, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(resumable.ArrayWriter, "append", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        FeatureCache.build(backbone, Toy(10), tmp_path)
    printed = capsys.readouterr().out
    assert "feature cache: 10 x 192 x 2 x 2 fp16 = 0.0 MB at" in printed
    assert str(tmp_path) in printed


def test_default_folder_is_named_by_content(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    first = FeatureCache.build(backbone, Toy(4))
    assert first.folder.parent == tmp_path / "cache" / "features"
    assert first.folder.name.startswith("toy-train-vit_tiny_random-")
    other = FeatureCache.build(backbone, Toy(4, seed=1))
    assert other.folder != first.folder
    assert FeatureCache.build(backbone, Toy(4)).folder == first.folder


def test_a_finished_cache_is_not_computed_again(whole, backbone, monkeypatch):
    before = content(whole.folder)
    monkeypatch.setattr(Backbone, "forward", lambda *a, **k: 1 / 0)
    again = FeatureCache.build(backbone, Toy(), whole.folder, batch_size=7)
    assert content(again.folder) == before
    assert FeatureCache.open(whole.folder, backbone=backbone, dataset=Toy())


# --- wrong, stale, damaged ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbone": load("vit_tiny_random", seed=1)}, "other backbone weights"),
        ({"dataset": Toy(seed=1)}, "other images, or another transform"),
        ({"dataset": Toy(59)}, r"another shape \(shape: \[60, .* there, \[59"),
        (
            {"dataset": Toy(transform=Transform("resize", (24, 16)))},
            r"another image size \(image_size: \[16, 16\] there, \[24, 16\] now\)",
        ),
        (
            {"backbone": load("vit_tiny_random", position="timm")},
            "another resampling .*position: released there, timm now",
        ),
        ({"backbone": load("colour")}, "another patch size"),
    ],
    ids=["weights", "images", "count", "size", "position", "control"],
)
def test_stale_cache_is_refused(whole, backbone, changed, message):
    now = {"backbone": backbone, "dataset": Toy(), **changed}
    with pytest.raises(ValueError, match=f"made from something else: .*{message}"):
        FeatureCache.open(whole.folder, **now)
    before = content(whole.folder)
    with pytest.raises(ValueError, match="Delete the folder, or build in another"):
        FeatureCache.build(now["backbone"], now["dataset"], whole.folder)
    assert content(whole.folder) == before


def damaged(whole, folder, name, edit) -> Path:
    for file, data in content(whole.folder).items():
        (folder / file).write_bytes(edit(data) if file == name else data)
    return folder


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("features.npy", lambda d: d[:-8], "features.npy has .* bytes instead of"),
        ("features.npy", lambda d: d + b"x", "features.npy has .* bytes instead of"),
        ("features.npy", flip_last_bit, "features.npy was changed after"),
        ("features.json", lambda d: d[:50], "features.json is not JSON"),
    ],
)
def test_damaged_cache_is_refused(whole, backbone, tmp_path, name, edit, message):
    folder = damaged(whole, tmp_path, name, edit)
    for use in (
        lambda: FeatureCache.open(folder, backbone=backbone, dataset=Toy()),
        lambda: FeatureCache.build(backbone, Toy(), folder),
    ):
        with pytest.raises(ValueError, match=f"damaged .*{message}.* build it again"):
            use()


def test_missing_files(whole, backbone, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished feature cache in .*build"):
        FeatureCache.open(tmp_path, backbone=backbone, dataset=Toy())
    damaged(whole, tmp_path, "features.npy", bytes)
    (tmp_path / "features.json").unlink()
    with pytest.raises(ValueError, match="features.npy without features.json"):
        FeatureCache.build(backbone, Toy(), tmp_path)


def test_features_that_half_precision_cannot_hold(tmp_path):
    wild = load("vit_tiny_random")
    with torch.no_grad():
        wild.vit.norm.weight *= 1e6
    with pytest.raises(ValueError, match=r"images 0\.\.3 exceed .* half precision"):
        FeatureCache.build(wild, Toy(4), tmp_path)


def test_features_that_are_not_finite(backbone, whole, tmp_path):
    """One bad image in the middle: no cache, and the rerun with a good one is whole."""

    class Bad(Toy):
        def batch(self, indices):
            image, label = super().batch(indices)
            image[[int(i) == 31 for i in indices]] = torch.nan
            return image, label

    bad = Bad()
    bad.fingerprint = Toy().fingerprint
    with pytest.raises(ValueError, match="vit_tiny_random gives NaN .* for image 31"):
        FeatureCache.build(backbone, bad, tmp_path, batch_size=BATCH)
    with pytest.raises(FileNotFoundError, match="no finished feature cache"):
        FeatureCache.open(tmp_path, backbone=backbone, dataset=Toy())
    FeatureCache.build(backbone, Toy(), tmp_path, batch_size=BATCH)
    assert content(tmp_path) == content(whole.folder)


def test_images_of_two_sizes(backbone, tmp_path):
    class Mixed(Toy):
        def read(self, index):
            image, label = super().read(index)
            return (image[:8], label[:8]) if index == 7 else (image, label)

    with pytest.raises(ValueError, match=r"images 7\.\.7 have shape \(192, 1, 2\)"):
        FeatureCache.build(backbone, Mixed(9), tmp_path, batch_size=1)
    with pytest.raises(ValueError, match="there is no image"):
        FeatureCache.build(backbone, Toy(0), tmp_path)


def test_images_that_do_not_fit_the_patch(backbone, tmp_path):
    with pytest.raises(ValueError, match="height 20 -> 16 or 24"):
        FeatureCache.build(backbone, Toy(3, size=20), tmp_path)


# --- places that cannot be written --------------------------------------------------


def test_too_little_room_is_noticed_before_writing(backbone, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(resumable.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="needs 0 MB more, but only 0 MB are free; use"):
        FeatureCache.build(backbone, Toy(), tmp_path)
    assert not (tmp_path / "features.partial").exists()


def test_folder_that_cannot_be_made(backbone, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write .*file/cache.*set USS_DATA"):
        FeatureCache.build(backbone, Toy(3), tmp_path / "file" / "cache")


def test_read_only_folder(backbone):
    with read_only_folder() as folder:
        for place in (folder, folder / "new"):
            with pytest.raises(OSError, match="cannot write .*denied.*set USS_DATA to"):
                FeatureCache.build(backbone, Toy(3), place)
        assert not list(folder.iterdir())


SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
from tests.toy_images import Toy
from uss_utils import feature_cache
from uss_utils.backbones import load
from uss_utils.features import FeatureCache

folder, fault = sys.argv[1:]
kind, _, value = fault.partition("=")

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

class Faulty(Toy):
    def batch(self, indices):
        if kind == "image" and int(value) in list(indices):
            die()
        return super().batch(indices)

dataset = Faulty()
dataset.fingerprint = Toy().fingerprint
if kind == "sample":
    feature_cache._sample = die
if kind == "rename":
    plain = Path.replace
    Path.replace = lambda s, t: die() if s.name == value else plain(s, t)
if kind == "unlink":
    plain = Path.unlink
    Path.unlink = lambda s, **k: die() if s.name == value else plain(s, **k)
if kind == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), int(value)))
FeatureCache.build(load("vit_tiny_random"), dataset, folder, batch_size=3)
"""


def run(folder, fault="none=", **options) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), fault],
        cwd=Path(__file__).parents[1],
        env=environment,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    ("fault", "resumed_at"),
    [
        ("image=10", None),  # before the first journal entry
        ("image=31", 24),  # after it
        ("sample=", 60),  # all written, not finished
        ("rename=features.partial", 60),  # record written, data not yet named
        ("unlink=features.progress", None),  # everything but the journal's removal
    ],
)
def test_killed_run_is_continued(whole, backbone, tmp_path, fault, resumed_at, capsys):
    """SIGKILL at any moment; the rerun gives the bytes of an uninterrupted run."""
    assert run(tmp_path, fault).wait() == -signal.SIGKILL
    finished = fault.startswith("unlink")
    assert (tmp_path / "features.npy").exists() == finished
    # What was not journalled may be torn: it must not be trusted.
    if not finished:
        with (tmp_path / "features.partial").open("ab") as file:
            file.write(b"torn")
        with pytest.raises(FileNotFoundError, match="no finished feature cache"):
            FeatureCache.open(tmp_path, backbone=backbone, dataset=Toy())
    (tmp_path / ".tmp-left.progress").write_text("{")
    FeatureCache.build(backbone, Toy(), tmp_path, batch_size=BATCH)
    assert content(tmp_path) == content(whole.folder)
    printed = capsys.readouterr().out
    continuing = f"continuing at image {resumed_at} of 60"
    assert (continuing in printed) == (resumed_at is not None)


def test_unfinished_data_of_something_else_is_not_continued(whole, backbone, tmp_path):
    assert run(tmp_path, "image=31").wait() == -signal.SIGKILL
    other = FeatureCache.build(backbone, Toy(seed=1), tmp_path, batch_size=BATCH)
    fresh = extract(backbone, Toy(seed=1), batch_size=BATCH).half().float()
    assert torch.equal(other.batch(range(60)), fresh)


def test_disk_that_fills_up_while_writing(whole, backbone, tmp_path):
    """The system refuses to let files grow beyond 50 000 bytes."""
    process = run(tmp_path, "limit=50000", stderr=subprocess.PIPE)
    _, message = process.communicate()
    assert process.returncode == 1
    last = message.strip().splitlines()[-1]
    assert last.startswith("OSError") and "cannot write" in last
    assert "free some space, or set USS_DATA" in last
    FeatureCache.build(backbone, Toy(), tmp_path, batch_size=BATCH)
    assert content(tmp_path) == content(whole.folder)


def test_two_processes_building_one_cache(whole, tmp_path):
    both = [run(tmp_path, stdout=subprocess.PIPE) for _ in range(2)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert content(tmp_path) == content(whole.folder)
    assert sum("fp16 =" in text for text in printed) == 1


def test_a_waiting_builder_takes_over(backbone, tmp_path, capsys):
    """The lock is held elsewhere at first; the wait is announced."""
    import threading

    with resumable.locked(tmp_path):
        waiting = threading.Thread(
            target=FeatureCache.build, args=(backbone, Toy(4), tmp_path)
        )
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert "another process is writing in" in capsys.readouterr().out
    waiting.join(30)
    assert not waiting.is_alive()
    assert sorted(content(tmp_path)) == ["features.json", "features.npy"]
    assert feature_cache._complete(tmp_path)
