import numpy as np
import pytest
import torch

from uss_utils import figures, groups_shown
from uss_utils.environment import generator

VIEWS = np.full((2, 4, 4, 3), 200, np.uint8)
MAPS = torch.tensor([[[0, 1], [0, 1]], [[2, 2], [3, -1]]])


class TestAlike:
    labels = (
        torch.tensor([0, 1, 0, 2, 0]),  # region; the last in another picture
        torch.tensor([0, 0, 0, 1, 9]),
        torch.tensor([0, 0, 0, 0, 9]),
        torch.tensor([0, 0, 0, 0, 1]),
    )

    def draw(self, own=0):
        cosines = torch.tensor([0.9, 0.5, 0.8, 0.1, -0.2])
        labels = [*self.labels]
        labels[0] = labels[0] + 1000 * labels[3]
        return groups_shown.alike(
            VIEWS, MAPS, cosines, torch.tensor(own), labels, (1, 0), [0.5, 1, 2]
        )

    def test_segments_stand_at_the_narrowest_level_they_share(self):
        chart = self.draw().axes[2]
        words = [text.get_text() for text in chart.get_yticklabels()]
        counts = [int(word.split("(")[1][:-1]) for word in words]
        assert counts == [2, 1, 1, 0, 1]
        assert words[-1] == "other pictures (1)"
        circle = chart.lines[0].get_xydata()[0]
        assert circle == pytest.approx([0.9, 0])

    def test_losses_and_the_pixel(self):
        figure = self.draw()
        assert figure.axes[2].get_title() == "losses 0.50, 1.00, 2.00"
        square = figure.axes[0].patches[0]
        assert square.get_xy() == (-0.5, 1.5) and square.get_width() == 2

    def test_every_segment_shows_its_cosine(self):
        field = np.ma.getdata(self.draw().axes[1].images[1].get_array())
        assert field[0, 0] == pytest.approx(0.8) and field[3, 0] == pytest.approx(0.1)
        assert np.isnan(field[3, 3])


class TestGraph:
    def test_edges_inside_and_across(self):
        edges = torch.zeros(4, 4)
        edges[0, 1] = edges[2, 3] = edges[0, 2] = 1
        figure = groups_shown.segment_graph(VIEWS, MAPS, edges)
        (ax,) = figure.axes
        assert ax.get_title().startswith("4 nodes, 3 edges: 2 inside a view")
        inside, across, nodes = ax.collections
        assert [len(c.get_segments()) for c in (inside, across)] == [2, 1]
        centres = np.asarray(nodes.get_offsets())
        assert centres[:2].tolist() == [[0.5, 1.5], [2.5, 1.5]]
        (line,) = across.get_segments()
        assert line[0].tolist() == [0.5, 1.5] and line[1][0] > 4

    def test_slots_without_a_node_are_no_dots(self):
        edges = torch.zeros(9, 9)
        (ax,) = groups_shown.segment_graph(VIEWS, MAPS, edges).axes
        assert ax.get_title().startswith("4 nodes, 0 edges")


class TestProbabilities:
    def test_a_table_each(self):
        tables = {"P1": (torch.eye(3), "fine", "node"), "C": (np.eye(2), "c", "fine")}
        figure = groups_shown.probabilities(tables)
        first, second = figure.axes[:2]
        assert (first.get_title(), first.get_xlabel()) == ("P1", "node")
        assert second.images[0].get_array().shape == (2, 2)
        assert second.images[0].get_clim() == (0, 1)

    def test_nothing_to_show(self):
        with pytest.raises(ValueError, match="at least one table"):
            groups_shown.probabilities({})


class TestToy:
    def test_nodes_lie_around_their_regions(self):
        x, padding = groups_shown.toy_nodes(generator(0), 3, 10, 2, 6, noise=0)
        assert x.shape == (3, 6, 10) and not padding.any()
        assert torch.allclose(x.norm(dim=1), torch.ones(3, 10))
        for image in x:
            assert len({tuple(column) for column in image.T.tolist()}) == 2

    def test_what_costs_less_is_learned(self):
        x, _ = groups_shown.toy_nodes(generator(0), 4, 12)
        before = torch.get_rng_state()
        runs = [
            groups_shown.toy_grouping(
                x,
                lambda probs, a: a * probs.square().mean(),
                [a],
                0,
                groups=3,
                steps=40,
            )
            for a in (-1.0, 1.0)
        ]
        assert torch.equal(torch.get_rng_state(), before)
        for found in runs:
            assert {len(values) for values in found.values()} == {40}
            assert all(1 <= groups <= 3 for groups in found["groups"])
        assert runs[0]["sure"][0] == runs[1]["sure"][0]
        assert runs[0]["sure"][-1] > 0.6 > 0.5 > runs[1]["sure"][-1]

    def test_the_same_seed_gives_the_same_run(self):
        x, _ = groups_shown.toy_nodes(generator(1), 2, 6)
        options = (x, lambda probs: probs[:, 0].sum(), [])
        runs = [groups_shown.toy_grouping(*options, s, 2, 3) for s in (0, 0, 1)]
        assert runs[0] == runs[1] != runs[2]

    def test_runs_side_by_side(self):
        runs = {"a": {"groups": [3, 2], "sure": [0.1, 0.2]}}
        runs["b"] = {"groups": [3, 3], "sure": [0.4, 0.5]}
        figure = groups_shown.collapse(runs)
        first, second = figure.axes
        assert [line.get_label() for line in first.lines] == ["a", "b"]
        assert second.lines[1].get_ydata().tolist() == [0.4, 0.5]
        assert figures.picture(figure)[0] == "png"

    def test_no_run(self):
        with pytest.raises(ValueError, match="at least one run"):
            groups_shown.collapse({})
