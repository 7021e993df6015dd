"""Dense CRF against the recorded pairs."""

import pytest
import torch

from tests.golden.golden import assert_close, golden_files, load
from uss_utils import crf
from uss_utils.datasets.transforms import to_uint8

pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(not crf.available(), reason="pydensecrf is not installed"),
]


@pytest.mark.parametrize("path", golden_files("stego", "dense_crf*.npz"))
def test_dense_crf(path):
    pair = load(path)
    bytes_ = to_uint8(pair["in_image"])
    assert torch.equal(bytes_.movedim(-1, 0), pair["in_image_uint8"])
    posterior = crf.dense_crf(pair["in_image"], pair["in_logits"])
    agreement = (posterior.argmax(0) == pair["out_argmax"]).float().mean()
    assert agreement >= 0.99
    assert_close(posterior, pair["out_q"], 1e-4)
    assert torch.equal(crf.dense_crf(bytes_, pair["in_logits"]), posterior)
