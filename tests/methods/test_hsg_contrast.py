"""The contrast of pixels with segments, of centroids, and the retrieval monitor."""

import math

import pytest
import torch
import torch.nn.functional as F

from uss_utils.environment import generator
from uss_utils.methods import _hsg_contrast
from uss_utils.methods._hsg_contrast import (
    centroid_contrast,
    retrieval_accuracy,
    segment_contrast,
)

P, S, C = 60, 14, 6


def plain_losses(pixels, own, prototypes, labels, kappa=16.0, own_only=False):
    """The loss of each pixel from whole matrices, differentiated by autograd."""
    scores = kappa * pixels @ prototypes.T
    same = labels[own][:, None] == labels
    itself = F.one_hot(own, len(prototypes)).bool()
    positive = same & ~itself
    alone = ~positive.any(1, keepdim=True) | own_only
    positive = torch.where(alone, itself, positive)
    apart = scores.masked_fill(~(positive | ~same), -torch.inf)
    near = scores.masked_fill(~positive, -torch.inf)
    return apart.logsumexp(1) - near.logsumexp(1)


def batch(seed=0, dtype=torch.float64, kinds=(3, 5, 14)):
    """Pixels, own segments, prototypes, and a labelling per number of kinds."""
    draw = generator(seed)
    pixels, prototypes = (
        F.normalize(torch.randn(n, C, generator=draw, dtype=dtype), dim=1)
        for n in (P, S)
    )
    own = torch.randint(S, (P,), generator=draw)
    labels = [torch.randint(n, (S,), generator=draw) * 1000 - 7 for n in kinds]
    return pixels.requires_grad_(), own, prototypes.requires_grad_(), labels


def grads(loss, *inputs):
    return torch.autograd.grad(loss, inputs, retain_graph=True)


# ------------------------------------------------------------------- pixels, segments


@pytest.mark.parametrize("kappa", [1.0, 16.0, 32.0])
@pytest.mark.parametrize("block", [1, 100, 1 << 19])
@pytest.mark.parametrize("own_only", [False, True])
def test_value_and_gradients_equal_autograd(kappa, block, own_only, monkeypatch):
    monkeypatch.setattr(_hsg_contrast, "BLOCK", block)
    pixels, own, prototypes, labels = batch()
    alone = [(x[:, None] == x).sum(1) == 1 for x in labels]
    assert any(a.any() for a in alone) and not all(a.all() for a in alone)
    options = {"kappa": kappa, "own_only": own_only}
    each = segment_contrast(pixels, own, prototypes, labels, reduce=False, **options)
    plain = torch.stack(
        [plain_losses(pixels, own, prototypes, x, **options) for x in labels]
    )
    torch.testing.assert_close(each, plain)
    # Every pixel and level with a weight of its own.
    upstream = torch.randn(plain.shape, generator=generator(9), dtype=torch.float64)
    torch.testing.assert_close(
        grads((each * upstream).sum(), pixels, prototypes),
        grads((plain * upstream).sum(), pixels, prototypes),
    )


def test_gradcheck_beside_weighted_levels():
    pixels, own, prototypes, labels = batch()
    factors = torch.tensor([1, 0.1, 0.3], dtype=torch.float64)

    def loss(e, m):
        e, m = F.normalize(e, dim=1), F.normalize(m, dim=1)
        return (segment_contrast(e, own, m, labels) * factors).sum()

    assert torch.autograd.gradcheck(loss, (pixels, prototypes))


def test_several_labellings_are_each_alone():
    pixels, own, prototypes, labels = batch()
    values = segment_contrast(pixels, own, prototypes, labels)
    assert values.shape == (3,)
    for value, one in zip(values, labels, strict=True):
        single = segment_contrast(pixels, own, prototypes, one)
        assert single.shape == ()
        torch.testing.assert_close(single, value)
        torch.testing.assert_close(
            grads(value, pixels, prototypes), grads(single, pixels, prototypes)
        )
    each = segment_contrast(pixels, own, prototypes, labels[0], reduce=False)
    assert each.shape == (P,)
    torch.testing.assert_close(each.mean(), values[0])


