"""HSG's clustering transformers, composed levels and position map: recorded pairs."""

import re

import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.clustering_transformer import ClusteringTransformer, start_statistics
from uss_utils.grouping import compose_levels, group_positions, position_map
from uss_utils.methods._hsg_segments import dense_numbers

pytestmark = pytest.mark.golden

# Recorded places -> the transformer's own names.
PLACES = {
    r"^(enc)(\d+)_": r"encoder.\2.",
    r"^(dec)(\d+)_": r"decoder.\2.",
    r"^dec_final_bn": "norm",
    r"^init_w1": "start.0.weight",
    r"^init_bn": "start.1",
    r"^init_w2": "start.3.weight",
    r"^init_b2": "start.3.bias",
    r"^assign_w$": "assign.linear.weight",
    r"^feature_w$": "feature.linear.weight",
    r"^(assign|feature)_bn": r"\1.norm",
    "self_qkv_": "attention.in_proj_",
    "cross_qkv_": "cross.in_proj_",
    "self_out_": "attention.out_proj.",
    "cross_out_": "cross.out_proj.",
    "ff1_": "widen.",
    "ff2_": "narrow.",
    "bn1": "norms.0",
    "bn2": "norms.1",
    "bn3": "norms.2",
    "_gamma": ".weight",
    "_beta": ".bias",
    "_mean": ".running_mean",
    "_var": ".running_var",
    r"([._])w$": r"\1weight",
    r"([._])b$": r"\1bias",
}


def own_name(place: str) -> str:
    for pattern, name in PLACES.items():
        place = re.sub(pattern, name, place)
    return place


def transformer(pair: dict) -> ClusteringTransformer:
    """The recorded transformer; every weight has to find its one place."""
    weights = {
        own_name(name.removeprefix("in_w_")): value
        for name, value in pair.items()
        if name.startswith("in_w_")
    }
    layers = pair["param_encoder_layers"]
    assert layers == pair["param_decoder_layers"]
    own = ClusteringTransformer(
        pair["in_nodes"].shape[1],
        pair["param_num_clusters"],
        pair["param_heads"],
        layers,
        len(weights["encoder.0.widen.bias"]),
        dropout=0.0,
    )
    state = own.state_dict()
    counters = {k: v for k, v in state.items() if k.endswith("num_batches_tracked")}
    own.load_state_dict({**counters, **weights, "queries": pair["in_queries"]})
    return own


def assert_recorded(actual, expected):
    """rtol 1e-3 and atol 1e-4 of the largest entry, the pair's own tolerance."""
    atol = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("path", golden_files("hsg", "13_clustering_transformer*.npz"))
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("mask", ["masked", "full"])
def test_transformer(path, mode, mask):
    pair = load(path)
    own = transformer(pair).train(mode == "train")
    padding = pair["in_padding"] if mask == "masked" else None
    with torch.no_grad():
        found = own(pair["in_nodes"], padding, None, pair["in_node_positions"])
        statistics = start_statistics(found.memory, padding)
    for name, value in (
        ("centroids", found.centroids),
        ("centroid_features", found.features),
        ("logits", found.logits),
        ("node_features", found.memory),
        ("query_init_stats", statistics),
    ):
        assert_recorded(value, pair[f"out_{name}_{mode}_{mask}"])


@pytest.mark.parametrize("path", golden_files("hsg", "07_hierarchy_assignment*.npz"))
def test_levels(path):
    pair = load(path)
    found = compose_levels(pair["in_fine_logits"], pair["in_coarse_logits"])
    assert_close(found.fine_probs, pair["out_fine_probs"], 1e-5)
    assert_close(found.coarse_probs, pair["out_coarse_probs"], 1e-5)
    assert torch.equal(found.fine, pair["out_fine_labels"])
    assert torch.equal(found.coarse, pair["out_coarse_labels"])
    positions = group_positions(
        pair["in_node_positions"],
        found.fine,
        pair["in_padding"],
        pair["in_fine_logits"].shape[1],
    )
    assert_close(positions, pair["out_group_positions"], 1e-5)
    image, node = pair["in_pixel_image"], pair["in_pixel_node"]
    for name, label in (("fine", found.fine), ("coarse", found.coarse)):
        group = dense_numbers(image, label[image, node])
        assert torch.equal(group, pair[f"out_pixel_{name}_group"])


@pytest.mark.parametrize("path", golden_files("hsg", "22_*.npz"))
def test_position_map(path):
    """Tables and map by shape: two of (side, C / 2), columns first, and (C, h, w)."""
    pair = load(path)
    tables = {
        k: v for k, v in pair.items() if k.startswith("in_") and torch.is_tensor(v)
    }
    by_rows = sorted(tables, key=lambda name: "row" in name)  # columns first
    maps = [v for k, v in pair.items() if k.startswith("out_")]
    assert len(tables) == 2 and maps
    for expected in maps:
        expected = expected[0] if expected.ndim == 4 else expected
        found = position_map(*map(tables.get, by_rows), tuple(expected.shape[1:]))
        assert_close(found, expected, 1e-6)
