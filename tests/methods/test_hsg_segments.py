"""K-means of pixels, segments of views, nodes of images."""

import pytest
import torch
import torch.nn.functional as F

from uss_utils.environment import generator
from uss_utils.methods import _hsg_kmeans
from uss_utils.methods._hsg_segments import (
    coordinates,
    dense_numbers,
    grid_labels,
    image_index,
    pixel_features,
    segment_means,
    segment_nodes,
    segment_prototypes,
    segment_views,
    spherical_kmeans,
)

N, C, H, W = 4, 6, 8, 10


def views(seed=0, dtype=torch.float64):
    """Embeddings, regions, valid pixels of two views of two images."""
    draw = generator(seed)
    emb = torch.randn(N, C, H, W, generator=draw, dtype=dtype)
    regions = torch.randint(0, 5, (N, H, W), generator=draw)
    valid = torch.rand(N, H, W, generator=draw) < 0.8
    return emb.requires_grad_(), regions, valid


# -------------------------------------------------------------------- pixels, k-means


def test_features_are_directions_with_and_without_place():
    emb, *_ = views()
    e, joint = pixel_features(emb)
    expected = F.normalize(emb, dim=1).movedim(1, 3)
    torch.testing.assert_close(e, expected)
    place = coordinates(H, W).double().expand(N, -1, -1, -1)
    expected = F.normalize(torch.cat([expected, place], 3), dim=3)
    torch.testing.assert_close(joint, expected.detach())
    assert e.requires_grad and not joint.requires_grad
    assert place[0, 0, 0].tolist() == [-0.5, -0.5]
    assert place[0, -1, 0].tolist() == [0.5, -0.5]


def test_features_of_a_zero_embedding():
    e, joint = pixel_features(torch.zeros(1, C, 2, 3))
    assert (e == 0).all()
    expected = F.normalize(coordinates(2, 3), dim=2)
    torch.testing.assert_close(joint[0, ..., C:], expected)


def test_features_are_float32_under_autocast():
    emb = views(dtype=torch.float32)[0].detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        e, joint = pixel_features(emb)
        half, _ = pixel_features(emb.bfloat16())
    assert e.dtype == joint.dtype == half.dtype == torch.float32
    assert torch.equal(e, pixel_features(emb)[0])


def test_cells_at_the_border_are_half_as_wide():
    labels = grid_labels(3, 28, (1, 4))
    assert torch.equal(labels, labels[:1].expand(3, -1))
    assert torch.bincount(labels[0]).tolist() == [5, 9, 9, 5]
    rows = grid_labels(28, 3, (4, 1))
    assert torch.equal(rows, labels.T)
    assert grid_labels(7, 5, (1, 1)).eq(0).all()
    with pytest.raises(ValueError, match=r"at least 1 x 1 cells, got \(0, 4\)"):
        grid_labels(4, 4, (0, 4))


def rows_and_start(seed=0, n=3, p=200, d=5, k=7):
    draw = generator(seed)
    f = F.normalize(torch.randn(n, p, d, generator=draw, dtype=torch.float64), dim=2)
    return f, torch.randint(k, (n, p), generator=draw)


def plain_kmeans(f, labels, k, iterations):
    past = []
    for _ in range(iterations):
        sums = torch.stack([f[labels == i].sum(0) for i in range(k)])
        labels = (f @ F.normalize(sums, dim=1).T).argmax(1)
        past.append(labels)
    return torch.stack(past)


@pytest.mark.parametrize("block", [1, 300, 1 << 19])
def test_kmeans_of_several_views_is_that_of_each(block, monkeypatch):
    monkeypatch.setattr(_hsg_kmeans, "BLOCK", block)
    f, start = rows_and_start()
    given = start.clone()
    past = spherical_kmeans(f, start, 7, 6, history=True)
    for i, rows in enumerate(f):
        expected = plain_kmeans(rows, start[i], 7, 6)
        assert torch.equal(past[:, i], expected)
        alone = spherical_kmeans(rows, start[i], 7, 6)
        assert torch.equal(alone, expected[-1])
    assert torch.equal(start, given)
    assert len(torch.unique(past[-1] - start)) > 1  # something moved


def test_kmeans_never_loses():
    """The sum of the largest similarities, before and after each new assignment."""
    for seed in range(20):
        f, start = rows_and_start(seed, n=1, p=60)
        labels, f = start[0], f[0]
        scores = []
        for _ in range(8):
            sums = segment_prototypes(f, labels, 7)
            scores.append((f @ sums.T).gather(1, labels[:, None]).sum())
            labels = spherical_kmeans(f, labels, 7, 1)
            scores.append((f @ sums.T).gather(1, labels[:, None]).sum())
        steps = torch.stack(scores).diff()
        assert steps.min() > -1e-12 and steps.max() > 0


