"""HSG's objective and its gradients against the recorded pairs."""

import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.grouping import Levels, compose_levels
from uss_utils.methods._hsg_loss import HSGLoss
from uss_utils.methods._hsg_segments import (
    dense_numbers,
    segment_nodes,
    segment_views,
)

pytestmark = pytest.mark.golden


def assert_gradient(actual, expected, share):
    """rtol 1e-3 and a share of the largest entry."""
    atol = share * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=atol)


def batch(pair):
    emb = pair["in_embeddings"].clone().requires_grad_()
    return emb, pair["in_regions"], pair["in_valid"], pair["in_image_of_view"]


def settings(pair) -> dict:
    return {
        "grid": tuple(pair["param_grid"].tolist()),
        "iterations": pair["param_iterations"],
        "kappa": pair["param_concentration"],
        "slots": pair["param_max_nodes"],
    }


@pytest.mark.parametrize("path", golden_files("hsg", "08_total_loss*.npz"))
def test_total(path):
    pair = load(path)
    names = ("region", "fine", "coarse", "modularity", "centroid")
    weights = {name: pair[f"param_weight_{name}"] for name in names}
    loss = HSGLoss(
        **weights,
        **settings(pair),
        knn=pair["param_knn"],
        per_view=bool(pair["param_knn_per_view"]),
    )
    given = batch(pair)
    free = {
        name: pair[f"in_{name}"].clone().requires_grad_() for name in Levels._fields
    }
    levels = Levels(**free)
    terms = loss(*given, levels)
    terms["total"].backward()

    def weighted(*found):
        return sum(weights[x.split("_")[0]] * terms[x].detach() for x in found)

    both = [f"{x}_{y}" for x in ("modularity", "centroid") for y in ("fine", "coarse")]
    balance = terms["balance_fine"] + terms["balance_coarse"]
    clustering = weighted(*both) + weights["modularity"] * balance.detach()
    for name, value in (
        ("region_term", weighted("region")),
        ("hierarchy_term", weighted("fine", "coarse")),
        ("clustering_term", clustering),
        ("total", terms["total"].detach()),
    ):
        expected = torch.tensor(pair[f"out_{name}"])
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert float(terms["top5"]) == pytest.approx(pair["out_top5_accuracy"], abs=1e-6)
    assert_gradient(given[0].grad, pair["out_grad_embeddings"], 1e-3)
    for place, value in free.items():
        assert_gradient(value.grad, pair[f"out_grad_{place}"], 1e-3)


@pytest.mark.parametrize("path", golden_files("hsg", "08_total_loss*.npz"))
def test_segments_and_groups_of_a_step(path):
    pair = load(path)
    emb, regions, valid, image = batch(pair)
    segments = segment_views(
        emb, regions, valid, settings(pair)["grid"], pair["param_iterations"]
    )
    assert_close(segments.prototypes.detach(), pair["out_segment_prototypes"], 1e-5)
    for name in ("segment_region", "segment_view", "pixel_segment"):
        assert torch.equal(getattr(segments, name), pair[f"out_{name}"])
    nodes = segment_nodes(segments, image, slots=pair["param_max_nodes"])
    found = compose_levels(pair["in_fine_logits"], pair["in_coarse_logits"])
    for name, label in (("fine", found.fine), ("coarse", found.coarse)):
        group = dense_numbers(nodes.image_of_segment, nodes.of_segments(label))
        assert torch.equal(group, pair[f"out_segment_{name}"])


@pytest.mark.parametrize("path", golden_files("hsg", "11_terms_from_embeddings*.npz"))
@pytest.mark.parametrize("level", ["region", "fine", "coarse"])
def test_one_contrast_alone(path, level):
    pair = load(path)
    given = batch(pair)
    dim = given[0].shape[1]
    logits = pair["in_fine_logits"], pair["in_coarse_logits"]
    centroids = (torch.zeros(len(x), dim, x.shape[1]) for x in logits)
    weights = {"region": 0.0, "fine": 0.0, "coarse": 0.0} | {level: 1.0}
    loss = HSGLoss(**weights, modularity=0.0, centroid=0.0, **settings(pair))
    terms = loss(*given, Levels(*logits, *centroids))
    terms["total"].backward()
    expected = torch.tensor(pair[f"out_loss_{level}"])
    torch.testing.assert_close(terms[level].detach(), expected, rtol=1e-4, atol=0)
    assert_gradient(given[0].grad, pair[f"out_grad_{level}"], 1e-3)
