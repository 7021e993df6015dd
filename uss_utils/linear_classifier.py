"""The linear classifier that MaskContrast is measured by: SGD on augmented images.

A 1x1 layer reads the classes off a frozen network's features; its logits are upsampled
to the image (Van Gansbeke et al., ICCV 2021, section 4, linear evaluation). It is a
measuring instrument that uses labels. :func:`uss_utils.readout.fit_linear` is the quick
one for codes that are known already; this one sees every image anew in every epoch.

MaskContrast keeps the epoch that scores best on the evaluated images; here the last one
counts, and the history tells how the others did.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.optim import SGD

from uss_utils.crf import CRFParams, CRFPool, dense_crf_batch
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.labels import IGNORE
from uss_utils.datasets.turning import random_turn
from uss_utils.environment import generator, pick_device
from uss_utils.metrics import Confusion
from uss_utils.presets import (
    Count,
    LessThanAll,
    NotNegative,
    Range,
    Whole,
    check_fields,
)
from uss_utils.probes import (
    LinearProbe,
    linear_prediction_upsampled,
    linear_probe_loss,
)
from uss_utils.schedules import step_schedule
from uss_utils.scored_batches import eval_mode, resized, scored_batches
from uss_utils.scoring import scores
from uss_utils.training import History, Step, fit
from uss_utils.upsampling import upsample

# Normalised images (B, 3, H, W) to features (B, C, h, w).
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClassifierRecipe:
    """How the classifier is trained; the defaults are MaskContrast's on VOC.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; an epoch's incomplete last batch is left out.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD, bias included.
        milestones: epochs (from 0) after which the rate is multiplied by ``decay``.
        decay: that factor.
        std: standard deviation of the first weights; the first biases are 0.
        augment: mirror, turn and zoom the training images.
        fill_label: label of what a turn brings in from outside: ignored, or 0, as the
            released code has it: black corners are taught as background.
        seed: of weights, order and augmentation.
    """

    epochs: Count = 60
    batch_size: Count = 16
    lr: NotNegative = 0.1
    momentum: LessThanAll = 0.9
    weight_decay: NotNegative = 1e-4
    milestones: tuple[Whole, ...] = (25,)
    decay: NotNegative = 0.1
    std: NotNegative = 0.01
    augment: bool = True
    fill_label: Annotated[int, Range(IGNORE)] = IGNORE
    seed: Whole = 0

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            ValueError: a field does not fit.
        """
        check_fields(self)

    def probe(self, dim: int, n_classes: int) -> LinearProbe:
        """The classifier before training, for features of ``dim`` channels."""
        draw = generator(self.seed)
        probe = LinearProbe(dim, n_classes, draw)
        with torch.no_grad():
            probe.weight.normal_(0, self.std, generator=draw)
            probe.bias.zero_()
        return probe

    def optimiser(self, probe: LinearProbe) -> SGD:
        """SGD over the classifier."""
        return SGD(
            probe.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


class TurnedImages:
    """Training images, mirrored, turned and zoomed anew whenever they are drawn.

    Args:
        dataset: its transform comes after the augmentation.
        recipe: whether and how to augment.
    """

    def __init__(self, dataset: SegmentationDataset, recipe: ClassifierRecipe):
        self.dataset, self.recipe = dataset, recipe

    def __len__(self) -> int:
        return len(self.dataset)

    def draw(self, indices: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels, int64 (B, H, W)."""
        if not self.recipe.augment:
            return self.dataset.batch(indices)
        items = []
        for index in indices.tolist():
            image, label = self.dataset.read(index)
            turned = random_turn(image, label, draw, fill_label=self.recipe.fill_label)
            items.append(self.dataset.transform(*turned))
        images, labels = zip(*items, strict=True)
        return torch.stack(images), torch.stack(labels)


def train_linear_classifier(
    features: Features,
    train_set: SegmentationDataset,
    recipe: ClassifierRecipe | None = None,
    *,
    eval_set: SegmentationDataset | None = None,
    device: str | torch.device = "cpu",
    prefetch: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> tuple[LinearProbe, History]:
    """Train a classifier on frozen features.

    Args:
        features: a module or a method of one, put into eval mode meanwhile, or a plain
            function, which has to see to it itself. It has to compute on ``device``.
        train_set: labelled images that its transform brings to one size.
        recipe: None: :class:`ClassifierRecipe` as it is.
        eval_set: scored after every epoch, at the network's size; the history's
            "eval_miou" keeps the figures, nothing is chosen by them.
        device: where to train; "auto" picks.
        prefetch: threads that read coming batches.
        checkpoint: file that an interrupted training continues from.
        progress: show how far it is.

    Returns:
        The classifier after the last epoch, and the figures of its training.

    Raises:
        ValueError: no labels, or fewer images than a batch takes.
    """
    recipe, device = recipe or ClassifierRecipe(), pick_device(str(device))
    n_classes = train_set.n_classes
    if not train_set.has_labels:
        raise ValueError(
            f"{train_set.name} {train_set.split} has no labels to learn from"
        )
    every = max(1, len(train_set) // recipe.batch_size)

    def loss(
        probe: LinearProbe, batch: tuple[Tensor, Tensor], step: Step
    ) -> dict[str, Tensor]:
        image, label = batch
        with torch.no_grad():
            feat = features(image).float()
        return {"loss": linear_probe_loss(probe(feat), label, n_classes)}

    def after(index: int, probe: LinearProbe, row: dict[str, Any]) -> None:
        if eval_set is not None and (index + 1) % every == 0:
            row["eval_miou"] = score_linear_classifier(
                features, probe, eval_set, own_size=False
            )["miou"]

    with eval_mode(features):
        with torch.no_grad():
            first = train_set.batch([0])[0]
            dim = features(first.to(device)).shape[1]
        probe = recipe.probe(dim, n_classes)
        history = fit(
            probe,
            loss,
            TurnedImages(train_set, recipe),
            steps=recipe.epochs * every,
            batch_size=recipe.batch_size,
            optimisers=recipe.optimiser(probe),
            schedule=step_schedule(recipe.milestones, recipe.decay, every),
            seed=recipe.seed,
            device=device,
            drop_last=True,
            prefetch=prefetch,
            checkpoint=checkpoint,
            progress=progress,
            on_step=after,
            config=asdict(recipe),
        )
    return probe.eval().requires_grad_(False), history


@torch.no_grad()
def score_linear_classifier(
    features: Features,
    probe: LinearProbe,
    dataset: SegmentationDataset,
    *,
    own_size: bool = True,
    crf_params: CRFParams | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> dict[str, Any]:
    """Accuracy and IoU over all pixels of a set; a class that never occurs counts 0.

    Args:
        features: see :func:`train_linear_classifier`.
        probe: the classifier, on the device it computes on.
        dataset: labelled images.
        own_size: bring the predictions back to the size of the stored labels, by
            nearest neighbour; otherwise the labels are those the transform gives.
        crf_params: sharpen the logits, brought to the scored size, by the dense CRF.
        batch_size: images at a time.
        progress: show a bar.

    Returns:
        ``acc``, ``miou``, ``miou_classes`` and ``iou`` in percent: the S of
        :mod:`uss_utils.evaluation`.

    Raises:
        ValueError: no images, no labels, or only ignored ones.
        ImportError: a CRF is asked for, but pydensecrf is missing.
    """
    confusion = Confusion(dataset.n_classes)
    with ExitStack() as stack:
        stack.enter_context(eval_mode(features))
        pool = stack.enter_context(CRFPool()) if crf_params else None
        batches = scored_batches(
            dataset, batch_size, pictures=crf_params is not None, progress=progress
        )
        for batch in batches:
            feat = features(batch.image.to(probe.weight.device)).float()
            size = tuple(batch.label.shape[-2:])
            if pool is not None:
                logits = list(upsample(probe(feat), size).cpu())
                sharp = dense_crf_batch(
                    batch.pictures, logits, params=crf_params, pool=pool
                )
                found = [each.argmax(0) for each in sharp]
            else:
                found = linear_prediction_upsampled(probe, feat, size).cpu()
            truth = batch.own if own_size else batch.label
            for pred, label in zip(found, truth, strict=True):
                pred = resized(pred[None], tuple(label.shape))[0]
                confusion.update(pred, label)
    return scores(confusion, "identity", dataset, absent=0)