def test_an_empty_cluster_is_revived_by_rows_unlike_all_others():
    f = torch.tensor([[1.0, 0], [1, 0], [1, 0], [-1, 0], [0.6, 0.8], [0.6, 0.8]])
    start = torch.tensor([0, 0, 0, 0, 1, 1])
    past = spherical_kmeans(f, start, 3, 2, history=True)
    assert past.tolist() == [[0, 0, 0, 2, 1, 1]] * 2
    # Similarity 0 is enough beside an empty cluster only if the number is smaller.
    f[3] = torch.tensor([0, -1])
    f[4:] = torch.tensor([0, 1])
    assert spherical_kmeans(f, start, 3, 1)[3] == 0


def test_of_equal_clusters_the_smallest_wins():
    f = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    labels = spherical_kmeans(f, torch.tensor([2, 1, 3, 0]), 4, 1)
    assert labels.tolist() == [1, 1, 1, 0]


def test_rows_that_are_not_valid_take_no_part():
    f, start = rows_and_start()
    valid = torch.rand(3, 200, generator=generator(1)) < 0.6
    valid[2] = False
    broken = f.masked_fill(~valid[..., None], 1e3)
    wrong = start.masked_fill(~valid, -7)
    found = spherical_kmeans(broken, wrong, 7, 5, valid=valid)
    assert (found[~valid] == -1).all()
    for i in range(2):
        expected = plain_kmeans(f[i, valid[i]], start[i, valid[i]], 7, 5)[-1]
        assert torch.equal(found[i, valid[i]], expected)


def test_one_start_serves_all_views_and_no_iteration_returns_it():
    f, start = rows_and_start()
    shared = spherical_kmeans(f, start[0], 7, 4)
    each = spherical_kmeans(f, start[:1].expand(3, -1), 7, 4)
    assert torch.equal(shared, each)
    assert torch.equal(spherical_kmeans(f, start, 7, 0), start)
    assert spherical_kmeans(f, start, 7, 2, history=True).shape == (2, 3, 200)


def test_kmeans_under_autocast_is_in_float32():
    f, start = rows_and_start()
    f = f.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = spherical_kmeans(f, start, 7, 5)
    assert torch.equal(found, spherical_kmeans(f, start, 7, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, 199).long()}, r"got \(3, 200, 5\) and \(3, 199\)"),
        ({"f": torch.zeros(5), "labels": torch.zeros(5).long()}, r"rows \(P, D\)"),
        ({"k": 0}, "k >= 1 and iterations >= 0, got 0 and 2"),
        ({"iterations": -1}, "got 7 and -1"),
        ({"k": 3}, r"0..2 for k=3, got 0..6"),
    ],
)
def test_kmeans_refuses(change, message):
    f, start = rows_and_start()
    given = {"f": f, "labels": start, "k": 7, "iterations": 2, **change}
    with pytest.raises(ValueError, match=message):
        spherical_kmeans(**given)


# --------------------------------------------------------------------------- segments


def test_numbers_of_tuples():
    a = torch.tensor([5, 2**62, 5, -3, 5])
    b = torch.tensor([-(2**62), 0, 7, 7, 7])
    assert dense_numbers(a, b).tolist() == [1, 3, 2, 0, 2]
    assert dense_numbers(a).tolist() == [1, 2, 1, 0, 1]
    assert dense_numbers(a[:0], b[:0]).shape == (0,)


def test_images_in_order_of_appearance():
    ids = torch.tensor([70, 3, 70, -1, 3, 500])
    assert image_index(ids).tolist() == [0, 1, 0, 2, 1, 3]


def test_prototypes_and_means_of_labels():
    draw = generator(0)
    rows = torch.randn(30, C, generator=draw, dtype=torch.float64)
    labels = torch.randint(4, (30,), generator=draw)
    means = segment_means(rows, labels, 6)
    directions = segment_prototypes(rows, labels, 6)
    for i in range(4):
        mean = rows[labels == i].mean(0)
        torch.testing.assert_close(means[i], mean)
        torch.testing.assert_close(directions[i], mean / mean.norm())
    assert (means[4:] == 0).all() and (directions[4:] == 0).all()


