"""Downloads from a local server that can fail in every usual way."""

import hashlib

import pytest

from tests.datasets.local_server import CONTENT
from uss_utils.datasets import download
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


def test_the_real_entry_says_what_it_is():
    said = download.announce("camvid")
    for part in ("about 180 MB", "codeload.github.com/alexgkendall", "CC BY-NC 4.0"):
        assert part in said
