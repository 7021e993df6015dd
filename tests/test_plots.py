import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from uss_utils import figures, plots
from uss_utils.datasets.transforms import normalise
from uss_utils.environment import generator
from uss_utils.metrics import Confusion

PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
CLASSES = ("road", "sky", "car")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def pixels(figure):
    return Image.open(io.BytesIO(figures.picture(figure)[1]))


class TestColours:
    def test_colourise(self):
        label = torch.tensor([[0, 2], [-1, 1]])
        found = plots.colourise(label, PALETTE)
        assert found.dtype == np.uint8
        grey = [128, 128, 128]
        assert found.tolist() == [[[255, 0, 0], [0, 0, 255]], [grey, [0, 255, 0]]]
        assert plots.colourise(label[None], PALETTE).shape == (1, 2, 2, 3)

    @pytest.mark.parametrize("bad", [3, -2])
    def test_colourise_refuses_classes_without_colour(self, bad):
        with pytest.raises(ValueError, match="palette has 3 colours"):
            plots.colourise(np.array([[0, bad]]), PALETTE)

    def test_colourise_refuses_probabilities(self):
        with pytest.raises(ValueError, match="must be integers"):
            plots.colourise(np.array([[0.5]]), PALETTE)

    def test_to_rgb_of_every_form_is_the_same_picture(self, image):
        forms = [
            image,
            torch.from_numpy(image),
            torch.from_numpy(image).movedim(-1, 0),
            image / 255,
            normalise(image),
            normalise(image).numpy(),
            Image.fromarray(image),
        ]
        for form in forms:
            assert np.array_equal(plots.to_rgb(form), image)

    def test_to_rgb_refuses_other_shapes(self):
        with pytest.raises(ValueError, match=r"got shape \(4, 5\)"):
            plots.to_rgb(np.zeros((4, 5)))

    def test_overlay_leaves_ignored_pixels_alone(self, image):
        label = np.full((8, 12), -1)
        label[:4] = 1
        found = plots.overlay(image, label, PALETTE, alpha=0.25)
        assert np.array_equal(found[4:], image[4:])
        expected = np.rint(0.75 * image[:4] + 0.25 * PALETTE[1])
        assert np.array_equal(found[:4], expected)
        with pytest.raises(ValueError, match="image is"):
            plots.overlay(image, label[:3], PALETTE)


class TestPcaRgb:
    def test_shape_range_and_shared_basis(self):
        feat = torch.randn(2, 5, 4, 6, generator=generator(0))
        feat[1] = feat[0]
        rgb = plots.pca_rgb(feat)
        assert rgb.shape == (2, 4, 6, 3)
        assert rgb.min() == 0 and rgb.max() == 1
        assert np.array_equal(rgb[0], rgb[1])
        assert plots.pca_rgb(feat[0]).shape == (4, 6, 3)

    def test_red_follows_the_main_direction(self):
        g = generator(1)
        direction = torch.randn(16, generator=g)
        amount = torch.rand(8, 8, generator=g)
        noise = 0.01 * torch.randn(16, 8, 8, generator=g)
        red = plots.pca_rgb(direction[:, None, None] * amount + noise)[..., 0]
        correlation = np.corrcoef(red.ravel(), amount.ravel())[0, 1]
        assert abs(correlation) > 0.99

    def test_rotating_features_keeps_colours_up_to_sign(self):
        feat = torch.randn(6, 8, 8, generator=generator(2), dtype=torch.float64)
        feat = feat * torch.tensor([9.0, 5, 3, 1, 1, 1])[:, None, None]
        rotation = torch.linalg.qr(
            torch.randn(6, 6, generator=generator(3), dtype=torch.float64)
        ).Q
        one = plots.pca_rgb(feat)
        two = plots.pca_rgb(torch.einsum("dc,chw->dhw", rotation, feat))
        for k in range(3):
            same = np.allclose(one[..., k], two[..., k])
            mirrored = np.allclose(one[..., k], 1 - two[..., k])
            assert same or mirrored

    def test_colours_like_those_of_other_features(self):
        rows = torch.randn(128, 6, generator=generator(2), dtype=torch.float64)
        rows = torch.linalg.qr(rows - rows.mean(0)).Q  # uncorrelated channels
        feat = rows.T.unflatten(1, (2, 8, 8)).movedim(1, 0)
        one = plots.pca_rgb(feat * torch.tensor([9, 5, 3, 1, 1, 1])[:, None, None])
        # The same three directions, in another order and some turned round.
        other = feat * torch.tensor([-5, 3, -9, 1, 1, 1])[:, None, None]
        assert not np.allclose(plots.pca_rgb(other), one)
        np.testing.assert_allclose(plots.pca_rgb(other, like=one), one)
        assert np.all(plots.pca_rgb(torch.ones(2, 4, 8, 8), like=one) == 0.5)
        with pytest.raises(ValueError, match="belong to other patches than"):
            plots.pca_rgb(feat[:1], like=one)

    def test_few_or_constant_channels(self):
        assert plots.pca_rgb(torch.rand(1, 3, 3)).shape == (3, 3, 3)
        assert np.all(plots.pca_rgb(torch.ones(4, 3, 3)) == 0.5)
        with pytest.raises(ValueError, match="expected"):
            plots.pca_rgb(torch.ones(3, 3))


