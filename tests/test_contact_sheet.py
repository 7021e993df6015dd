import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from PIL import Image

from tests.models import grey_model
from tests.photo_kinds import street
from uss_utils import contact_sheet
from uss_utils.photo_folder import segment_folder

NASTY = "<b>bold & \"quoted\" 'name' #1 50%.png"


class Page(HTMLParser):
    """Links, pictures and visible text; unclosed elements are counted."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.images, self.words, self.depth = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "a":
            self.links.append(found["href"])
        if tag == "img":
            self.images.append(found)
        self.depth += tag not in ("img", "meta")

    def handle_endtag(self, tag):
        self.depth -= 1

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheet") / "<i>my photos"
    folder.mkdir()
    for k, name in enumerate((NASTY, "zwei Wörter 東京.jpg", "plain.jpg")):
        Image.fromarray(street(k)).save(folder / name)
    (folder / "<script>bad.jpg").write_bytes(b"<script>alert(1)</script>")
    return segment_folder(grey_model(classes=()), folder, folder.parent / "out")


@pytest.fixture(scope="module")
def page(result):
    return Page(result.page.read_text(encoding="utf-8"))


def test_every_link_and_picture_is_there(result, page):
    places = page.links + [image["src"] for image in page.images]
    assert len(page.images) == 3 and len(places) > 9
    for place in places:
        assert not re.match(r"[a-z]+:|/", place), place  # works where it is moved to
        if place.startswith("#"):
            assert f'id="{place[1:]}"' in result.page.read_text(encoding="utf-8")
        else:
            assert (result.out / unquote(place)).is_file(), place


def test_thumbnails_are_light_and_wait(result, page):
    assert all(image["loading"] == "lazy" for image in page.images)
    for file in (result.out / "thumbs").iterdir():
        assert file.stat().st_size < 30_000


def test_names_are_escaped(result, page):
    text = result.page.read_text(encoding="utf-8")
    assert page.depth == 0
    assert "<script" not in text and "<b>bold" not in text and "<i>my" not in text
    assert NASTY in page.words and "<script>bad.jpg" in page.words
    assert "<i>my photos, segmented" in page.words


def test_shares_legend_reasons_and_numbers(result, page):
    text = " ".join(page.words)
    assert "3 pictures" in text and "1 file skipped" in text
    assert "no picture, or its beginning is damaged" in text
    assert "usage entropy" in text and "evenness of the clusters" in text
    colours = [row["colour"] for row in result.summary["legend"]]
    html = result.page.read_text(encoding="utf-8")
    assert all(colour in html for colour in colours)
    for row in result.summary["pictures"].values():
        k, share = max(row["shares"].items(), key=lambda item: item[1])
        assert f"cluster {k} {share:.0%}" in text


def small(**changes) -> dict:
    """A summary as small as can be."""
    model = {"method": "m", "preset": "p", "backbone": "b", "clusters": 2}
    shares = {"0": 0.7, "-1": 0.3}
    picture = {"file": "a.jpg", "height": 2, "width": 3, "shares": shares}
    return {
        "folder": "f",
        "model": model | {"untrained": False},
        "settings": {"crf": False, "max_side": 512},
        "legend": [
            {"id": 0, "name": "sky", "colour": "#010203"},
            {"id": 1, "name": "<sea>", "colour": "#040506"},
        ],
        "shares": shares,
        "pictures": {"a": picture},
        "skipped": {},
    } | changes


def test_parts_that_are_not_there_are_left_out():
    text = contact_sheet.page(small())
    assert "Skipped" not in text and "Numbers" not in text and "Untrained" not in text
    assert "1 picture." in text and "no class 30%" in text
    assert "nowhere: &lt;sea&gt;" in text


def test_scores_and_why_there_are_none():
    record = {"headline": {"cluster_miou": 24.24, "linear_miou": None}}
    record["protocol"] = {"line": "fitted <somewhere>"}
    text = contact_sheet.page(small(record=record))
    assert "cluster mIoU" in text and "24.2 %" in text and "linear mIoU" not in text
    assert "fitted &lt;somewhere&gt;" in text
    text = contact_sheet.page(small(not_scored="other <classes>"))
    assert "Not scored: other &lt;classes&gt;" in text


def test_untrained_weights_are_no_secret():
    model = small()["model"] | {"untrained": True}
    assert "this means nothing" in contact_sheet.page(small(model=model))


def test_an_unwritable_place(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match=r"could not write .*index.html"):
        contact_sheet.write(tmp_path / "out", small())


def test_thousands_of_pictures_make_a_light_page():
    picture = small()["pictures"]["a"]
    pictures = {f"{k:04}": picture for k in range(2000)}
    assert len(contact_sheet.page(small(pictures=pictures))) < 2_000_000
