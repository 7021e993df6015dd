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


def test_photographs_are_jpeg_and_charts_png(tmp_path):
    figure = figures.new_figure(2, 2)
    ax = figures.new_axes(figure)[0, 0]
    assert figures.picture(figure)[0] == "png"
    ax.imshow(np.zeros((4, 4, 3)))
    kind, data = figures.picture(figure)
    assert kind == "jpeg"
    (tmp_path / "a").write_bytes(data)
    assert Image.open(tmp_path / "a").format == "JPEG"