class TestShowRow:
    def test_columns_and_titles(self, image):
        label = np.zeros((8, 12), dtype=np.int64)
        figure = plots.show_row(
            image=image,
            k_means=label,
            heat=label / 2,
            palette=PALETTE,
            classes=CLASSES,
            titles={"heat": "how sure"},
        )
        titles = [ax.get_title() for ax in figure.axes]
        assert titles == ["image", "k means", "how sure"]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == list(CLASSES)

    def test_drawn_colours_are_the_palette(self):
        label = np.array([[0, 1], [2, -1]])
        drawn = plots.show_row(truth=label, palette=PALETTE).axes[0].images[0]
        assert np.array_equal(drawn.get_array(), plots.colourise(label, PALETTE))

    @pytest.mark.parametrize(
        ("value", "rows"),
        [
            (torch.zeros(2, 3, 8, 8), 2),
            (torch.zeros(3, 8, 8), 1),
            (torch.zeros(3, 8, 8, dtype=torch.int64), 3),
            (torch.zeros(5, 8, 8), 5),
            (torch.zeros(8, 8, 3, dtype=torch.uint8), 1),
            (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), 4),
            ([torch.zeros(8, 8)] * 2, 2),
        ],
    )
    def test_batches_become_rows(self, value, rows):
        assert len(plots.show_row(x=value).axes) == rows

    def test_figure_is_narrow_enough_and_light(self, image):
        photo = np.kron(image, np.ones((16, 16, 1), dtype=np.uint8))
        photo[:, :, 0] += np.arange(12 * 16, dtype=np.uint8)
        figure = plots.show_row(**{f"p{i}": [photo] * 2 for i in range(6)})
        assert figure.get_figwidth() <= 9
        kind, data = figures.picture(figure)
        assert kind == "jpeg"
        assert len(data) < 150_000
        assert pixels(figure).width <= 9 * 72

    def test_bad_input(self, image):
        with pytest.raises(ValueError, match="at least one picture"):
            plots.show_row(palette=PALETTE)
        with pytest.raises(ValueError, match="different numbers"):
            plots.show_row(a=[image] * 2, b=image)
        with pytest.raises(ValueError, match="3 classes, but 2 colours"):
            plots.show_row(a=image, classes=CLASSES, palette=PALETTE[:2])