def test_weights_of_pixels():
    pixels, own, prototypes, labels = batch()
    weights = torch.rand(P, generator=generator(3))
    weights[:20] = 0
    parts = (pixels, own, prototypes, labels)
    found = segment_contrast(*parts, weights=weights)
    each = segment_contrast(*parts, reduce=False)
    torch.testing.assert_close(found, each @ weights.double() / weights.double().sum())
    (grad,) = grads(found.sum(), pixels)
    assert (grad[:20] == 0).all() and (grad[20:] != 0).any()
    alike = segment_contrast(*parts, weights=torch.full((P,), 7.0))
    torch.testing.assert_close(alike, each.mean(1))
    nothing = segment_contrast(*parts, weights=torch.zeros(P))
    assert (nothing == 0).all()


@pytest.mark.parametrize("kappa", [1.0, 16.0])
@pytest.mark.parametrize(("m", "n"), [(3, 12), (0, 12), (1, 0), (0, 0)])
def test_all_the_same(m, n, kappa):
    """log((m + n) / m), alone log(1 + n), whatever the concentration."""
    one = F.normalize(torch.ones(1, C, dtype=torch.float64), dim=1)
    pixels, prototypes = one.expand(5, -1), one.expand(1 + m + n, -1)
    labels = torch.tensor([0] * (1 + m) + [1] * n)
    own = torch.zeros(5, dtype=torch.int64)
    loss = segment_contrast(pixels, own, prototypes, labels, kappa)
    expected = math.log((m + n) / m) if m else math.log(1 + n)
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_positives_far_behind_the_own_segment_count_in_32_bit():
    draw = generator(2)
    pixel = torch.zeros(1, C)
    pixel[0, 0] = 1
    near, far = torch.zeros(2, C)
    near[0], near[1] = 0.999, math.sqrt(1 - 0.999**2)
    far[0], far[2] = -0.9, math.sqrt(1 - 0.81)
    negative = F.normalize(torch.randn(1, C, generator=draw), dim=1)
    rows = torch.cat([near[None], far[None], negative])
    own, labels = torch.tensor([0]), torch.tensor([4, 4, 2])
    exact, single = (
        segment_contrast(pixel.to(d).requires_grad_(), own, rows.to(d), labels)
        for d in (torch.float64, torch.float32)
    )
    assert exact > 10
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)


def test_32_bit_is_close_to_64():
    pixels, own, prototypes, labels = batch()
    exact = segment_contrast(pixels, own, prototypes, labels)
    e, m = (x.detach().float().requires_grad_() for x in (pixels, prototypes))
    single = segment_contrast(e, own, m, labels)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-7)
    for a, b in zip(
        grads(single.sum(), e, m), grads(exact.sum(), pixels, prototypes), strict=True
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6)


def test_names_of_labels_order_of_segments_and_of_pixels_do_not_matter():
    pixels, own, prototypes, labels = batch()
    draw = generator(1)
    first, second = (torch.randperm(n, generator=draw) for n in (S, P))
    moved = first.argsort()[own][second]
    turned = segment_contrast(
        pixels[second], moved, prototypes[first], [5 - 3 * x[first] for x in labels]
    )
    torch.testing.assert_close(
        turned, segment_contrast(pixels, own, prototypes, labels)
    )


def test_one_side_may_be_constant():
    pixels, own, prototypes, labels = batch()
    both = grads(
        segment_contrast(pixels, own, prototypes, labels).sum(), pixels, prototypes
    )
    (left,) = grads(
        segment_contrast(pixels, own, prototypes.detach(), labels).sum(), pixels
    )
    (right,) = grads(
        segment_contrast(pixels.detach(), own, prototypes, labels).sum(), prototypes
    )
    assert torch.equal(left, both[0]) and torch.equal(right, both[1])


def test_no_pixel_and_a_single_segment():
    pixels, own, prototypes, labels = batch()
    none = segment_contrast(pixels[:0], own[:0], prototypes[:0], [own[:0]] * 3)
    assert none.tolist() == [0, 0, 0]
    assert all((g == 0).all() for g in grads(none.sum(), pixels, prototypes))
    single = segment_contrast(pixels, own * 0, prototypes[:1], labels[0][:1])
    assert single == 0
    assert all((g == 0).all() for g in grads(single, pixels, prototypes))


