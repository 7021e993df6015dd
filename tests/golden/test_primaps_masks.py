"""PriMaPs' mask extraction and refinement against the recorded pairs."""

import numpy as np
import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils import crf
from uss_utils.methods import _primaps_masks as masks
from uss_utils.methods._primaps_direction import principal_direction

pytestmark = pytest.mark.golden
needs_crf = pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is missing")


def params(pair) -> crf.CRFParams:
    names = {
        "iterations": "iters",
        "gaussian_compat": "pos_w",
        "gaussian_sxy": "pos_xy",
        "bilateral_compat": "bi_w",
        "bilateral_sxy": "bi_xy",
        "bilateral_srgb": "bi_rgb",
    }
    found = {own: pair[f"param_{name}"] for own, name in names.items()}
    return crf.CRFParams(**found | {"iterations": int(found["iterations"])})


@pytest.mark.parametrize("path", golden_files("primaps", "direction*.npz"))
def test_direction(path):
    pair = load(path)
    free = pair["in_free"].bool().flatten(1)
    found = principal_direction(pair["in_feat"].flatten(2), free)
    expected = pair["out_direction_upto_sign"]
    sign = (found * expected).sum(1, keepdim=True).sign()
    assert_close(found * sign, expected, 1e-4)


@pytest.mark.parametrize("path", golden_files("primaps", "mask_step*.npz"))
def test_one_round_for_a_given_direction(path):
    pair = load(path)
    seed, soft = masks.grow_mask(
        pair["in_feat"].flatten(2),
        pair["in_free"].bool().flatten(1),
        pair["in_direction"],
        pair["param_threshold"],
    )
    assert torch.equal(seed, pair["out_seed"].long())
    assert_close(soft, pair["out_soft"].flatten(1), 1e-5)


def proposals(pair):
    return masks.propose_masks(
        pair["in_feat"][None], pair["param_threshold"], pair["param_coverage"]
    )


@pytest.mark.parametrize("path", golden_files("primaps", "extract*.npz"))
def test_extraction(path):
    pair = load(path)
    found = proposals(pair)
    k = len(pair["out_seed"])
    assert found.count.tolist() == [k]
    assert torch.equal(found.seeds[0], pair["out_seed"].long())
    assert_close(found.directions[0], pair["out_direction"], 1e-4)
    assert_close(found.masks[0], pair["out_soft"], 1e-5)
    for i in range(k):
        assert torch.equal(found.free_before(i)[0], pair["out_free"][i].bool())
    assert torch.equal(found.free[0], pair["out_free_end"].bool())


@pytest.mark.parametrize("path", golden_files("primaps", "extract*.npz"))
def test_clean_up_and_unary(path):
    pair = load(path)
    found = proposals(pair)
    assert_close(masks.median_3x3(found.masks)[0], pair["out_median"], 1e-5)
    ids = masks.clean_masks(found)[0]
    k = len(pair["out_seed"])
    numbers = torch.arange(1, k + 1)[:, None, None]
    assert torch.equal((ids == numbers).float(), pair["out_binary"].float())
    assert torch.equal((ids == 0).float(), pair["out_background"].float())
    assert_close(masks.id_log_probs(ids, k), pair["out_logits"], 1e-5)


@needs_crf
@pytest.mark.parametrize("path", golden_files("primaps", "extract*.npz"))
def test_refined_labels(path):
    pair = load(path)
    found = proposals(pair)
    refined = masks.refine_masks(
        masks.clean_masks(found),
        pair["in_image_u8"][None],
        found.count,
        int(pair["param_ignore"]),
    )
    differing = (refined[0] != pair["out_labels"]).float().mean()
    assert differing <= 1e-3


@pytest.mark.parametrize("path", golden_files("primaps", "median*.npz"))
def test_median(path):
    pair = load(path)
    assert torch.equal(masks.median_3x3(pair["in_map"]), pair["out_median"])


@needs_crf
@pytest.mark.parametrize("path", golden_files("primaps", "crf*.npz"))
def test_crf(path):
    pair = load(path)
    found = crf.dense_crf(pair["in_image_u8"], pair["in_logits"], params(pair))
    assert_close(found, pair["out_q"], 1e-4)
    differing = (found.argmax(0) != pair["out_argmax"]).float().mean()
    assert differing <= 1e-3


@needs_crf
@pytest.mark.parametrize("path", golden_files("primaps", "extract*.npz"))
def test_a_batch_is_worked_on_in_lock_step(path):
    pair = load(path)
    feat = pair["in_feat"]
    batch = torch.stack([feat, feat.flip(-1), torch.ones_like(feat)])
    options = pair["param_threshold"], pair["param_coverage"]
    together = masks.propose_masks(batch, *options)
    for i, one in enumerate(batch):
        alone = masks.propose_masks(one[None], *options)
        k = int(alone.count)
        assert together.count[i] == k
        assert torch.equal(together.seeds[i, :k], alone.seeds[0])
        assert_close(together.masks[i, :k], alone.masks[0], 2e-5)
        assert not together.masks[i, k:].any()
    assert np.array_equal(masks.clean_masks(together)[2].unique(), [1])