class TestCharts:
    def test_legend(self):
        figure = plots.legend(CLASSES, PALETTE)
        handles = figure.legends[0].get_patches()
        assert np.allclose(handles[1].get_facecolor(), (0, 1, 0, 1))

    def test_confusion_shows_shares_of_each_class(self):
        matrix = torch.tensor([[6, 1, 0], [2, 3, 0], [0, 0, 0]])
        ax = plots.confusion(matrix, CLASSES, title="t").axes[0]
        shown = [text.get_text() for text in ax.texts]
        assert shown[:2] == ["0.75", "0.25"]
        assert [t.get_text() for t in ax.get_yticklabels()] == list(CLASSES)

    def test_confusion_with_more_clusters_than_classes(self):
        ax = plots.confusion(np.ones((5, 3)), CLASSES).axes[0]
        assert [t.get_text() for t in ax.get_yticklabels()] == list("01234")
        with pytest.raises(ValueError, match="3 columns"):
            plots.confusion(np.ones((3, 5)), CLASSES)

    def test_curves_of_rows_and_of_series(self):
        rows = [{"step": 10 * i, "loss": 1 / (i + 1), "note": "x"} for i in range(5)]
        (ax,) = plots.curves(rows).axes
        assert ax.get_title() == "loss"
        assert ax.lines[0].get_xdata().tolist() == [0, 10, 20, 30, 40]
        assert len(plots.curves({"a": [1, 2], "b": [2, 3]}, smooth=2).axes) == 2
        low, high = plots.curves({"a": [0, 1], "b": [0, 9]}, one_scale=True).axes
        assert low.get_ylim() == high.get_ylim() and high.get_ylim()[1] > 9
        with pytest.raises(ValueError, match="no curve named los; there are: loss"):
            plots.curves(rows, ["los"])
        with pytest.raises(ValueError, match="there are: none"):
            plots.curves([])

    def test_the_moving_average_stands_in_the_middle_of_its_window(self):
        raw, mean = plots.curves({"a": [0.0, 1, 2, 3, 4]}, smooth=3).axes[0].lines
        assert np.array_equal(mean.get_xdata(), raw.get_xdata()[1:4])
        assert np.allclose(mean.get_ydata(), [1, 2, 3])

    def test_heatmap_marks_the_queried_patch(self, image):
        figure = plots.heatmap_on(image, np.random.rand(2, 3), (1, 2))  # noqa: NPY002
        box = figure.axes[0].patches[0]
        assert (box.get_x(), box.get_y()) == (7.5, 3.5)
        assert (box.get_width(), box.get_height()) == (4, 4)

    def test_correspondences_mark_the_patch_and_stretch_the_maps(self, image):
        values = np.arange(6.0).reshape(2, 3)
        maps = {"here": (image, values), "elsewhere": (image[:4, :6], values)}
        figure = plots.correspondences(image, (1, 2), (2, 3), maps)
        first, here, elsewhere = figure.axes
        box = first.patches[0]
        assert (box.get_x(), box.get_y(), box.get_width()) == (7.5, 3.5, 4)
        assert [ax.get_title() for ax in (here, elsewhere)] == ["here", "elsewhere"]
        heat = elsewhere.images[1]
        assert heat.get_extent() == [-0.5, 5.5, 3.5, -0.5]
        assert heat.get_array().tolist() == values.tolist()
        assert figure.get_figwidth() <= figures.WIDTH
        with pytest.raises(ValueError, match="at least one map"):
            plots.correspondences(image, (1, 2), (2, 3), {})

    def test_similarities_share_one_scale(self):
        small, large = np.eye(3), 2 * np.eye(3)
        small[2], large[0, 1] = np.nan, -0.0
        figure = plots.similarities({"a": small, "b": large}, CLASSES)
        left, right = figure.axes
        assert (left.get_title(), right.get_title()) == ("a", "b")
        assert left.collections[0].get_clim() == right.collections[0].get_clim()
        assert left.collections[0].get_clim() == (0, 2)
        assert [text.get_text() for text in right.texts[:2]] == ["2.00", "0.00"]
        names = [text.get_text() for text in left.get_yticklabels()]
        assert names == list(CLASSES)

    @pytest.mark.parametrize("tables", [{}, {"a": np.ones((3, 2))}])
    def test_similarities_refuses_other_tables(self, tables):
        with pytest.raises(ValueError, match="expected tables of 3 by 3"):
            plots.similarities(tables, CLASSES)

    def test_bar_ladder_prints_mean_and_spread(self):
        figure = plots.bar_ladder({"a": [1.0, 2.0, 3.0], "b": 5.0}, highlight="b")
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert texts == ["2.0 ± 1.0", "5.0"]

    def test_bar_ladder_shows_every_seed(self):
        figure = plots.bar_ladder({"a": [1.0, 2.0, 3.0], "b": 5.0})
        (dots,) = [x for x in figure.axes[0].lines if x.get_marker() == "o"]
        assert dots.get_xydata().tolist() == [[1, 0], [2, 0], [3, 0]]

    def test_iou_bars(self):
        figure = plots.iou_bars({"a": [0.1, None, 0.3], "b": [0.2, 0.2, 0.2]}, CLASSES)
        ax = figure.axes[0]
        assert [t.get_text() for t in ax.texts] == ["absent"]
        assert len(ax.patches) == 6
        with pytest.raises(ValueError, match="expected 3 values"):
            plots.iou_bars([0.1], CLASSES)

    def test_iou_bars_of_scores(self):
        scores = Confusion.from_matrix(torch.tensor([[2, 0, 0], [0, 1, 0], [2, 0, 0]]))
        figure = plots.iou_bars({"a": scores.scores("identity")}, CLASSES)
        assert [bar.get_height() for bar in figure.axes[0].patches] == [50, 100, 0]

    def test_class_bands_fill_every_row(self):
        counts = torch.tensor([[2, 2, 0], [1, 1, 2], [0, 0, 0]])
        figure = plots.class_bands({"a": counts, "b": counts}, CLASSES, PALETTE)
        left, right = figure.axes
        assert (left.get_title(), right.get_title()) == ("a", "b")
        ends = [band.get_paths()[0].vertices[:, 0].max() for band in left.collections]
        assert ends == [50, 100, 100]
        assert len(figure.legends[0].get_texts()) == 3

    @pytest.mark.parametrize("tables", [{}, {"a": np.ones((4, 2))}])
    def test_class_bands_refuses_other_tables(self, tables):
        with pytest.raises(ValueError, match="expected tables with 3 columns"):
            plots.class_bands(tables, CLASSES, PALETTE)

    def test_point_groups_colours_points_by_cluster(self):
        x = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        state = (np.array([0, 1, 0]), np.array([[0.0, 0.5], [1.0, 1.0]]))
        figure = plots.point_groups(x, {"start": state, "end": state})
        assert [ax.get_title() for ax in figure.axes] == ["start", "end"]
        points, centroids = figure.axes[0].collections
        colour = points.get_facecolors()
        assert (colour[0] == colour[2]).all()
        assert (colour[:2] == centroids.get_facecolors()).all()
        with pytest.raises(ValueError, match="at least one panel"):
            plots.point_groups(x, {})