def test_segments_are_what_clusters_and_regions_have_in_common():
    emb, regions, valid = views()
    found = segment_views(emb, regions, valid, (2, 3), 4)
    joint = pixel_features(emb)[1]
    tuples = []
    for view in range(N):
        inside = valid[view]
        start = grid_labels(H, W, (2, 3))[inside]
        clusters = plain_kmeans(joint[view][inside], start, 6, 4)[-1]
        pairs = zip(clusters.tolist(), regions[view][inside].tolist(), strict=True)
        tuples += [(view, *pair) for pair in pairs]
    numbers = {key: i for i, key in enumerate(sorted(set(tuples)))}
    assert found.pixel_segment.tolist() == [numbers[key] for key in tuples]
    assert found.segment_view.tolist() == [key[0] for key in sorted(numbers)]
    assert found.segment_region.tolist() == [key[2] for key in sorted(numbers)]
    e = F.normalize(emb, dim=1).movedim(1, 3)[valid]
    torch.testing.assert_close(found.pixels, e)
    expected = segment_prototypes(e, found.pixel_segment, len(numbers))
    torch.testing.assert_close(found.prototypes, expected)
    assert torch.equal(found.pixel_region, regions[valid])


def test_one_cell_leaves_the_regions_of_each_view():
    emb, regions, valid = views()
    found = segment_views(emb, regions, valid, (1, 1), 1)
    pairs = sorted(
        {
            (view, int(region))
            for view in range(N)
            for region in regions[view][valid[view]].unique()
        }
    )
    rows = torch.stack([found.segment_view, found.segment_region], 1)
    assert [tuple(row) for row in rows.tolist()] == pairs


def test_padding_does_not_matter():
    emb, regions, valid = views()
    found = segment_views(emb, regions, valid, (2, 2), 3)
    other = emb.detach().where(valid[:, None], torch.randn(1).double())
    names = regions.where(valid, -(10**12))
    again = segment_views(other, names, valid, (2, 2), 3)
    assert torch.equal(found.pixel_segment, again.pixel_segment)
    torch.testing.assert_close(found.prototypes, again.prototypes)


def test_larger_maps_are_brought_to_the_embeddings():
    emb, regions, valid = views()
    large = [
        maps.repeat_interleave(3, 1).repeat_interleave(2, 2)
        for maps in (regions, valid)
    ]
    found = segment_views(emb, *large, (2, 2), 3)
    expected = segment_views(emb, regions, valid, (2, 2), 3)
    assert torch.equal(found.pixel_segment, expected.pixel_segment)
    assert torch.equal(found.pixel_place, expected.pixel_place)


def test_maps_of_segments_and_of_their_values():
    emb, regions, valid = views()
    found = segment_views(emb, regions, valid, (2, 2), 3)
    numbers = found.maps()
    assert torch.equal(numbers[valid], found.pixel_segment)
    assert (numbers[~valid] == -1).all()
    painted = found.maps(found.segment_region, fill=255)
    assert torch.equal(painted, regions.where(valid, 255))


def test_gradient_of_pixels_and_prototypes_reaches_the_embeddings():
    emb, regions, valid = views()
    segments = segment_views(emb, regions, valid, (2, 2), 3)
    draw = generator(5)
    a = torch.randn(segments.pixels.shape, generator=draw, dtype=torch.float64)
    b = torch.randn(segments.prototypes.shape, generator=draw, dtype=torch.float64)
    loss = (segments.pixels * a).sum() + (segments.prototypes * b).sum()
    (grad,) = torch.autograd.grad(loss, emb)
    e = F.normalize(emb, dim=1).movedim(1, 3)[valid]
    sums = [e[segments.pixel_segment == i].sum(0) for i in range(len(b))]
    plain = (e * a).sum() + (F.normalize(torch.stack(sums), dim=1) * b).sum()
    torch.testing.assert_close(grad, torch.autograd.grad(plain, emb)[0])
    outside = ~valid[:, None].expand_as(grad)
    assert (grad[outside] == 0).all()


def test_a_batch_without_valid_pixels():
    emb, regions, valid = views()
    segments = segment_views(emb, regions, torch.zeros_like(valid), (2, 2), 3)
    assert segments.pixels.shape == segments.prototypes.shape == (0, C)
    assert (segments.maps() == -1).all()
    nodes = segment_nodes(segments, torch.tensor([0, 0, 1, 1]))
    assert nodes.x.shape == (2, C, 1) and nodes.padding.all()
    total = segments.pixels.sum() + segments.prototypes.sum() + nodes.x.sum()
    (grad,) = torch.autograd.grad(total, emb)
    assert (grad == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emb": torch.zeros(C, H, W)}, r"expected \(N, C, h, w\)"),
        ({"regions": torch.zeros(N - 1, H, W).long()}, r"regions \(3, 8, 10\)"),
        ({"valid": torch.ones(N, H, W)}, r"valid has to be bool \(4, 8, 10\)"),
        ({"regions": torch.zeros(N, H, W)}, "integer ids, got torch.float32"),
    ],
)
def test_segments_refuse(change, message):
    emb, regions, valid = views()
    given = {"emb": emb, "regions": regions, "valid": valid, **change}
    with pytest.raises(ValueError, match=message):
        segment_views(**given)


