import json

import ipywidgets
import numpy as np
import pytest
import torch

from tests.models import grey_model
from uss_utils import naming, naming_widget, widgets
from uss_utils.segmenter import Segmenter

# Clusters of grey_model: 0 bright, 1 dark, 2 middle.
NAMES = {0: "sky", 1: "road", 2: "road"}


def picture(levels=(20, 128, 240), width=40, height=30):
    """Stripes from top to bottom, of the model's three brightness levels."""
    rows = np.repeat(np.array(levels, dtype=np.uint8), height // len(levels))
    return np.broadcast_to(rows[:, None, None], (height, width, 3)).copy()


class TestApply:
    def test_segment_returns_the_named_classes(self):
        model = naming.apply(grey_model(), NAMES)
        ids = model.segment(picture())
        assert model.classes == ("sky", "road")
        assert ids[:, 0].tolist() == [1] * 20 + [0] * 10
        names, palette = model.legend()
        assert names == ("sky", "road")
        assert len(palette) == 2
        assert model.linear_probe is None
        assert model.meta == {}

    def test_clusters_without_name_keep_their_number(self):
        model = naming.apply(grey_model(), {1: "road"})
        assert model.classes == ("cluster 0", "road", "cluster 2")
        assert model.segment(picture())[:, 0].tolist() == [1] * 10 + [2] * 10 + [0] * 10
        with pytest.raises(ValueError, match="none of the 3 clusters has a name"):
            naming.apply(grey_model(), {1: " "})

    def test_or_their_class(self):
        before = grey_model(table=[2, 0, -1], meta={"map": "from labels", "seed": 1})
        assert naming.known(before) == {0: "bright", 1: "dark"}
        assert naming.known(grey_model()) == {}
        model = naming.apply(before, {0: "sky"})
        assert model.classes == ("sky", "dark", "cluster 2")
        assert model.palette[:2].tolist() == before.palette[[2, 0]].tolist()
        assert model.meta == {"seed": 1}
        assert before.classes == ("dark", "middle", "bright")
        bare = naming.unnamed(before)
        assert bare.segment(picture())[:, 0].unique().tolist() == [0, 1, 2]
        assert bare.legend()[0][2] == "cluster 2"

    def test_a_class_taken_apart_gets_two_colours(self):
        model = naming.apply(grey_model(table=[1, 1, 0]), {0: "sky", 1: "road"})
        assert model.classes == ("sky", "road", "dark")
        assert len({tuple(colour) for colour in model.palette.tolist()}) == 3

    def test_colours_are_those_of_the_clusters(self):
        plain = naming.colours({}, 3)
        assert np.array_equal(plain, naming.unnamed(grey_model()).legend()[1])
        shared = naming.colours(NAMES, 3)
        assert np.array_equal(shared, plain[[0, 1, 1]])
        model = naming.apply(grey_model(), NAMES)
        assert np.array_equal(model.palette, plain[[0, 1]])

    def test_named_models_are_saved(self, tmp_path):
        path = naming.apply(grey_model(), NAMES).save(tmp_path / "model")
        again = Segmenter.load(path)
        assert again.classes == ("sky", "road")
        assert again.cluster_to_class.tolist() == [0, 1, 1]


class TestFiles:
    def test_written_and_read(self, tmp_path):
        path = naming.write(
            {2: " a  road ", 0: "ciel été"}, tmp_path / "n", grey_model()
        )
        assert naming.read(path, grey_model()) == {0: "ciel été", 2: "a road"}
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert stored["names"] == {"0": "ciel été", "2": "a road"}
        model = naming.apply(grey_model(), path)
        assert model.classes == ("ciel été", "cluster 1", "a road")

    def test_written_by_hand(self, tmp_path):
        path = tmp_path / "names.json"
        path.write_text('{"names": {"1": "road"}}')
        assert naming.read(path, grey_model()) == {1: "road"}

    def test_names_of_another_model(self, tmp_path):
        path = naming.write(NAMES, tmp_path / "names.json", grey_model())
        other = grey_model()
        other.cluster_probe.clusters.data = other.cluster_probe.clusters.flip(0)
        with pytest.raises(ValueError, match="belong to another model"):
            naming.read(path, other)

    @pytest.mark.parametrize(
        "text", ["", "[]", '{"names": 3}', '{"sky": 0}', "\x00\xff"]
    )
    def test_other_files(self, tmp_path, text):
        path = tmp_path / "names.json"
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no names of clusters"):
            naming.read(path, grey_model())
        with pytest.raises(FileNotFoundError, match="no file with names"):
            naming.read(tmp_path / "none.json", grey_model())

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ({3: "sky"}, "no cluster 3 to name.* 0 to 2"),
            ({"sky": "0"}, "no cluster 'sky'"),
            ({-1: "sky"}, "no cluster -1"),
            ({0: 5}, "name of cluster 0 must be text"),
        ],
    )
    def test_names_that_make_no_sense(self, names, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            naming.apply(grey_model(), names)
        with pytest.raises(ValueError, match=message):
            naming.write(names, tmp_path / "names.json", grey_model())
        assert not list(tmp_path.iterdir())


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, and what the figure was replaced with."""
    calls = []

    class Handle:
        def update(self, figure):
            calls.append(figure)

    def display(thing, display_id=False):
        calls.append(thing)
        return Handle() if display_id else None

    monkeypatch.setattr(widgets, "display", display)
    return calls


def title(figure):
    return figure.axes[2].get_title()


class TestClicking:
    def test_click_type_press(self, shown, tmp_path):
        path = tmp_path / "names.json"
        namer = naming_widget.name_clusters(grey_model(), [picture()], path)
        assert isinstance(shown[0], ipywidgets.VBox)
        assert shown[1] is namer.figure
        assert title(shown[-1]) == "cluster 2: no name yet"
        assert not path.exists()
        namer.buttons.children[0].click()
        assert namer.cluster == 1
        assert title(shown[-1]) == "cluster 1: no name yet"
        namer.text.value = "road"
        namer.give.click()
        assert namer.names == {1: "road"}
        assert title(shown[-1]) == "cluster 1: road"
        assert naming.read(path, grey_model()) == {1: "road"}
        namer.choose(7, 3)
        assert namer.text.value == ""
        assert namer.text.options == ("road",)
        namer.name("road")
        namer.choose(14, 3)
        namer.name("sky")
        model = namer.named()
        assert model.classes == ("sky", "road")
        assert model.cluster_to_class.tolist() == [0, 1, 1]

    def test_sliders_choose_as_well(self, shown):
        namer = naming_widget.name_clusters(grey_model(), [picture()], names=NAMES)
        assert namer.text.value == "road"
        namer.controls["row"].value = 14
        assert namer.cluster == 0
        assert namer.text.value == "sky"

    def test_an_empty_name_takes_it_away(self, shown):
        namer = naming_widget.name_clusters(grey_model(), [picture()], names=NAMES)
        namer.text.value = ""
        namer.give.click()
        assert namer.names == {0: "sky", 1: "road"}
        for k in (0, 14):
            namer.choose(k, 0)
            namer.name("")
        assert namer.named().cluster_to_class is None

    def test_names_are_taken_up_again(self, shown, tmp_path):
        path = naming.write({1: "road"}, tmp_path / "names.json", grey_model())
        assert naming_widget.name_clusters(grey_model(), [picture()], path).names == {
            1: "road"
        }
        labelled = grey_model(table=[2, 0, 1])
        namer = naming_widget.name_clusters(labelled, [picture()])
        assert namer.names == {0: "bright", 1: "dark", 2: "middle"}

    def test_several_pictures(self, shown):
        upright = picture((240, 20, 128), width=20, height=60)
        namer = naming_widget.name_clusters(
            grey_model(), {"a": picture(), "b": upright}
        )
        wide = namer.buttons.children[0].layout.height
        colour = namer.buttons.children[0].style.button_color
        namer.choose(0, 0)
        assert namer.cluster == 1
        namer.controls["picture"].value = "b"
        assert namer.cluster == 0
        assert title(shown[-1]) == "cluster 0: no name yet"
        assert namer.buttons.children[0].style.button_color != colour
        tall = namer.buttons.children[0].layout.height
        assert int(tall.removesuffix("px")) > int(wide.removesuffix("px"))

    def test_an_error_is_shown_below_the_controls(self, shown, tmp_path):
        (tmp_path / "file").write_text("in the way")
        path = tmp_path / "file" / "names.json"
        namer = naming_widget.name_clusters(grey_model(), [picture()], path)
        namer.text.value = "sky"
        namer.give.click()
        text = "".join(output["text"] for output in namer.messages.outputs)
        assert "could not write" in text

    def test_no_picture(self):
        with pytest.raises(ValueError, match="at least one picture"):
            naming_widget.name_clusters(grey_model(), [])

    def test_tiny_and_large_pictures(self, shown):
        tiny = np.full((3, 5), 20, dtype=np.uint8)
        large = picture(width=900, height=1200)
        namer = naming_widget.name_clusters(grey_model(), [tiny, large])
        assert namer.cluster == 1
        namer.controls["picture"].value = "picture 1"
        assert namer.cluster == 2
        assert max(namer._look()[0].shape) == 512


def test_the_figure_leaves_one_cluster_in_its_colours():
    image = picture()
    ids = torch.tensor([1, 2, 0]).repeat_interleave(10)[:, None].expand(30, 40)
    figure = naming_widget.draw_names(image, ids, NAMES, 3, 1)
    alone = figure.axes[2].images[0].get_array()
    assert (alone[:10] == image[:10]).all()
    assert (alone[10:] > image[10:]).all()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["0: sky", "1: road", "2: road"]