class TestMeanColours:
    def test_squares(self):
        images = [np.full((2, 2, 3), 10, np.uint8), np.full((2, 2, 3), 20, np.uint8)]
        images[1][0, 0] = 40
        labels = torch.tensor([[[0, 0], [0, -1]], [[1, 1], [2, 2]]])
        figure = plots.mean_colours(images, labels, CLASSES)
        shown = figure.axes[0].images[0].get_array()[..., 0]
        assert shown.tolist() == [[10, 255], [255, 30], [255, 20]]
        crosses = [text.get_position() for text in figure.axes[0].texts]
        assert crosses == [(1, 0), (0, 1), (0, 2)]
        names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert names == list(CLASSES)


class TestWindowWeights:
    def test_windows_beside_their_weights(self, image):
        weights = torch.arange(4 * 6 * 9.0).reshape(4, 6, 9)
        figure = plots.window_weights(image, weights, {"a": (1, 2), "b": (0, 0)})
        *small, whole = figure.axes
        assert len(whole.patches) == 2
        crops, glyphs = small[:2], small[2:]
        assert [ax.get_title() for ax in crops] == ["a", "b"]
        assert crops[0].get_xlim() == (1.5, 7.5)  # patches are 2 x 2 pixels
        assert crops[0].get_ylim() == (5.5, -0.5)
        for ax, place in zip(glyphs, ((1, 2), (0, 0)), strict=True):
            shown = ax.images[0]
            assert shown.get_array().ravel().tolist() == weights[place].tolist()
            assert shown.get_clim() == (0, float(weights[1, 2].max()))

    def test_bad_input(self, image):
        with pytest.raises(ValueError, match="at least one place, got .* 0 places"):
            plots.window_weights(image, torch.ones(4, 6, 9), {})
        with pytest.raises(ValueError, match=r"\(h, w, 9\)"):
            plots.window_weights(image, torch.ones(24, 9), {"a": (0, 0)})


class TestStyle:
    def test_charts_and_label_maps_are_png_and_photographs_jpeg(self, image):
        labels = {"truth": [image[..., 0] % 3] * 3, "found": [image[..., 1] % 3] * 3}
        for figure in (plots.bar_ladder({"a": 1}), plots.show_row(**labels)):
            assert figures.picture(figure)[0] == "png"
        photo = np.concatenate([image, image[::-1] // 2, image // 3])
        assert figures.picture(plots.show_row(a=photo))[0] == "jpeg"

    def test_same_figure_same_bytes(self, image):
        one, two = (figures.picture(plots.show_row(a=image)) for _ in range(2))
        assert one == two

    def test_importing_changes_nothing_and_needs_no_screen(self):
        code = (
            "import matplotlib; before = dict(matplotlib.rcParams);"
            "import uss_utils.plots as p, numpy as np;"
            "import matplotlib.pyplot as plt;"
            "p.show_row(a=np.zeros((4, 4, 3)));"
            "assert not plt.get_fignums(), 'a figure stayed open';"
            "changed = {k for k, v in before.items() if matplotlib.rcParams[k] != v};"
            "assert changed <= {'backend', 'backend_fallback'}, changed;"
            "p.use_notebook_style(); assert matplotlib.rcParams['figure.dpi'] == 72"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
