"""The neighbour index on disk: right, resumable, never stale."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.folders import read_only_folder
from tests.toy_images import Toy
from uss_utils import neighbour_index as module
from uss_utils.backbones import load
from uss_utils.datasets.transforms import Transform
from uss_utils.features import FeatureCache, extract
from uss_utils.neighbour_index import neighbour_index
from uss_utils.neighbours import global_descriptors, nearest


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
    """An index that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    neighbour_index(backbone, Toy(), 8, folder, batch_size=3)
    return folder


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def forbidden(*args, **options):
    pytest.fail("computed again")


def test_lists_are_those_of_the_features(whole, backbone):
    descriptors = global_descriptors(extract(backbone, Toy()))
    expected, _ = nearest(descriptors, 8)
    found = neighbour_index(backbone, Toy(), 8, whole)
    assert found.dtype == torch.int64 and torch.equal(found, expected)
    assert sorted(content(whole)) == ["neighbours.json", "neighbours.npy"]
    stored = np.load(whole / "neighbours.npy", allow_pickle=False)
    assert np.array_equal(stored, expected.numpy())


def test_read_again_without_computing(whole, backbone, monkeypatch):
    monkeypatch.setattr(module, "feature_batches", forbidden)
    monkeypatch.setattr(module, "nearest_batches", forbidden)
    full = neighbour_index(backbone, Toy(), 8, whole)
    assert torch.equal(neighbour_index(backbone, Toy(), 3, whole), full[:, :3])


def test_longer_lists_replace_shorter_ones(backbone, tmp_path, whole):
    short = neighbour_index(backbone, Toy(), 4, tmp_path)
    full = neighbour_index(backbone, Toy(), 8, tmp_path)
    assert torch.equal(full[:, :4], short)
    assert torch.equal(full, neighbour_index(backbone, Toy(), 8, whole))


def test_default_folder_is_named_by_content(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("USS_DATA", str(tmp_path))
    neighbour_index(backbone, Toy(), 2)
    (folder,) = (tmp_path / "cache" / "neighbours").iterdir()
    assert folder.name.startswith("toy-train-vit_tiny_random-")
    neighbour_index(backbone, Toy().with_transform(Transform.sane(24)), 2)
    neighbour_index(load("vit_tiny_random", seed=1), Toy(), 2)
    neighbour_index(backbone, Toy(), 2, variant="whitened")
    assert len(list(folder.parent.iterdir())) == 4


def test_given_features_are_used(backbone, tmp_path, monkeypatch, whole):
    cache = FeatureCache.build(backbone, Toy(), tmp_path / "cache")
    monkeypatch.setattr(module, "feature_batches", forbidden)

    def batches():
        for start in range(0, 60, 7):
            rows = range(start, min(start + 7, 60))
            yield rows, cache.batch(rows)

    found = neighbour_index(backbone, Toy(), 8, tmp_path / "i", features=batches())
    expected, _ = nearest(global_descriptors(cache.batch(range(60))), 8)
    assert torch.equal(found, expected)


# ------------------------------------------------------------------- killed and resumed

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.toy_images import Toy
from uss_utils import neighbour_index as module, neighbours, resumable
from uss_utils.backbones import load

resumable.JOURNAL_EVERY, neighbours.ROWS = 2, 7
folder, where, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def killing(parts):
    for count, part in enumerate(parts):
        if count == after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield part

if where == "descriptors":
    plain = module._described
    module._described = lambda *args: killing(plain(*args))
elif where == "lists":
    plain = module.nearest_batches
    module.nearest_batches = lambda *a, **o: killing(plain(*a, **o, chunk=7))
else:
    resumable.ArrayWriter.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
module.neighbour_index(load("vit_tiny_random"), Toy(), 8, folder, batch_size=3)
"""


@pytest.mark.parametrize(
    ("where", "after"), [("descriptors", 7), ("lists", 0), ("lists", 5), ("finish", 0)]
)
def test_killed_run_is_continued(backbone, tmp_path, whole, where, after, monkeypatch):
    command = [sys.executable, "-c", KILLED, str(tmp_path), where, str(after)]
    root = Path(__file__).parents[1]
    assert subprocess.run(command, cwd=root).returncode == -signal.SIGKILL
    started = {}
    plain, ranked = module.feature_batches, module.nearest_batches

    def features(*args, **options):
        started["descriptors"] = options["start"]
        return plain(*args, **options)

    def lists(*args, **options):
        started["lists"] = options["start"]
        return ranked(*args, **options)

    monkeypatch.setattr(module, "feature_batches", features)
    monkeypatch.setattr(module, "nearest_batches", lists)
    neighbour_index(backbone, Toy(), 8, tmp_path, batch_size=3)
    assert content(tmp_path) == content(whole)
    begun = {"descriptors": (18, 0), "lists": (60, 28 if after else 0)}
    begun["finish"] = (60, 60)
    assert (started["descriptors"], started["lists"]) == begun[where]


# -------------------------------------------------------------------------- refusals


def test_fewer_images_than_neighbours(backbone, tmp_path):
    few = Toy().subset(range(5))
    with pytest.raises(
        ValueError, match=r"cannot list 8 nearest of 5 .*use k in 1\.\.5"
    ):
        neighbour_index(backbone, few, folder=tmp_path / "i")
    assert not (tmp_path / "i").exists()
    assert neighbour_index(backbone, few, 5, tmp_path / "i").shape == (5, 5)


def test_index_of_something_else(backbone, whole):
    others = [
        (backbone, Toy().with_transform(Transform.sane(24)), {}, "another image size"),
        (load("vit_tiny_random", seed=1), Toy(), {}, "other backbone weights"),
        (backbone, Toy().subset(range(59)), {}, "other images"),
        (backbone, Toy(), {"variant": "whitened"}, "another variant"),
    ]
    for network, images, options, match in others:
        with pytest.raises(ValueError, match=f"made from something else: .*{match}"):
            neighbour_index(network, images, 8, whole, **options)


def test_damaged_index(backbone, tmp_path):
    neighbour_index(backbone, Toy(), 4, tmp_path)
    record = (tmp_path / "neighbours.json").read_text()
    for text in ("[]", "{", json.dumps({**json.loads(record), "sha256": "0"})):
        (tmp_path / "neighbours.json").write_text(text)
        with pytest.raises(ValueError, match="neighbour index in .* delete the folder"):
            neighbour_index(backbone, Toy(), 4, tmp_path)


def test_features_that_are_not_those_of_the_set(backbone, tmp_path):
    def index(*batches):
        return neighbour_index(backbone, Toy(), 4, tmp_path, features=batches)

    feat = torch.randn(60, 192, 2, 2)
    with pytest.raises(ValueError, match="features end after 40 of 60 images; give th"):
        index((range(40), feat[:40]))
    with pytest.raises(
        ValueError, match=r"images 50\.\.59 came where those from 40 on"
    ):
        index((range(50, 60), feat[50:]))
    with pytest.raises(
        ValueError, match="features have 3 channels, the backbone's 192"
    ):
        index((range(60), feat[:, :3]))
    feat[41] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        index((range(60), feat))


def test_place_that_cannot_be_written(backbone):
    with read_only_folder() as folder:
        with pytest.raises(
            OSError, match=f"cannot write {folder}/i .Permission denied"
        ):
            neighbour_index(backbone, Toy(), 2, folder / "i")
