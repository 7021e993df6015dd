"""Random patches and pixels."""

import pytest
import torch

from tests.models import Stripes
from uss_utils.environment import generator
from uss_utils.probes import upsample
from uss_utils.sampling import labels, sample_pixels, sample_tokens, tiles


def test_tokens_are_distinct_patches():
    feat = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    rows = sample_tokens(feat, 25, generator(0))
    assert rows.shape == (25, 3)
    all_rows = feat.permute(0, 2, 3, 1).reshape(-1, 3)
    found = (rows[:, None] == all_rows).all(-1)
    assert found.any(1).all()
    assert len(rows.unique(dim=0)) == 25
    assert sample_tokens(feat, 1000, generator(0)).shape == (40, 3)
    assert torch.equal(rows, sample_tokens(feat, 25, generator(0)))
    assert not torch.equal(rows, sample_tokens(feat, 25, generator(1)))


def test_pixels_carry_the_upsampled_code():
    draw = generator(0)
    code = torch.randn(3, 4, 5, 6, generator=draw)
    # The label is the pixel's own position, so it can be looked up.
    label = torch.arange(20 * 24).reshape(1, 20, 24).repeat(3, 1, 1)
    rows, classes = sample_pixels(code, label, 50, draw)
    assert rows.shape == (150, 4)
    large = upsample(code, (20, 24)).flatten(2)
    expected = torch.cat(
        [large[i][:, classes[50 * i : 50 * (i + 1)]].T for i in range(3)]
    )
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)


def test_ignored_pixels_are_dropped():
    label = torch.full((2, 8, 8), -1)
    label[1, :, :4] = 2
    rows, classes = sample_pixels(torch.randn(2, 3, 4, 4), label, 100, generator(0))
    assert classes.unique().tolist() == [2]
    assert 25 < len(rows) == len(classes) < 75


@pytest.mark.parametrize("n", [1, 64, 100])
def test_tiles_hold_every_row_once(n):
    rows = torch.arange(n * 2.0).reshape(n, 2)
    classes = torch.arange(n)
    codes, label = tiles(rows, classes, generator(0))
    assert codes.shape == (-(-n // 64), 2, 8, 8)
    valid = label >= 0
    flat = codes.movedim(1, -1)[valid]
    order = label[valid].argsort()
    assert torch.equal(flat[order], rows)
    assert torch.equal(label[valid][order], classes)


def test_labels_of_a_whole_set():
    data = Stripes(n=5)
    found = labels(data, batch_size=2)
    assert found.dtype == torch.int16
    assert torch.equal(found.long(), data.batch(range(5))[1])
