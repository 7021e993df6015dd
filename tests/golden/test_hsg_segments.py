"""HSG's segments and nodes against the recorded pairs."""

import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.methods._hsg_segments import (
    Segments,
    coordinates,
    grid_labels,
    image_index,
    pixel_features,
    segment_means,
    segment_nodes,
    segment_prototypes,
    segment_views,
    spherical_kmeans,
)

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("path", golden_files("hsg", "01_grid_and_coords*.npz"))
def test_grid_and_coordinates(path):
    pair = load(path)
    names = [name[len("param_size_") :] for name in pair if "param_size_" in name]
    assert names
    for name in names:
        size, grid = (
            pair[f"param_{kind}_{name}"].tolist() for kind in ("size", "grid")
        )
        assert torch.equal(grid_labels(*size, grid), pair[f"out_labels_{name}"])
        assert_close(coordinates(*size), pair[f"out_coords_{name}"], 1e-6)


@pytest.mark.parametrize("path", golden_files("hsg", "02_prototypes*.npz"))
def test_prototypes(path):
    pair = load(path)
    labels, n = pair["in_labels"], pair["param_num_prototypes"]
    found = segment_prototypes(pair["in_embeddings"], labels, n)
    assert_close(found, pair["out_prototypes"], 1e-5)
    means = segment_means(pair["in_raw"], labels, int(labels.max()) + 1)
    assert_close(means, pair["out_mean_unnormalised"], 1e-5)


@pytest.mark.parametrize("path", golden_files("hsg", "03_spherical_kmeans*.npz"))
def test_kmeans(path):
    pair = load(path)
    f, start = pair["in_features"], pair["in_labels0"]
    joint = torch.cat([pair["in_embeddings"], pair["in_coords"]], 1)
    assert_close(torch.nn.functional.normalize(joint, dim=1), f, 1e-5)
    k, iterations = pair["param_num_clusters"], pair["param_iterations"]
    past = spherical_kmeans(f, start, k, iterations, history=True)
    assert torch.equal(past, pair["out_history"])
    assert torch.equal(spherical_kmeans(f, start, k, iterations), pair["out_labels"])


def segments_of(pair: dict) -> Segments:
    return segment_views(
        pair["in_embeddings"],
        pair["in_regions"],
        pair["in_valid"],
        pair["param_grid"].tolist(),
        pair["param_iterations"],
    )


@pytest.mark.parametrize("path", golden_files("hsg", "04_view_segments*.npz"))
def test_segments_of_views(path):
    pair = load(path)
    segments = segments_of(pair)
    assert_close(segments.pixels, pair["out_pixel_embeddings"], 1e-5)
    joint = pixel_features(pair["in_embeddings"])[1][pair["in_valid"]]
    assert_close(joint, pair["out_pixel_features_with_coords"], 1e-5)
    assert torch.equal(segments.pixel_region, pair["out_pixel_region"])
    assert torch.equal(segments.pixel_segment, pair["out_pixel_segment"])
    assert torch.equal(segments.pixel_view, pair["out_pixel_view"])


@pytest.mark.parametrize("path", golden_files("hsg", "06_nodes_from_views*.npz"))
def test_nodes(path):
    pair = load(path)
    segments = segments_of(pair)
    nodes = segment_nodes(
        segments,
        pair["in_image_of_view"],
        pair["in_positions"],
        pair["param_max_nodes"],
    )
    assert_close(nodes.x, pair["out_nodes"], 1e-5)
    assert torch.equal(nodes.padding, pair["out_padding"])
    assert torch.equal(nodes.view, pair["out_node_view"])
    assert torch.equal(nodes.region, pair["out_node_region"])
    assert_close(nodes.position, pair["out_node_positions"], 1e-5)
    found = nodes.slot_of_segment[segments.pixel_segment]
    assert torch.equal(found, pair["out_pixel_node"])


@pytest.mark.parametrize("path", golden_files("hsg", "08_total_loss*.npz"))
def test_segments_of_a_whole_step(path):
    pair = load(path)
    segments = segments_of(pair)
    assert_close(segments.prototypes, pair["out_segment_prototypes"], 1e-5)
    assert torch.equal(segments.segment_region, pair["out_segment_region"])
    assert torch.equal(segments.segment_view, pair["out_segment_view"])
    assert torch.equal(segments.pixel_segment, pair["out_pixel_segment"])


@pytest.mark.parametrize("path", golden_files("hsg", "19_image_order*.npz"))
def test_images_are_numbered_as_they_appear(path):
    pair = load(path)
    assert torch.equal(image_index(pair["in_image_id"]), pair["out_image_index"])