def test_second_derivatives_are_refused():
    pixels, own, prototypes, labels = batch()
    loss = segment_contrast(pixels, own, prototypes, labels[0])
    (grad,) = torch.autograd.grad(loss.square(), pixels, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_half_precision_under_autocast():
    pixels, own, prototypes, labels = batch(dtype=torch.float32)
    exact = segment_contrast(pixels, own, prototypes, labels)
    e, m = (x.detach().bfloat16().requires_grad_() for x in (pixels, prototypes))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = segment_contrast(pixels, own, prototypes, labels)
        half = segment_contrast(e, own, m, labels)
    assert torch.equal(same, exact)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0, atol=0.2)
    assert all(g.dtype == torch.bfloat16 for g in grads(half.sum(), e, m))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prototypes": torch.zeros(S, C + 1)}, r"\(60, 6\) and prototypes \(14, 7\)"),
        ({"prototypes": torch.zeros(S, C).double()}, "pixels are torch.float32 but"),
        (
            {"own": torch.zeros(P - 1).long()},
            r"own has shape \(59,\), expected \(60,\)",
        ),
        ({"weights": torch.ones(S)}, r"weights has shape \(14,\)"),
        ({"labels": torch.zeros(S + 1)}, r"shape \(14,\).* got \[\(15,\)\]"),
        ({"labels": []}, r"or be a sequence of such; got \[\]"),
        ({"kappa": 0}, "kappa=0 has to be above 0 and at most 32"),
        ({"kappa": 33.0}, "at most 32 for torch.float32"),
        ({"kappa": float("nan")}, "kappa=nan"),
    ],
)
def test_misfits_are_refused(change, message):
    pixels, own, prototypes, labels = batch(dtype=torch.float32)
    given = {"pixels": pixels, "own": own, "prototypes": prototypes, "labels": labels}
    with pytest.raises(ValueError, match=message):
        segment_contrast(**{**given, **change})


@pytest.mark.parametrize(("dtype", "kappa"), [("float32", 32.0), ("float64", 300.0)])
def test_largest_concentration_stays_finite(dtype, kappa):
    """Positives opposite, negatives and own segment the pixel itself: the worst."""
    rows = torch.zeros(400, C, dtype=getattr(torch, dtype))
    rows[:, 0] = 1
    rows[1, 0] = -1
    labels = torch.tensor([0, 0] + [1] * 398)
    e, m = rows[:1].clone().requires_grad_(), rows.requires_grad_()
    loss = segment_contrast(e, torch.tensor([0]), m, labels, kappa)
    assert loss.item() == pytest.approx(2 * kappa + math.log(398), rel=1e-5)
    for grad in grads(loss, e, m):
        assert grad.isfinite().all() and grad.abs().max() > 1


# -------------------------------------------------------------------------- centroids


def test_centroid_contrast_is_the_contrast_of_segments_that_are_all_alone():
    c = torch.randn(3, C, 4, generator=generator(0), dtype=torch.float64)
    c.requires_grad_()
    z = F.normalize(c.movedim(1, 2).flatten(0, 1), dim=1)
    number = torch.arange(12)
    expected = segment_contrast(z, number, z, number)
    found = centroid_contrast(c)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grads(found, c), grads(expected, c))
    torch.testing.assert_close(centroid_contrast(3 * c), found)


def test_landmarks_of_the_centroid_contrast():
    same = torch.ones(6, 64, 8)
    assert float(centroid_contrast(same)) == pytest.approx(math.log(48))
    apart = torch.eye(64)[:48].view(6, 8, 64).movedim(1, 2)
    expected = math.log1p(47 * math.exp(-16))
    assert float(centroid_contrast(apart)) == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(5.289e-6, rel=1e-3)
    assert centroid_contrast(torch.ones(1, 8, 1)) == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(centroid_contrast(apart)) == pytest.approx(expected, rel=1e-4)


def test_centroid_contrast_refuses():
    with pytest.raises(ValueError, match=r"shape \(B, C, K\).* got \(3, 4\) and 16"):
        centroid_contrast(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="kappa has to be above 0, .* and 0"):
        centroid_contrast(torch.zeros(3, 4, 2), 0)


# ---------------------------------------------------------------------------- monitor


def test_retrieval_accuracy_counts_labels_among_the_nearest():
    draw = generator(0)
    rows = F.normalize(torch.randn(30, C, generator=draw), dim=1)
    labels = torch.randint(4, (30,), generator=draw)
    order = (rows @ rows.T).argsort(1, descending=True)
    for k in (1, 5, 30):
        expected = (labels[order[:, :k]] == labels[:, None]).float().mean()
        torch.testing.assert_close(retrieval_accuracy(rows, labels, k), expected)
    assert retrieval_accuracy(rows, labels, 1) == 1  # itself
    all_of_them = retrieval_accuracy(rows, labels, 30)
    assert retrieval_accuracy(rows, labels, 99) == all_of_them
    assert retrieval_accuracy(rows[:0], labels[:0]) == 0
