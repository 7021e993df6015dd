"""The linear classifier trained on augmented images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models import Stripes
from uss_utils import crf
from uss_utils.crf import CRFParams
from uss_utils.datasets.transforms import Transform
from uss_utils.environment import generator
from uss_utils.linear_classifier import (
    ClassifierRecipe,
    TurnedImages,
    score_linear_classifier,
    train_linear_classifier,
)
from uss_utils.metrics import Confusion
from uss_utils.probes import linear_prediction_upsampled
from uss_utils.upsampling import upsample

QUICK = ClassifierRecipe(epochs=12, batch_size=4, lr=0.5, milestones=(9,))


def levels(image):
    """Features that a straight cut can read: the brightness and how far it is off."""
    grey = image.mean(1, keepdim=True)
    return torch.cat([grey, (grey - 0.1).abs()], 1)


def test_brightness_is_learned_and_scored():
    data = Stripes(8, size=(24, 24))
    probe, history = train_linear_classifier(levels, data, QUICK, eval_set=data)
    figures = history.series("eval_miou")
    assert len(figures) == 12 and figures[-1] > 95
    assert score_linear_classifier(levels, probe, data)["miou"] == figures[-1]
    assert not probe.weight.requires_grad


def test_the_schedule_counts_epochs():
    recipe = ClassifierRecipe(epochs=4, batch_size=3, lr=1e-3, milestones=(1,))
    _, history = train_linear_classifier(levels, Stripes(7), recipe)
    assert history.series("lr").tolist() == pytest.approx([1e-3] * 4 + [1e-4] * 4)


def test_the_seed_decides_and_evaluating_changes_nothing():
    data = Stripes(8)

    def weight(seed=0, watch=None):
        recipe = ClassifierRecipe(2, 4, seed=seed)
        return train_linear_classifier(levels, data, recipe, eval_set=watch)[0].weight

    first, again, watched, other = weight(), weight(), weight(watch=data), weight(1)
    assert torch.equal(first, again) and torch.equal(first, watched)
    assert not torch.equal(first, other)


def test_the_start_is_small():
    probe = ClassifierRecipe(std=0.01).probe(4000, 5)
    assert probe.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not probe.bias.any()


def test_images_are_augmented_anew_before_they_are_resized():
    data = Stripes(3, size=(32, 32)).with_transform(Transform("resize", (16, 16)))
    draw = generator(0)
    turned = TurnedImages(data, ClassifierRecipe(fill_label=1))
    (image, label), (other, _) = (
        turned.draw(torch.tensor([2, 0]), draw) for _ in range(2)
    )
    assert image.shape == (2, 3, 16, 16) and label.shape == (2, 16, 16)
    assert not torch.equal(image, other)
    plain = TurnedImages(data, ClassifierRecipe(augment=False))
    image, label = plain.draw(torch.tensor([2, 0]), draw)
    assert torch.equal(image, data.batch([2, 0])[0])


def test_the_network_is_in_eval_mode_and_not_trained():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    recipe = ClassifierRecipe(1, 4)
    probe, _ = train_linear_classifier(net, Stripes(4), recipe)
    score_linear_classifier(net.forward, probe, Stripes(2))
    assert net.training
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())
    assert all(p.grad is None for p in net.parameters())


def test_predictions_go_back_to_the_size_of_the_labels():
    data = Stripes(4, size=(24, 40)).with_transform(Transform("resize", (16, 16)))
    probe = ClassifierRecipe(std=1.0).probe(2, 3)
    own = score_linear_classifier(levels, probe, data, batch_size=3)
    seen = score_linear_classifier(levels, probe, data, own_size=False)
    by_hand, small = Confusion(3), Confusion(3)
    rows, columns = torch.arange(24) * 16 // 24, torch.arange(40) * 16 // 40
    for i in range(4):
        image, label = data.batch([i])
        pred = linear_prediction_upsampled(probe, levels(image), (16, 16))
        small.update(pred, label)
        truth = torch.from_numpy(data.read_label(i))
        by_hand.update(pred[0][rows[:, None], columns], truth)
    for found, counted in ((own, by_hand), (seen, small)):
        assert found["miou"] == pytest.approx(counted.scores("identity").miou, abs=1e-3)


def test_a_class_that_never_occurs_counts_as_zero():
    data = Stripes(1, size=(8, 8))  # two row blocks would show two of three classes
    data.read = lambda i: (Stripes.read(data, i)[0], Stripes.read(data, i)[1] * 0)
    probe = ClassifierRecipe().probe(2, 3)
    probe.bias.data[0] = 9
    found = score_linear_classifier(levels, probe, data)
    assert found["iou"] == [100, 0, 0] and found["miou"] == pytest.approx(100 / 3, 1e-4)


@pytest.mark.skipif(not crf.available(), reason="pydensecrf is not installed")
def test_the_crf_works_at_the_size_of_the_labels():
    data = Stripes(2, size=(24, 40)).with_transform(Transform("resize", (16, 16)))
    params = CRFParams(iterations=3)

    def coarse(image):
        return F.avg_pool2d(levels(image), 8)

    recipe = ClassifierRecipe(10, 2, 0.5, augment=False)
    probe, _ = train_linear_classifier(coarse, data, recipe)
    found = score_linear_classifier(coarse, probe, data, crf_params=params)
    by_hand = Confusion(3)
    for i in range(2):
        pixels, label = (torch.from_numpy(part) for part in data.read(i))
        logits = upsample(probe(coarse(data.batch([i])[0])), (16, 16))[0]
        sharp = crf.dense_crf(pixels, logits, params)
        by_hand.update(sharp.argmax(0), label)
    assert found["acc"] == pytest.approx(by_hand.scores("identity").acc, abs=1e-3)
    assert found != score_linear_classifier(coarse, probe, data)


def test_what_cannot_be_trained_is_explained():
    with pytest.raises(ValueError, match="stripes train has no labels to learn from"):
        train_linear_classifier(levels, Stripes(labels=False), QUICK)
    with pytest.raises(ValueError, match="batch_size is 16"):
        train_linear_classifier(levels, Stripes(8))
