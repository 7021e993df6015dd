import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from uss_utils.environment import generator
from uss_utils.heads import (
    HEADS,
    Chain,
    SegmentationHead,
    Standardise,
    channel_dropout,
    fit_standardise,
    from_config,
)


def test_head_is_the_sum_of_its_branches():
    head = SegmentationHead(6, 4).eval()
    feat = torch.randn(2, 6, 3, 5)
    rows = feat.permute(0, 2, 3, 1)
    first, middle, last = (
        (layer.weight[:, :, 0, 0], layer.bias)
        for layer in (head.linear, head.nonlinear[0], head.nonlinear[2])
    )
    hidden = (rows @ middle[0].T + middle[1]).relu()
    expected = rows @ first[0].T + first[1] + hidden @ last[0].T + last[1]
    torch.testing.assert_close(head(feat), expected.permute(0, 3, 1, 2))
    names = {name.rpartition(".")[0] for name in head.state_dict()}
    assert names == {"linear", "nonlinear.0", "nonlinear.2"}


def test_linear_head_alone():
    head = SegmentationHead(6, 4, nonlinear=False)
    assert set(head.state_dict()) == {"linear.weight", "linear.bias"}
    feat = torch.randn(1, 6, 2, 2)
    torch.testing.assert_close(head.eval()(feat), head.linear(feat))


def test_dropout_only_while_training_and_from_the_generator():
    head, feat = SegmentationHead(64, 4), torch.randn(2, 64, 3, 3)
    torch.testing.assert_close(head.eval()(feat), head.eval()(feat))
    head.train()
    first = head(feat, generator(1))
    torch.testing.assert_close(first, head(feat, generator(1)))
    assert not torch.equal(first, head(feat, generator(2)))
    still = SegmentationHead(64, 4, dropout=0).train()
    torch.testing.assert_close(still(feat), still.eval()(feat))


def test_both_branches_draw_their_own_mask():
    head = SegmentationHead(64, 64)
    draws = generator(0)
    head._drop(torch.ones(1, 64, 1, 1), draws)
    masks = generator(0)
    first = channel_dropout(torch.ones(1, 64, 1, 1), generator=masks)
    second = channel_dropout(torch.ones(1, 64, 1, 1), generator=masks)
    assert not torch.equal(first, second)
    code = head(torch.ones(1, 64, 1, 1), generator(0))
    torch.testing.assert_close(code, head.linear(first) + head.nonlinear(second))


def test_channel_dropout_takes_whole_channels_per_image():
    feat = torch.ones(50, 200, 2, 2)
    dropped = channel_dropout(feat, 0.1, generator=generator(0))
    values = dropped.flatten(2)
    assert torch.equal(values[..., 0], values[..., 3])
    assert values.unique().tolist() == pytest.approx([0, 1 / 0.9])
    assert (values[..., 0] == 0).float().mean() == pytest.approx(0.1, abs=0.01)
    assert not torch.equal(values[0], values[1])


def test_channel_dropout_with_a_recorded_mask():
    feat = torch.randn(2, 3, 2, 2)
    keep = torch.tensor([[True, False, True], [True, True, True]])
    dropped = channel_dropout(feat, 0.5, keep=keep)
    torch.testing.assert_close(dropped, 2 * feat * keep[:, :, None, None])
    assert channel_dropout(feat, 0.0) is feat
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 3\), got \(2,\)"):
        channel_dropout(feat, keep=keep[:, 0])
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\), got 1"):
        channel_dropout(feat, 1)


def test_cosine_between_images_shrinks_by_the_dropout_share():
    """Within an image the mask is shared and cancels; between images it does not."""
    feat = torch.randn(1, 4000, 1, 2) + 1
    pair = torch.cat([feat, feat])
    dropped = channel_dropout(pair, 0.1, generator=generator(0))
    cosine = torch.nn.functional.cosine_similarity
    clean = cosine(feat[0, :, 0, 0], feat[0, :, 0, 1], dim=0)
    within = cosine(dropped[0, :, 0, 0], dropped[0, :, 0, 1], dim=0)
    across = cosine(dropped[0, :, 0, 0], dropped[1, :, 0, 1], dim=0)
    assert within == pytest.approx(float(clean), rel=0.03)
    assert across == pytest.approx(0.9 * float(clean), rel=0.04)


