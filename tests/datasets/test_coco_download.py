"""COCO-Stuff from a local server: parts, restarts, refusals."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.datasets.benchmark_files import coco_label, noise
from uss_utils import datasets
from uss_utils.datasets import coco_download, cocostuff, download
from uss_utils.datasets.coco_download import PARTS, download_coco, download_cocostuff
from uss_utils.datasets.download import REGISTRY, DownloadError, Remote

COUNTS = {"train": 4, "val": 2}
STUFF = (105, 156, 105, 100)  # meets the rule of the curated list


def encoded(array, kind):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def archive(part, counts=COUNTS, **extra):
    """A zip as COCO publishes it; ``extra``: further names and their bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for split in part.splits:
            file.writestr(f"{split}2017/", "")
            for i in range(counts[split]):
                if part.suffix == ".jpg":
                    content = encoded(noise(400, 400, 3, i), "JPEG")
                else:
                    content = encoded(coco_label(400, 400, STUFF), "PNG")
                file.writestr(f"{split}2017/{i:012d}{part.suffix}", content)
        for name, content in extra.items():
            file.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def coco(server, monkeypatch):
    """All three archives on the server, with small published counts."""
    monkeypatch.setattr(cocostuff, "IMAGES", COUNTS)
    server.content = {}
    for part in PARTS:
        content = archive(part)
        server.content[f"/{part.archive}.zip"] = content
        checked = {"md5": hashlib.md5(content).hexdigest()}
        remote = Remote(
            file=f"{part.archive}.zip",
            url=f"{server.url}/{part.archive}.zip",
            licence="toy",
            megabytes=1,
            **(checked if part.suffix == ".jpg" else {}),
        )
        monkeypatch.setitem(REGISTRY, part.archive, remote)
    return server


def replace(coco, part, content):
    """Another archive, without a checksum."""
    coco.content[f"/{part.archive}.zip"] = content
    REGISTRY[part.archive] = Remote(
        f"{part.archive}.zip", f"{coco.url}/{part.archive}.zip", "toy", 1
    )


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))


VAL, LABELS, TRAIN = PARTS


def test_everything(coco, tmp_path, capsys):
    root = download_cocostuff(progress=False)
    assert root == tmp_path / "data" / "cocostuff"
    data = datasets.load("cocostuff27", "train", limit=2, size=32)
    images, label = data.batch([0, 1])
    assert images.shape == (2, 3, 32, 32) and set(label.unique().tolist()) == {13, 23}
    assert len(datasets.load("cocostuff27", "val")) == 2
    said = capsys.readouterr().out
    assert said.index("3 archives, 0.0 GB") < said.index("coco-val2017: about 1 MB")
    assert "md5:" in said and "no checksum is published" in said
    assert not list((tmp_path / "data" / "cache").rglob("*.*"))  # no archive is left
    assert not [n for n in names(root) if "tmp" in n or n.endswith(".lock")]
    download_cocostuff(root, progress=False)
    assert len(coco.requests) == 3


def test_one_split(coco, tmp_path):
    root = download_cocostuff(tmp_path / "mine", "val", progress=False)
    assert [path for path, _ in coco.requests] == [
        "/coco-val2017.zip",
        "/cocostuff-labels.zip",
    ]
    assert len(datasets.load("cocostuff27", "val", root)) == 2
    assert not (root / "images" / "train2017").exists()
    download_cocostuff(root, progress=False)
    assert [path for path, _ in coco.requests[2:]] == ["/coco-train2017.zip"]
    with pytest.raises(ValueError, match="no split 'test'; known: train, val"):
        download_cocostuff(root, "test")


def test_images_alone(coco, tmp_path, capsys):
    root = download_coco(split="train", progress=False)
    assert root == tmp_path / "data" / "coco"
    assert [path for path, _ in coco.requests] == ["/coco-train2017.zip"]
    assert len(datasets.load("coco")) == 4
    assert "MSCOCO: 1 archives, 0.0 GB" in capsys.readouterr().out
    download_coco(progress=False)
    assert [path for path, _ in coco.requests[1:]] == ["/coco-val2017.zip"]
    assert not (root / "annotations").exists() and not (root / "curated").exists()
    with pytest.raises(ValueError, match="MSCOCO has no split 'test'; known: train, v"):
        download_coco(root, "test")


def test_images_of_either_layout_are_completed_where_they_are(coco, tmp_path):
    stuff = download_cocostuff(progress=False)
    assert download_coco(progress=False) == stuff
    assert len(coco.requests) == 3
    flat = tmp_path / "flat"
    flat.mkdir()
    (stuff / "images" / "train2017").rename(flat / "train2017")
    next((flat / "train2017").iterdir()).unlink()
    assert download_coco(flat, "train", progress=False) == flat
    assert len(datasets.load("coco", "train", flat)) == 4
    assert not (flat / "images").exists()


