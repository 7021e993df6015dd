import numpy as np
import pytest
from PIL import Image

from uss_utils import photo_examples
from uss_utils.datasets.files import read_ids, read_image
from uss_utils.datasets.scenes import STREET_CLASSES
from uss_utils.pictures import list_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photo_examples.write(tmp_path_factory.mktemp("photos"), 24, labels=24)


def test_good_ones_are_read_and_broken_ones_are_not(folder):
    files = list_pictures(folder / "imgs")
    assert len(files) == 24 + len(photo_examples.BROKEN)
    for path in files:
        if path.name in photo_examples.BROKEN:
            with pytest.raises(OSError, match="cannot read"):
                read_image(path)
        else:
            assert read_image(path).ndim == 3


def test_all_kinds_occur(folder):
    images = [
        Image.open(p) for p in sorted((folder / "imgs").iterdir()) if "photo" in p.name
    ]
    assert {image.mode for image in images} == {"RGB", "L", "RGBA", "I;16", "P"}
    assert {image.format for image in images} == {"JPEG", "PNG", "TIFF"}
    assert {image.getexif().get(274, 1) for image in images} == {1, 3, 6}
    assert len({image.size for image in images}) > 5
    assert max(max(image.size) for image in images) > 600


def test_kinds_are_called_what_they_are(folder):
    kinds = {"grey": "L", "transparent": "RGBA", "16 bits": "I;16", "palette": "P"}
    for path in (folder / "imgs").glob("photo_*"):
        with Image.open(path) as image:
            mode, turn = image.mode, image.getexif().get(274, 1)
        kind = photo_examples.kind_of(int(path.stem[-3:]))
        assert mode == kinds.get(kind, "RGB")
        assert turn == {"turned": 6, "upside down": 3}.get(kind, 1)
    assert [photo_examples.kind_of(i) for i in range(3)] == ["plain", "plain", "turned"]


def test_labels_lie_on_the_upright_pictures(folder):
    wrong = 0
    for path in list_pictures(folder / "labels"):
        ids = read_ids(path)
        (image,) = (folder / "imgs").glob(path.stem + ".*")
        pixels = read_image(image)
        assert ids.shape == pixels.shape[:2]
        assert ids[ids != 255].max() < len(STREET_CLASSES)
        # The sky is above in every upright street.
        rows = np.nonzero(ids == STREET_CLASSES.index("sky"))[0]
        wrong += rows.size > 0 and rows.mean() > 0.6 * len(ids)
    assert wrong == 0
    assert (folder / "classes.txt").read_text().split("\n") == list(STREET_CLASSES)


def test_same_arguments_same_bytes(tmp_path):
    first, again = (photo_examples.write(tmp_path / name, 9) for name in "ab")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert len(names) == 12
    assert all((first / n).read_bytes() == (again / n).read_bytes() for n in names)


def test_bad_numbers(tmp_path):
    with pytest.raises(ValueError, match="3 pictures with 4 labels"):
        photo_examples.write(tmp_path, 3, labels=4)
