import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch

from uss_utils import diagrams
from uss_utils.figures import WIDTH
from uss_utils.paths import notebooks_dir


def words(figure):
    (ax,) = figure.axes
    return {text.get_text(): text for text in ax.texts}


class TestCourseMap:
    def test_names_stations_arrows_and_notebooks(self):
        figure = diagrams.course_map()
        listed = {f"{n} {title}" for n, title in diagrams.NOTEBOOKS.items()}
        assert listed | {*diagrams.STATIONS, *diagrams.ARROWS} <= set(words(figure))
        assert figure.get_figwidth() <= WIDTH

    def test_knows_every_notebook_of_this_repository(self):
        stems = {path.stem for path in notebooks_dir().glob("[0-9]*.ipynb")}
        titles = {f"{n} {title}" for n, title in diagrams.NOTEBOOKS.items()}
        assert {stem.replace("_", " ").lower() for stem in stems} <= {
            title.replace("-", " ").lower() for title in titles
        }

    def test_only_notebooks_that_exist_are_solid(self, monkeypatch, tmp_path):
        (tmp_path / "01_datasets.ipynb").touch()
        monkeypatch.setattr(diagrams, "notebooks_dir", lambda: tmp_path)
        found = words(diagrams.course_map())
        assert found["01 datasets"].get_color() == "white"
        assert found["02 dense features"].get_color() != "white"
        (ax,) = diagrams.course_map().axes
        dashed = [p for p in ax.patches if p.get_linestyle() == "dashed"]
        # All but one notebook, and the sample in the legend.
        assert len(dashed) == len(diagrams.NOTEBOOKS) - 1 + 1

    def test_marks_the_reader(self):
        assert "04 STEGO: you are here" in words(diagrams.course_map(here="04"))
        # In short where the box is too narrow.
        assert "02 dense features: here" in words(diagrams.course_map(here="02"))

    @pytest.mark.parametrize("here", diagrams.NOTEBOOKS)
    def test_every_name_fits_into_its_box(self, here):
        figure = diagrams.course_map(here=here)
        figure.draw_without_rendering()
        (ax,) = figure.axes
        boxes = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]
        boxes = [box.get_window_extent() for box in boxes]
        names = [t for t in ax.texts if t.get_text()[:2] in diagrams.NOTEBOOKS]
        assert len(names) == len(diagrams.NOTEBOOKS)
        for name in names:
            text = name.get_window_extent()
            assert any(
                box.x0 <= text.x0 and text.x1 <= box.x1 and box.y0 < text.y1 < box.y1
                for box in boxes
            )

    def test_shows_pictures_and_words(self):
        wide = np.zeros((40, 80, 3), dtype=np.uint8)
        figure = diagrams.course_map({"images": wide, "code": "not yet"})
        (ax,) = figure.axes
        (shown,) = ax.images
        assert shown.get_array().shape == (40, 40, 3)  # the central square
        assert "not yet" in words(figure)

    @pytest.mark.parametrize(
        ("given", "name"),
        [({"pictures": {"labels": ""}}, "labels"), ({"here": "7"}, 7)],
    )
    def test_refuses_what_is_not_on_it(self, given, name):
        with pytest.raises(
            ValueError, match=f"'{name}' is not on the map; stations: im"
        ):
            diagrams.course_map(**given)


class TestOnePatch:
    def test_shows_the_patch_and_all_its_numbers(self):
        image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        feature = np.arange(12.0)
        figure = diagrams.one_patch(image, 8, (1, 5), feature)
        left, middle, right = figure.axes[:3]
        assert left.get_title() == "4 × 6 patches, one marked"
        assert np.array_equal(middle.images[0].get_array(), image[8:16, 40:48])
        assert right.images[0].get_array().shape == (3, 4)
        assert right.images[0].get_array().compressed().tolist() == feature.tolist()
        assert right.get_title() == "its feature: 12 numbers"

    def test_a_prime_number_of_channels(self):
        figure = diagrams.one_patch(np.zeros((8, 8, 3)), 8, (0, 0), np.zeros(7))
        assert figure.axes[2].images[0].get_array().shape == (1, 7)

    @pytest.mark.parametrize("place", [(4, 0), (0, 6), (-1, 0)])
    def test_a_place_outside(self, place):
        with pytest.raises(ValueError, match="outside the grid of \\(4, 6\\) patches"):
            diagrams.one_patch(np.zeros((32, 48, 3)), 8, place, np.zeros(4))


class TestTwoViews:
    IMAGE = np.zeros((40, 60, 3), dtype=np.uint8)
    VIEW = np.zeros((8, 8, 3), dtype=np.uint8)
    BOXES = (np.array([10.0, 5, 20, 20]), np.array([30.0, 10, 16, 16]))

    def draw(self, first, second):
        views = self.VIEW, self.VIEW
        return diagrams.two_views(self.IMAGE, self.BOXES, views, (first, second))

    def test_windows_and_points(self):
        first = np.array([[-1.0, -1.0], [0.0, 0.0]])
        second = np.array([[0.0, 0.5], [1.0, 1.0]])
        figure = self.draw(first, second)
        whole, left, right = figure.axes
        boxes = [(b.get_x(), b.get_y(), b.get_width()) for b in whole.patches]
        assert boxes == [(9.5, 4.5, 20), (29.5, 9.5, 16)]
        # -1 and 1 are the edges of a view, half a pixel outside of its outer centres.
        assert left.collections[0].get_offsets().tolist() == [[-0.5, -0.5], [3.5, 3.5]]
        assert right.collections[0].get_offsets().tolist() == [[3.5, 5.5], [7.5, 7.5]]
        lines = figure.artists
        assert [(line.xy1[0], line.xy2[1]) for line in lines] == [
            (-0.5, 5.5),
            (3.5, 7.5),
        ]

    def test_no_pair_is_a_picture_too(self):
        figure = self.draw(np.zeros((0, 2)), np.zeros((0, 2)))
        assert len(figure.axes) == 3

    def test_refuses_unequal_lists(self):
        with pytest.raises(ValueError, match=r"got \(3, 2\) and \(2, 2\)"):
            self.draw(np.zeros((3, 2)), np.zeros((2, 2)))