def test_a_broken_connection_is_continued(coco, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_CHUNK", 256)
    coco.deaths = 3
    root = download_cocostuff(tmp_path, progress=False)
    assert len(datasets.load("cocostuff27", "train", root)) == 4
    assert [start for _, start in coco.requests if start]


def test_half_a_set_is_completed_and_the_rest_left_alone(coco, tmp_path):
    root = download_cocostuff(tmp_path, progress=False)
    folder = root / "images" / "train2017"
    kept, gone, cut, empty = sorted(folder.iterdir())
    whole, before = cut.read_bytes(), kept.stat().st_mtime_ns
    gone.unlink()
    cut.write_bytes(whole[:-9])
    empty.write_bytes(b"")
    assert download_cocostuff(root, progress=False) == root
    assert cut.read_bytes() == whole and kept.stat().st_mtime_ns == before
    assert len(list(folder.iterdir())) == 4
    assert [path for path, _ in coco.requests[3:]] == ["/coco-train2017.zip"]


SCRIPT = """
import os, signal, sys, zipfile
from pathlib import Path
from uss_utils.datasets import coco_download, cocostuff

archive, root = map(Path, sys.argv[1:])
cocostuff.IMAGES = {"train": 4, "val": 2}
plain, written = Path.replace, []
def killing(self, target):
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(target)
    return plain(self, target)
Path.replace = killing
coco_download.unpack(archive, coco_download.PARTS[2], root, progress=False)
"""


def test_killed_unpacking_is_continued(coco, tmp_path):
    stored = tmp_path / "data" / "cache" / "downloads" / "coco-train2017.zip"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(coco.content["/coco-train2017.zip"])
    root = tmp_path / "data" / "cocostuff"
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(stored), str(root)],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = root / "images" / "train2017"
    assert len([p for p in folder.iterdir() if p.suffix == ".jpg"]) >= 2
    assert [p for p in folder.iterdir() if p.name.startswith(".tmp-")]
    download_cocostuff(progress=False)
    assert sorted(p.name for p in folder.iterdir()) == [
        f"{i:012d}.jpg" for i in range(4)
    ]
    assert "/coco-train2017.zip" not in [path for path, _ in coco.requests]


def test_wrong_checksum_and_missing_file(coco, tmp_path):
    coco.content["/coco-val2017.zip"] += b"more"
    with pytest.raises(DownloadError, match=r"could not download coco-val2017: .*hash"):
        download_cocostuff(tmp_path, "val", progress=False)
    del coco.content["/coco-val2017.zip"]
    match = r"tried http.*coco-val2017.zip \(404.*save it as .*coco-val2017.zip"
    with pytest.raises(DownloadError, match=match):
        download_cocostuff(tmp_path, "val", progress=False)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"<html>moved</html>",
        archive(LABELS)[:-300],
        archive(LABELS, {"train": 4, "val": 1}),
    ],
    ids=["page", "cut", "fewer"],
)
def test_damaged_archive(coco, tmp_path, content):
    replace(coco, LABELS, content)
    match = r"damaged or not the published one: .*expected 4 files train2017/\*.png, 2"
    with pytest.raises(DownloadError, match=match):
        download_cocostuff(tmp_path, "val", progress=False)
    assert not list((tmp_path / "data" / "cache").rglob("*.zip"))
    replace(coco, LABELS, archive(LABELS))
    root = download_cocostuff(tmp_path, "val", progress=False)
    assert len(datasets.load("cocostuff27", "val", root)) == 2


def test_flipped_bit(coco, tmp_path):
    content = bytearray(archive(VAL))
    content[content.index(b"000000000001.jpg") + 200] ^= 1
    replace(coco, VAL, bytes(content))
    with pytest.raises(DownloadError, match="damaged.*CRC"):
        download_cocostuff(tmp_path, "val", progress=False)
    assert [p.name for p in tmp_path.rglob("*.jpg")] == ["000000000000.jpg"]


def test_no_member_leaves_the_folder(coco, tmp_path):
    evil = {
        "../../val2017/../evil.jpg": b"x",
        "/val2017/absolute.jpg": b"y",
        "deep/val2017/.hidden.jpg": b"x",
        "other/x.jpg": b"x",
        "val2017/readme.txt": b"x",
    }
    replace(coco, VAL, archive(VAL, **evil))
    root = download_cocostuff(tmp_path / "set" / "root", "val", progress=False)
    here = {p.name for p in tmp_path.rglob("*.jpg")}
    assert here == {"000000000000.jpg", "000000000001.jpg", "absolute.jpg"}
    assert (root / "images/val2017/absolute.jpg").read_bytes() == b"y"
    assert not list(root.rglob("*.txt"))[1:]  # only the curated list


def test_too_little_room(coco, tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        coco_download.shutil, "disk_usage", lambda place: usage._replace(free=10**6)
    )
    with pytest.raises(OSError, match=r"needs 0.0 GB at .*where 0.0 GB are free"):
        download_cocostuff(tmp_path, "val", progress=False)
    assert not coco.requests


def test_full_disk_keeps_the_archive(coco, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(coco_download.shutil, "copyfileobj", full)
        with pytest.raises(OSError, match="could not write .*No space left"):
            download_cocostuff(tmp_path, "val", progress=False)
    assert [p.name for p in tmp_path.rglob("*.zip")] == ["coco-val2017.zip"]
    assert not list(tmp_path.rglob("*.jpg"))
    download_cocostuff(tmp_path, "val", progress=False)
    assert len(coco.requests) == 2


def test_the_real_entries():
    sizes = [REGISTRY[part.archive].megabytes for part in PARTS]
    assert round(sum(sizes) / 1000) == 21 and all(size > 500 for size in sizes)
    for part, size in zip(PARTS, sizes, strict=True):
        said = download.announce(part.archive)
        assert f"about {size} MB" in said and "licence" in said
        assert ("md5:" in said) == (part.folder == "images")
