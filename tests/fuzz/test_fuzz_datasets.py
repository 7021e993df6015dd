"""Folders of data sets with anything missing, doubled, damaged or strangely named."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.datasets.benchmark_files import (
    make_cityscapes,
    make_coco,
    make_potsdam,
    make_sbd,
    make_tiles,
    make_voc,
)
from tests.fuzz.cases import fewer
from tests.fuzz.damage import PICTURES, damaged, outcome
from tests.fuzz.test_fuzz_maps import TEXTS
from uss_utils import datasets, photo_files, region_files
from uss_utils.datasets import camvid, coco, cocostuff, crops, folder, potsdam, sbd, voc
from uss_utils.datasets.potsdam_tiles import TILES, cut_tile

pytestmark = pytest.mark.fuzz


def documented(call, *errors):
    """What a call returns; None where it raised one of the errors, in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except errors as error:
            assert not isinstance(error, UnicodeError), error
            text = str(error)
            assert text and "\n" not in text and len(text) < 3000
            text.encode("utf-8", "surrogateescape")
            return None


# ----------------------------------------------------------------- folders of pictures

# Parts of names: other alphabets, two ways to write one letter, bytes that are no text.
STEMS = [
    "a",
    "b",
    "A",
    "ü",
    "u\u0308",
    "東京",
    " ",
    "a.b",
    "-x",
    "'\"<&",
    "\udce9t",
    "%s{}",
]
ENDS = [".png", ".PNG", ".jpg", ".jpeg", ".tif", ".webp", ".gif", ".txt", ""]
PLACES = ["", "imgs", "images", "labels", "imgs/train", "imgs/val", "labels/train"]
PLACES += ["labels/val", "imgs/a.png", "other"]
GREY = {"1", "L", "P"}
CONTENTS = [
    *(
        PICTURES[k]
        for k in ("png-RGB", "png-L", "png-P", "jpeg", "jpeg-turned", "png-16")
    ),
    PICTURES["png-L"][:60],
    PICTURES["jpeg"][:200],
    b"",
    b"no picture",
]
KINDS = st.sampled_from([*range(len(CONTENTS)), "folder", "link", "loop", "fifo"])
TREES = st.dictionaries(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(STEMS), st.sampled_from(ENDS)),
    KINDS,
    max_size=8,
)
LISTS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])
LINES = st.lists(
    st.sampled_from(["sky", "Straße", "", "  ", "road  ", "\t"]), max_size=6
)