def test_standardise():
    feat, mean = torch.randn(2, 5, 3, 4), torch.randn(5)
    projection = torch.randn(5, 2)
    torch.testing.assert_close(Standardise(mean)(feat), feat - mean[:, None, None])
    rows = (feat - mean[:, None, None]).permute(0, 2, 3, 1) @ projection
    code = Standardise(mean, projection)(feat)
    torch.testing.assert_close(code, rows.permute(0, 3, 1, 2))
    assert not list(Standardise(mean, projection).parameters())


@pytest.mark.parametrize(
    "head",
    [
        SegmentationHead(6, 4),
        SegmentationHead(6, 4, nonlinear=False, dropout=0.0),
        Standardise(torch.randn(6)),
        Standardise(torch.randn(6), torch.randn(6, 3)),
    ],
    ids=["head", "linear head", "centre", "whiten"],
)
def test_config_and_state_restore_a_head(head, tmp_path):
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    config = json.loads(json.dumps(head.config()))
    again = from_config(config)
    again.load_state_dict(load_file(tmp_path / "head.safetensors"))
    feat = torch.randn(2, 6, 3, 3)
    assert type(again) is HEADS[config["kind"]]
    torch.testing.assert_close(again.eval()(feat), head.eval()(feat))
    assert again.config() == head.config()


def test_bad_input():
    with pytest.raises(ValueError, match="unknown head 'mlp'; known: segmentation, st"):
        from_config({"kind": "mlp"})
    with pytest.raises(ValueError, match="wrong fields for the head 'segmentation'"):
        from_config({"kind": "segmentation", "width": 3})
    for head in (SegmentationHead(6, 4), Standardise(torch.zeros(6))):
        with pytest.raises(ValueError, match=r"\(B, 6, h, w\), got \(1, 5, 2, 2\)"):
            head(torch.zeros(1, 5, 2, 2))
    with pytest.raises(ValueError, match=r"mean must have shape \(C,\)"):
        Standardise(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"projection must have shape \(3, D\)"):
        Standardise(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="mean contains NaN"):
        Standardise(torch.full((3,), torch.nan))


# ------------------------------------------------- the fixed map, and two maps as one


def rows(n=500, dim=6):
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(dim, dim, generator=draw)
    return torch.randn(n, dim, generator=draw) @ mix + 5


def test_centring_and_whitening():
    x = rows()

    def applied(head):
        return head(x[:, :, None, None])[:, :, 0, 0]

    centred = applied(fit_standardise(x, "centre"))
    torch.testing.assert_close(centred.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    white = applied(fit_standardise(x, "whiten", 4))
    assert white.shape == (500, 4)
    torch.testing.assert_close(white.T.cov(), torch.eye(4), atol=1e-3, rtol=0)
    assert torch.equal(applied(fit_standardise(x, "none")), x)


def test_whitening_keeps_at_most_the_channels_there_are():
    assert fit_standardise(rows(dim=3), "whiten", 32).dim == 3
    with pytest.raises(ValueError, match="known: none, centre, whiten"):
        fit_standardise(rows(), "bleach")


def test_chain_applies_both_and_is_restored_from_its_config():
    first, then = fit_standardise(rows(), "whiten", 4), SegmentationHead(4, 3)
    chain = Chain(first, then).eval()
    feat = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(chain(feat), then.eval()(first(feat)))
    again = from_config(chain.config()).eval()
    again.load_state_dict(chain.state_dict())
    assert torch.equal(again(feat), chain(feat))
    assert (chain.in_dim, chain.dim) == (6, 3)
    with pytest.raises(ValueError, match="gives 4 channels, the second takes 6"):
        Chain(first, SegmentationHead(6, 3))
