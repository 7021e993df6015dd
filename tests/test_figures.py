import io

import numpy as np
import pytest
from PIL import Image

from uss_utils import figures
from uss_utils.datasets.labels import CLASS_NAMES, palette


def drawn(name, width):
    figure = figures.new_figure(width, 1.5)
    figures.draw_legend(figure, CLASS_NAMES[name], palette(name))
    figure.canvas.draw()
    return figure, figure.legends[0]


class TestLegend:
    @pytest.mark.parametrize("name", ["scenes", "scenes-aerial", "camvid11"])
    @pytest.mark.parametrize("width", [figures.WIDTH, 5.2, 2.6])
    def test_fits_into_the_figure(self, name, width):
        figure, legend = drawn(name, width)
        assert legend.get_window_extent().width <= figure.bbox.width
        assert [t.get_text() for t in legend.get_texts()] == list(CLASS_NAMES[name])

    def test_no_name_is_left_alone_below_the_others(self):
        _, wide = drawn("scenes", figures.WIDTH)
        assert wide._ncols == 7
        _, narrow = drawn("scenes", 5.2)
        assert narrow._ncols == 4

    def test_too_few_colours(self):
        with pytest.raises(ValueError, match="3 classes, but 2 colours"):
            figures.draw_legend(figures.new_figure(3, 2), "abc", np.zeros((2, 3)))


def stored(picture):
    """Kind and opened file of a figure that shows a picture, or none."""
    figure = figures.new_figure(2, 2)
    ax = figures.new_axes(figure)[0, 0]
    if picture is not None:
        ax.imshow(picture)
    kind, data = figures.picture(figure)
    return kind, Image.open(io.BytesIO(data))


GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
FLOATS = np.stack([GREYS / 255] * 3, -1)


@pytest.mark.parametrize(
    ("picture", "format"),
    [
        (None, "PNG"),
        (np.zeros((4, 4, 3)), "PNG"),
        (GREYS, "PNG"),
        (FLOATS, "PNG"),
        (np.arange(300.0).reshape(15, 20), "JPEG"),
        (np.concatenate([FLOATS, FLOATS * [1, 1, 0.5]]), "JPEG"),
        (np.concatenate([FLOATS, FLOATS * [1, 1, 0]]) * 255 // 1 / 255, "JPEG"),
    ],
)
def test_pictures_of_many_colours_are_jpeg_all_others_png(picture, format):
    kind, found = stored(picture)
    assert (kind, found.format) == (format.lower(), format)


def test_a_palette_keeps_colours_exactly():
    colours = np.array([[230, 159, 0], [86, 180, 233], [0, 158, 115]], np.uint8)
    _, found = stored(colours[None].repeat(8, 0))
    assert found.mode == "P"
    kept = {colour for _, colour in found.convert("RGB").getcolors()}
    assert kept >= {tuple(map(int, colour)) for colour in colours}