def plant(root: Path, tree: dict) -> None:
    """Make files, folders, links to nothing or to themselves, and pipes."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for (place, stem, end), kind in tree.items():
        path = root / place / (stem + end)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() or path.is_symlink():
                continue
            if kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to("nowhere.png")
            elif kind == "loop":
                path.symlink_to(path.name)
            elif kind == "fifo":
                os.mkfifo(path)
            else:
                path.write_bytes(CONTENTS[kind])
        except (FileExistsError, NotADirectoryError):
            continue


def check_items(data):
    """Every item of a set: as stated, or an error."""
    for i in range(len(data)):
        item = documented(lambda: data[i], OSError, ValueError)  # noqa: B023
        documented(lambda: data.read_size(i), OSError)  # noqa: B023
        documented(lambda: data.read_label(i), OSError, ValueError)  # noqa: B023
        if item is not None:
            image, label = item["image"], item["label"]
            assert image.shape == (3, *label.shape) and image.isfinite().all()
            assert label.min() >= -1 and label.max() < data.n_classes
            assert item["name"] == data.item_name(i)
    documented(data.fingerprint, OSError)


@given(
    tree=TREES,
    names=st.none() | st.tuples(LINES, LISTS),
    split=st.sampled_from(["train", "val"]),
)
@example(tree={("", "\udce9t", ".png"): 0}, names=None, split="train")
@example(tree={("", "a", ".png"): "fifo"}, names=None, split="train")
def test_any_folder(tree, names, split, tmp_path):
    root = tmp_path / "set"
    plant(root, tree)
    if names is not None:
        lines, coding = names
        text = "\r\n".join(lines)
        (root / "classes.txt").write_bytes(text.encode(coding))
    report = documented(lambda: datasets.check("folder", root), OSError)
    if report is not None:
        str(report)
    data = documented(lambda: datasets.load("folder", split, root), OSError, ValueError)
    if data is not None:
        assert len(data) >= 1 and data.n_classes >= 1
        if names and coding != "latin-1" and any(map(str.strip, lines)):
            assert data.classes == tuple(line.strip() for line in lines if line.strip())
        check_items(data)


@given(tree=TREES, names=st.none() | st.tuples(LINES, LISTS))
def test_any_folder_of_photographs(tree, names, tmp_path):
    """What a user segments: every file is used, or has its reason."""
    root = tmp_path / "set"
    plant(root, tree)
    if names is not None:
        (root / "classes.txt").write_bytes("\n".join(names[0]).encode(names[1]))
    found = documented(lambda: photo_files.find(root), FileNotFoundError)
    scan = documented(lambda: photo_files.scan(root), FileNotFoundError, ValueError)
    if scan is None:
        return
    used = {found.shown(path) for path in scan.pictures}
    assert len({name.casefold() for name in found.names.values()}) == len(found.files)
    for path in found.files:
        assert (found.shown(path) in used) or scan.skipped[found.shown(path)]
    json.dumps([scan.skipped, list(found.names.values())]).encode()
    for name in found.names.values():
        name.encode()  # can be shown, and be a file's name
        assert 0 < len(name.encode()) <= 200 and "/" not in name
    for reason in scan.skipped.values():
        assert "\n" not in reason
    for path, label in scan.labels.items():
        ids = folder.read_ids(label)
        assert ids.shape == scan.sizes[path]
        assert set(np.unique(ids)) <= {*range(len(scan.classes)), 255}


# ------------------------------------------------------------------------------- lists

IDS = ("2007_000032", "2008_000002")
TEXT = st.text("ab0_\\/. \t\n\r\x00\x0b\x85\u2028é", max_size=40)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])
ENDINGS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "  \n"])


@given(
    ids=st.lists(st.integers(0, 10**12 - 1), min_size=1, max_size=5, unique=True),
    coding=ENCODINGS,
    end=ENDINGS,
    last=st.booleans(),
)
def test_lists_of_any_editor(ids, coding, end, last, tmp_path):
    """Marks, empty lines and ends of lines make no difference."""
    path = tmp_path / "list.txt"
    names = [f"{number:012d}" for number in ids]
    path.write_bytes((end.join(names) + end * last).encode(coding))
    for read in (cocostuff.read_list, voc.read_list, potsdam.read_list):
        assert read(path) == names
    path.write_bytes(end.join(f"{n}.jpg x/{n}.png" for n in names).encode(coding))
    assert voc.read_list(path) == names


@given(content=TEXT.map(str.encode) | st.binary(max_size=60))
def test_lists_of_anything(content, tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    for read in (cocostuff.read_list, voc.read_list):
        ids = outcome(lambda: read(path), path, ValueError)  # noqa: B023
        assert ids is None or (ids and len(set(ids)) == len(ids))
    assert isinstance(potsdam.read_list(path), list)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Small published sets, which tests copy and damage."""
    root = tmp_path_factory.mktemp("sets")
    make_voc(root / "voc", "release", saliency=("unsupervised",))
    make_voc(root / "devkit")
    make_sbd(root / "devkit")
    make_coco(root / "cocostuff27", "val")
    make_coco(root / "coco", "train", lists=False)
    make_cityscapes(root / "cityscapes27", "train")
    make_cityscapes(root / "cityscapes19", "train")
    make_potsdam(root / "potsdam3")
    for split in ("train", "trainannot"):
        for name in ("a", "b"):
            path = root / "camvid" / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.full((6, 8), 3, np.uint8)
            Image.fromarray(grey).save(path)
    return root


# Where each set has its only split with images.
OPENED = {
    "voc": "train",
    "cocostuff27": "val",
    "coco": "train",
    "cityscapes27": "train",
    "cityscapes19": "train",
    "potsdam3": "train",
    "camvid": "train",
}


@st.composite
def harm(draw):
    """What happens to one file of a set: which, and how."""
    how = draw(
        st.sampled_from(["gone", "empty", "damaged", "folder", "link", "text", "twin"])
    )
    return draw(st.integers(0, 30)), how, draw(st.integers(0, 2**16))


def do_harm(root: Path, which: int, how: str, draw_bytes) -> None:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    if not files:
        return
    path = files[which % len(files)]
    content = path.read_bytes()
    if how == "twin":
        shutil.copy(path, path.with_name("._" + path.name))
        return
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "link":
        path.symlink_to("nowhere")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "damaged":
        path.write_bytes(draw_bytes(content))
    elif how == "text":
        path.write_bytes("\ufeffnothing\r\n\r\n000\r\n".encode())


