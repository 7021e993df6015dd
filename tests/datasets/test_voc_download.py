"""PASCAL VOC and SBD from a local server: parts, restarts, refusals."""

import hashlib
import io
import tarfile

import pytest

from tests.datasets.benchmark_files import SBD_ONLY, make_sbd, make_voc
from uss_utils import datasets
from uss_utils.data_commands import download as command
from uss_utils.datasets import download, processes, sbd, voc, voc_download
from uss_utils.datasets.download import REGISTRY, DownloadError, Remote
from uss_utils.datasets.voc_download import download_voc


def packed(folder, mode, prefix="", **extra):
    """A tar of a folder; ``extra``: further names and their bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        file.add(folder, prefix)
        for name, content in extra.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def published(server, monkeypatch, tmp_path):
    """Both archives on the server, with small published counts."""
    monkeypatch.setattr(voc_download, "IMAGES", 5)
    monkeypatch.setattr(sbd, "IMAGES", 4)
    monkeypatch.setattr(processes, "cores", lambda: 1)  # starting others takes long
    folder = tmp_path / "made"
    root = make_voc(folder / "VOCdevkit" / "VOC2012")
    (root / "Annotations").mkdir()
    (root / "Annotations/2007_000032.xml").write_text("not needed")
    dataset = make_sbd(folder)
    (dataset / "inst").mkdir()
    (dataset / "inst/2008_000002.mat").write_bytes(b"not needed")
    server.content = {
        "/voc2012.tar": packed(folder / "VOCdevkit", "w", "VOCdevkit"),
        "/sbd.tgz": packed(folder / "benchmark_RELEASE", "w:gz", "benchmark_RELEASE"),
    }
    for name, file in (("voc2012", "voc2012.tar"), ("sbd", "sbd.tgz")):
        checksum = hashlib.md5(server.content[f"/{file}"]).hexdigest()
        remote = Remote(file, f"{server.url}/{file}", "toy", 1, md5=checksum)
        monkeypatch.setitem(REGISTRY, name, remote)
    return server


def replace(published, file, content):
    """Another archive, without a checksum."""
    published.content[f"/{file}"] = content
    name = file.partition(".")[0]
    REGISTRY[name] = Remote(file, f"{published.url}/{file}", "toy", 1)


def asked(published):
    return [path for path, _ in published.requests]


def test_everything(published, tmp_path, capsys):
    root = download_voc(progress=False)
    assert root == tmp_path / "data" / "voc" / "VOCdevkit" / "VOC2012"
    lengths = {split: len(datasets.load("voc", split)) for split in voc.SPLITS}
    assert lengths == {"train": 2, "trainaug": 4, "val": 1}
    assert not (root / "Annotations").exists() and not (root / "sbd/inst").exists()
    said = capsys.readouterr().out
    assert said.index("voc2012: about 1 MB") < said.index("sbd: about 1 MB")
    assert "md5:" in said and "is complete at" in said
    assert not list((tmp_path / "data" / "cache").rglob("*.*"))  # no archive is left
    left = [p.name for p in root.rglob(".*") if p.is_file()]
    assert left == []
    download_voc(root, progress=False)
    assert asked(published) == ["/voc2012.tar", "/sbd.tgz"]


def test_parts(published, tmp_path, capsys):
    root = download_voc(tmp_path / "mine", "val", progress=False)
    assert root == tmp_path / "mine" / "VOCdevkit" / "VOC2012"
    assert asked(published) == ["/voc2012.tar"]
    command("voc", tmp_path / "mine", "trainaug")
    assert asked(published) == ["/voc2012.tar", "/sbd.tgz"]
    assert f"ready: {root}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no split 'test'; known: train, trainaug"):
        download_voc(root, "test")


def test_a_broken_connection_is_continued(published, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_CHUNK", 256)
    published.deaths = 3
    root = download_voc(tmp_path / "mine", progress=False)
    assert len(datasets.load("voc", "trainaug", root)) == 4
    assert [start for _, start in published.requests if start]


def test_what_is_there_is_left_alone(published, tmp_path):
    root = download_voc(tmp_path / "mine", progress=False)
    kept, gone, cut = sorted((root / "JPEGImages").iterdir())[:3]
    whole, before = cut.read_bytes(), kept.stat().st_mtime_ns
    gone.unlink()
    cut.write_bytes(whole[:-9])
    download_voc(root, progress=False)
    assert cut.read_bytes() == whole and kept.stat().st_mtime_ns == before
    assert asked(published)[2:] == ["/voc2012.tar"]
    (root / "SegmentationClassAug" / f"{SBD_ONLY[0]}.png").unlink()
    download_voc(root, progress=False)
    assert len(asked(published)) == 3  # SBD itself is there


def test_sbd_beside_voc_is_used(published, tmp_path):
    make_sbd(tmp_path / "mine")
    download_voc(tmp_path / "mine", progress=False)
    assert asked(published) == ["/voc2012.tar"]


def test_release(published, tmp_path):
    root = make_voc(tmp_path / "release", "release")
    assert download_voc(root, progress=False) == root and not asked(published)
    (root / "images/2007_000032.jpg").unlink()
    with pytest.raises(FileExistsError, match="incomplete copy of MaskContrast's rel"):
        download_voc(root, progress=False)


def test_wrong_checksum_and_missing_file(published, tmp_path):
    published.content["/voc2012.tar"] += b"more"
    with pytest.raises(DownloadError, match=r"could not download voc2012: .*hash"):
        download_voc(tmp_path / "mine", progress=False)
    del published.content["/voc2012.tar"]
    match = r"tried http.*voc2012.tar \(404.*save it as .*voc2012.tar"
    with pytest.raises(DownloadError, match=match):
        download_voc(tmp_path / "mine", progress=False)


@pytest.mark.parametrize("damage", ["page", "cut", "fewer"])
@pytest.mark.parametrize("file", ["voc2012.tar", "sbd.tgz"])
def test_damaged_archive(published, tmp_path, file, damage):
    whole = published.content[f"/{file}"]
    empty = tmp_path / "empty"
    empty.mkdir()
    content = {
        "page": b"<html>moved</html>",
        "cut": whole[: len(whole) * 2 // 3],
        "fewer": packed(empty, "w", "VOCdevkit"),
    }[damage]
    replace(published, file, content)
    with pytest.raises(DownloadError, match=f"{file} is damaged or not the published"):
        download_voc(tmp_path / "mine", progress=False)
    assert not list((tmp_path / "data" / "cache").rglob("*.t*"))
    replace(published, file, whole)
    root = download_voc(tmp_path / "mine", progress=False)
    assert len(datasets.load("voc", "trainaug", root)) == 4


def test_no_member_leaves_the_folder(published, tmp_path):
    evil = {
        "VOCdevkit/VOC2012/JPEGImages/../../evil.jpg": b"x",
        "VOCdevkit/VOC2012/../evil.jpg": b"x",
        "/evil/JPEGImages/x.jpg": b"x",
        "VOCdevkit/VOC2012/JPEGImages/.hidden.jpg": b"x",
    }
    source = tmp_path / "made" / "VOCdevkit"
    replace(published, "voc2012.tar", packed(source, "w", "VOCdevkit", **evil))
    root = download_voc(tmp_path / "mine", "val", progress=False)
    assert len(list((tmp_path / "mine").rglob("*.jpg"))) == 5
    assert len(list((root / "JPEGImages").iterdir())) == 5


def test_too_little_room(published, tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda place: usage._replace(free=10**6)
    )
    with pytest.raises(OSError, match=r"PASCAL VOC 2012 needs 0.0 GB at .*are free"):
        download_voc(tmp_path / "mine", progress=False)
    assert not asked(published)


def test_the_real_entries():
    for name, size in (("voc2012", 2000), ("sbd", 1420)):
        said = download.announce(name)
        assert f"about {size} MB" in said and "md5:" in said and "licence" in said
