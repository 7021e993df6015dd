"""Whole training steps of MaskContrast against the recorded pairs."""

import pytest
import torch
from torch import nn

from tests.golden.golden import assert_close, golden_files, load
from uss_utils.methods._maskcontrast_network import MaskContrast
from uss_utils.pixel_embedder import PixelEmbedder

pytestmark = pytest.mark.golden
NAMES = {"head": "embedding", "classification_head": "saliency"}
DECIMALS = 2e-5


def under(pair: dict, prefix: str) -> dict[str, torch.Tensor]:
    """Entries of a network, under our names."""
    found = {}
    for name, value in pair.items():
        if name.startswith(prefix):
            part, _, rest = name.removeprefix(prefix).partition(".")
            found[f"{NAMES.get(part, part)}.{rest}"] = torch.as_tensor(value)
    return found


def model_of(pair: dict) -> MaskContrast:
    start = under(pair, "in_init_")
    kernel = start["backbone.0.weight"]
    width, side = len(kernel), kernel.shape[2]
    layers = [nn.Conv2d(3, width, side, stride=2, padding=side // 2)]
    if pair["param_batchnorm"]:
        layers.append(nn.BatchNorm2d(width, momentum=0.1))
    embedder = PixelEmbedder(
        nn.Sequential(*layers, nn.ReLU()),
        width,
        dim=len(start["embedding.weight"]),
        mid_channels=len(start["decoder.0.weight"]),
        head="linear",
    )
    missing, unknown = embedder.load_state_dict(start, strict=False)
    assert not unknown
    # Running statistics start as usual where the pair does not hold them.
    assert all("running" in name or "num_batches" in name for name in missing)
    model = MaskContrast(
        embedder,
        pair["in_queue"].shape[1],
        pair["param_temperature"],
        pair["param_key_momentum"],
    )
    model.queue.negatives.copy_(pair["in_queue"])
    return model.train()


@pytest.mark.parametrize("path", golden_files("maskcontrast", "train_steps*.npz"))
def test_steps(path):
    pair = load(path)
    model = model_of(pair)
    optimiser = torch.optim.SGD(
        model.query.parameters(),
        lr=pair["param_lr"],
        momentum=pair["param_momentum"],
        weight_decay=pair["param_weight_decay"],
    )
    for step in range(len(pair["in_images_query"])):
        names = ("images_query", "images_key", "masks_query", "masks_key")
        losses = model(*(pair[f"in_{name}"][step] for name in names))
        for name in ("contrastive", "saliency"):
            expected = pair[f"out_{name}_loss"][step]
            assert_close(losses[name].detach(), expected, 1e-5)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    assert_close(model.queue.negatives, pair["out_queue"], DECIMALS)
    assert int(model.queue.pointer) == pair["out_queue_ptr"]
    for name in ("query", "key"):
        state = getattr(model, name).state_dict()
        expected = under(pair, f"out_{name}_")
        assert expected.keys() >= dict(model.query.named_parameters()).keys()
        for entry, value in expected.items():
            assert_close(state[entry], value, DECIMALS)