@pytest.mark.parametrize("name", sorted(OPENED))
@given(harms=st.lists(harm(), min_size=1, max_size=3), data=st.data())
@fewer(2)
def test_damaged_sets(name, harms, data, sets, tmp_path):
    root = tmp_path / name
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(sets / name, root, symlinks=True)
    for which, how, _ in harms:
        do_harm(root, which, how, lambda whole: data.draw(damaged(whole)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = datasets.check(name, root)  # a report, whatever there is
    assert str(report) and not report.complete
    found = documented(
        lambda: datasets.load(name, OPENED[name], root), OSError, ValueError
    )
    if found is not None:
        check_items(found)


@given(harms=st.lists(harm(), min_size=1, max_size=3), data=st.data())
@fewer(2)
def test_damaged_sbd_makes_no_half_set(harms, data, sets, tmp_path):
    root = tmp_path / "devkit"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(sets / "devkit", root)
    for which, how, _ in harms:
        do_harm(root, which, how, lambda whole: data.draw(damaged(whole)))
    made = documented(
        lambda: sbd.make_trainaug(root, processes=1, progress=False),
        OSError,
        ValueError,
    )
    target = root / voc.AUGMENTED
    if target.is_dir():
        assert all(p.suffix == ".png" for p in target.iterdir())
    if made is not None:
        assert sbd.is_made(root)
        ids = voc.read_list(voc.list_file(root, "trainaug"))
        assert {p.stem for p in made.iterdir()} >= set(ids)


# ------------------------------------------------------------------------------- crops


@pytest.fixture(scope="module")
def cropped(tmp_path_factory):
    """A set with its crops."""
    root = make_cityscapes(tmp_path_factory.mktemp("cropped"), "train", ("aachen",))
    data = datasets.load("cityscapes27", "train", root)
    crops.write_crops(data, root, processes=1, progress=False)
    return root


RECORD = st.fixed_dictionaries(
    {},
    optional={
        "items": st.sampled_from([2, 2.0, "2", None, [], -1, 10**12, True, {}]),
        "complete": st.sampled_from([True, False, None, "yes", 0]),
        "names_sha256": st.text(max_size=3),
    },
).map(lambda record: json.dumps(record).encode())


@given(content=RECORD | TEXTS, write=st.booleans())
@example(content=b"[" * 100_000, write=False)
@example(content=b'{"items": null, "complete": true}', write=False)
@example(content=b'{"items": 2.0, "complete": true}', write=False)
def test_what_crops_say_of_themselves(content, write, cropped):
    path = crops.crops_folder(cropped, "cityscapes27") / "train.json"
    path.write_bytes(content)

    def load():
        data = datasets.load("cityscapes27", "train", cropped, crops="five")
        assert len(data) == 10 and data.read_label(9).max() < 27
        return data

    data = documented(load, ValueError, FileNotFoundError)
    if write:
        whole = datasets.load("cityscapes27", "train", cropped)
        done = documented(
            lambda: crops.write_crops(whole, cropped, processes=1, progress=False),
            ValueError,
        )
        assert (done is None) == (path.read_bytes() == content)
    else:
        assert path.read_bytes() == content
    assert data is None or json.loads(content)["items"] == 2


# ------------------------------------------------------------------- tiles, region maps


@pytest.fixture(scope="module")
def tile(tmp_path_factory):
    """Image and label file of a tile, small, whole."""
    root = make_tiles(tmp_path_factory.mktemp("tiles"), TILES[:1])
    return [next(root.rglob(f"*_{end}.tif")).read_bytes() for end in ("RGBIR", "label")]


@given(data=st.data(), which=st.integers(0, 1))
@fewer(4)
def test_damaged_tiles(data, which, tile, tmp_path):
    contents = list(tile)
    contents[which] = data.draw(damaged(contents[which][-3000:]) | damaged(tile[which]))
    paths = [tmp_path / "tile-image.tif", tmp_path / "tile-label.tif"]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    target = tmp_path / "out"
    shutil.rmtree(target, ignore_errors=True)
    for kind in ("imgs", "gt"):
        (target / kind).mkdir(parents=True)
    names = documented(
        lambda: cut_tile(target, (TILES[0], *paths)), OSError, ValueError
    )
    left = sorted(p.name for p in target.rglob("*.*"))
    assert all(name.endswith(".png") for name in left)
    assert names is None or len(left) == 2 * len(names)


@given(tree=TREES)
def test_any_folder_of_region_maps(tree, tmp_path):
    root, pictures = tmp_path / "maps", tmp_path / "set"
    plant(root, tree)
    plant(pictures, {("", "a", ".png"): 0, ("", "ü", ".png"): 0})
    data = datasets.load("folder", "train", pictures)
    files = documented(
        lambda: region_files.released(root, data), ValueError, FileNotFoundError
    )
    for i in range(len(files or ())):
        ids = documented(lambda: files.read(i), ValueError)  # noqa: B023
        assert ids is None or ids.min() == 0


@given(
    name=st.sampled_from([*datasets.names(), "no such set"]),
    split=st.sampled_from(["train", "val", "trainaug", "", "\0", "../x"]),
    root=st.sampled_from(["", "nowhere", "a\0b", "x" * 300, "file.txt", "~nobody0/x"]),
)
def test_roots_that_are_none(name, split, root, tmp_path, monkeypatch):
    """Names of folders that are absent, too long, or no names at all."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    if not datasets.DATASETS.get(name) or not name.startswith("scenes"):
        found = documented(
            lambda: datasets.load(name, split, root), OSError, ValueError
        )
        assert found is None
    documented(lambda: datasets.check(name, root), ValueError, OSError)
    documented(lambda: photo_files.find(root), OSError, ValueError)


def test_every_set_of_files_is_here():
    stored = set(datasets.names()) - {"scenes", "scenes-aerial"}
    assert stored == {*OPENED, "folder", "potsdam3-tiles"}
    assert camvid.SPLITS and coco.SPLITS
