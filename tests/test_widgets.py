import ipywidgets
import numpy as np
import pytest

from uss_utils import plots, widgets


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, and what the displayed figure was replaced with."""
    calls = []

    class Handle:
        def update(self, figure):
            calls.append(("update", figure))

    def display(thing, display_id=False):
        calls.append(("display", thing))
        return Handle() if display_id else None

    monkeypatch.setattr(widgets, "display", display)
    return calls


def draw(k=3, name="a"):
    print("drawing", k)
    if k == 0:
        raise ValueError("k must be positive")
    return plots.bar_ladder({name: k})


def bar(figure):
    return figure.axes[0].patches[0].get_width()


def text(explorer):
    return "".join(output["text"] for output in explorer.messages.outputs)


class TestExplore:
    def test_first_figure_is_a_plain_output(self, shown):
        explorer = widgets.explore(draw, k=(0, 9), name=["a", "b"])
        assert explorer.values() == {"k": 3, "name": "a"}
        assert [kind for kind, _ in shown] == ["display", "display"]
        assert isinstance(shown[0][1], ipywidgets.VBox)
        assert shown[1][1] is explorer.figure
        assert bar(explorer.figure) == 3

    def test_moving_a_slider_replaces_the_figure(self, shown):
        explorer = widgets.explore(draw, k=(0, 9))
        explorer.controls["k"].value = 7
        kind, figure = shown[-1]
        assert kind == "update"
        assert bar(figure) == 7
        assert text(explorer) == "drawing 7\n"

    def test_several_controls_draw_once(self, shown):
        explorer = widgets.explore(draw, k=(0, 9), name=["a", "b"])
        explorer.set(k=5, name="b")
        assert [kind for kind, _ in shown].count("update") == 1
        assert bar(shown[-1][1]) == 5

    def test_an_error_is_shown_and_forgotten_at_the_next_move(self, shown):
        explorer = widgets.explore(draw, k=(0, 9))
        explorer.controls["k"].value = 0
        assert "ValueError: k must be positive" in text(explorer)
        assert shown[-1][0] == "display"
        explorer.controls["k"].value = 1
        assert text(explorer) == "drawing 1\n"
        assert bar(shown[-1][1]) == 1

    def test_an_error_in_the_plain_call_is_raised(self, shown):
        with pytest.raises(ValueError, match="positive"):
            widgets.explore(draw, k=ipywidgets.IntSlider(0, 0, 9))

    def test_none_is_a_choice_like_others(self, shown):
        def mark(against=None):
            return plots.bar_ladder({str(against): 1})

        explorer = widgets.explore(mark, against=["a", None])
        assert explorer.controls["against"].label == "None"
        explorer.controls["against"].index = 0
        assert explorer.values() == {"against": "a"}
        explorer.controls["against"].index = 1
        assert explorer.values() == {"against": None}
        assert [kind for kind, _ in shown].count("update") == 2

    def test_unknown_control(self, shown):
        with pytest.raises(ValueError, match="no control can be made for k=None"):
            widgets.explore(draw, k=None)

    def test_sliders_redraw_when_let_go(self, shown):
        explorer = widgets.explore(draw, k=(0, 9))
        assert explorer.controls["k"].continuous_update is False


class TestPickPatch:
    @staticmethod
    def mark(row, column):
        return plots.bar_ladder({"row": row, "column": column})

    def test_click_and_sliders_choose_the_same(self, shown):
        image = np.zeros((32, 48, 3), dtype=np.uint8)
        explorer = widgets.pick_patch(self.mark, image, (4, 6))
        assert explorer.values() == {"row": 2, "column": 3}
        mosaic = next(
            w
            for w in shown[0][1].children
            if hasattr(w, "layout") and isinstance(w, ipywidgets.GridBox)
        )
        assert len(mosaic.children) == 24
        mosaic.children[7].click()
        assert explorer.values() == {"row": 1, "column": 1}
        assert [kind for kind, _ in shown].count("update") == 1
        explorer.controls["column"].value = 5
        assert shown[-1][0] == "update"

    def test_fine_grids_get_sliders_alone(self, shown):
        image = np.zeros((64, 64, 3), dtype=np.uint8)
        widgets.pick_patch(self.mark, image, (64, 64), start=(0, 0))
        kinds = [type(w) for w in shown[0][1].children]
        assert ipywidgets.GridBox not in kinds

    def test_buttons_have_the_mean_colour_of_their_patch(self):
        image = np.random.default_rng(0).integers(0, 256, (10, 9, 3), dtype=np.uint8)
        found = widgets.patch_colours(image, (3, 2))
        assert found.shape == (3, 2, 3)
        assert np.allclose(found[1, 0], image[3:6, :4].mean(axis=(0, 1)), atol=1)
        assert np.allclose(found[2, 1], image[6:, 4:].mean(axis=(0, 1)), atol=1)
        with pytest.raises(ValueError, match="has no"):
            widgets.patch_colours(image, (11, 2))