# ------------------------------------------------------------------------------ nodes


@pytest.mark.parametrize("images", [[0, 0, 1, 1], [9, 4, 9, 4], [3, 1, 1, 1]])
def test_nodes_are_the_segments_of_each_image_in_order(images):
    emb, regions, valid = views()
    segments = segment_views(emb, regions, valid, (2, 2), 3)
    nodes = segment_nodes(segments, torch.tensor(images))
    order = list(dict.fromkeys(images))
    counts = []
    for b, image in enumerate(order):
        own = [images[v] == image for v in segments.segment_view.tolist()]
        own = torch.tensor(own).nonzero()[:, 0]
        n = len(own)
        counts.append(n)
        assert torch.equal(nodes.x[b, :, :n].T, segments.prototypes[own])
        assert (nodes.x[b, :, n:] == 0).all()
        assert nodes.padding[b].tolist() == [i >= n for i in range(nodes.x.shape[2])]
        assert torch.equal(nodes.view[b, :n], segments.segment_view[own])
        assert torch.equal(nodes.region[b, :n], segments.segment_region[own])
        assert (nodes.view[b, n:] == -1).all() and (nodes.region[b, n:] == -1).all()
        assert nodes.slot_of_segment[own].tolist() == list(range(n))
    assert nodes.x.shape[2] == max(counts)
    assert torch.equal(nodes.of_segments(nodes.region), segments.segment_region)
    assert torch.equal(nodes.of_segments(nodes.x.movedim(1, 2)), segments.prototypes)


def test_position_of_a_node_is_the_mean_over_its_pixels():
    emb, regions, valid = views()
    segments = segment_views(emb, regions, valid, (2, 2), 3)
    positions = torch.randn(C, H, W, dtype=torch.float64, requires_grad=True)
    nodes = segment_nodes(segments, torch.tensor([0, 0, 1, 1]), positions, 100)
    found = nodes.of_segments(nodes.position.movedim(1, 2))
    numbers = segments.maps()
    for i, row in enumerate(found):
        view = int(segments.segment_view[i])
        expected = positions[:, numbers[view] == i].mean(1)
        torch.testing.assert_close(row, expected)
    assert (nodes.position.movedim(1, 2)[nodes.padding] == 0).all()
    (grad,) = torch.autograd.grad(found.sum(), positions)
    assert torch.equal(grad[0] != 0, valid.any(0))
    without = segment_nodes(segments, torch.tensor([0, 0, 1, 1]))
    assert without.position.shape == without.x.shape
    assert (without.position == 0).all()


def test_gradient_reaches_the_prototypes_through_the_nodes():
    emb, regions, valid = views()
    segments = segment_views(emb, regions, valid, (2, 2), 3)
    nodes = segment_nodes(segments, torch.tensor([0, 0, 1, 1]))
    grads = [
        torch.autograd.grad(x.sin().sum(), emb, retain_graph=True)[0]
        for x in (nodes.x, segments.prototypes)
    ]
    torch.testing.assert_close(*grads)


def test_more_than_256_nodes():
    emb = torch.randn(2, C, 20, 20)
    regions = torch.arange(400).view(20, 20).expand(2, -1, -1)
    valid = torch.ones(2, 20, 20, dtype=torch.bool)
    segments = segment_views(emb, regions, valid, (1, 1), 1)
    nodes = segment_nodes(segments, torch.tensor([5, 5]))
    assert nodes.x.shape == (1, C, 800) and not nodes.padding.any()
    assert nodes.slot_of_segment.tolist() == list(range(800))


def test_nodes_refuse():
    segments = segment_views(*views(), (2, 2), 3)
    images = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="segments but only 3 slots; give slots=None"):
        segment_nodes(segments, images, slots=3)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(4,\)"):
        segment_nodes(segments, images[:3])
    with pytest.raises(ValueError, match=r"\(6, 5, 5\), expected \(C, 8, 10\)"):
        segment_nodes(segments, images, torch.zeros(C, 5, 5))
