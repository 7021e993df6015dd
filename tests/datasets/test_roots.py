"""Finding stored sets and their files."""

import pytest

from uss_utils.datasets import roots


def test_the_most_direct_place_wins(tmp_path):
    options = {"names": ("set", "Set"), "places": ("a/b",), "holds": ("x", "y")}
    options["advice"] = "Get it."
    with pytest.raises(
        FileNotFoundError, match=r"no Toy at .* folders x/, y/\. Get it"
    ):
        roots.find_root("Toy", tmp_path, **options)
    for place in ("a/b", "Set", "set", ""):
        (tmp_path / place / "y").mkdir(parents=True)
        assert roots.find_root("Toy", str(tmp_path), **options) == tmp_path / place
    with pytest.raises(
        FileNotFoundError, match="no Toy at .*/no: it is absent or lacks"
    ):
        roots.find_root("Toy", tmp_path / "no", **options)


def test_home_and_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USS_DATA", str(tmp_path / "data"))
    assert roots.expected_root("~/x", "set") == tmp_path / "x"
    assert roots.expected_root(None, "set") == tmp_path / "data" / "set"


def test_files_of_a_folder(tmp_path):
    for name, text in (("a.png", "x"), ("b.png", ""), ("._a.png", "x"), ("c.jpg", "x")):
        (tmp_path / name).write_text(text)
    assert roots.listed(tmp_path, ".png") == {"a", "b"}
    assert roots.written(tmp_path, ".png") == {"a"}
    assert roots.listed(tmp_path / "none", ".png") == set()
    found = roots.listed_files("files", tmp_path, ["b", "a"], ".png", "Look.")
    assert [path.name for path in found] == ["b.png", "a.png"]
    with pytest.raises(
        FileNotFoundError, match=r"2 of 3 files are missing, .*d.png\. Lo"
    ):
        roots.listed_files("files", tmp_path, ["a", "d", "c"], ".png", "Look.")
