"""A small network that learns to predict object masks from patch features.

Masks found image by image fail on some images; a head trained on all of them averages
that out: the lesson of DeepUSPS (Nguyen et al., NeurIPS 2019), from which MaskContrast
has its unsupervised masks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from uss_utils.batches import batch_indices
from uss_utils.rows import as_float
from uss_utils.upsampling import upsample

KINDS = ("linear", "conv")


def balanced_bce(
    logits: Tensor, masks: Tensor, background: Tensor | float | None = None
) -> Tensor:
    """Cross-entropy in which object and background weigh as much as the other's share.

    With the share w of background in the whole batch, the mean over all pixels of
    ``w softplus(-s)`` on objects and ``(1 - w) softplus(s)`` on background
    (MaskContrast, section 3.3). 0 where there is only one of both.

    Args:
        logits: s, floats of any shape.
        masks: same shape, bool or integers; above 0 = object.
        background: w, where these are not all pixels of the batch; None: that of the
            masks.

    Returns:
        Scalar, float32 (float64 stays).

    Raises:
        ValueError: the shapes differ, or there is no pixel.
    """
    if logits.shape != masks.shape or not logits.numel():
        raise ValueError(
            f"logits {tuple(logits.shape)} and masks {tuple(masks.shape)} must have "
            "the same shape, and at least one pixel"
        )
    logits, inside = as_float(logits), masks > 0
    if background is None:
        background = 1 - inside.to(logits).mean()
    weight = torch.where(inside, background, 1 - background)
    return (weight * F.softplus(torch.where(inside, -logits, logits))).mean()


class SaliencyHead(nn.Module):
    """Saliency logit of every patch.

    Its layers draw their start from torch's global generator.

    Args:
        in_channels: channels C of the features.
        kind: "linear": a 1x1 convolution; "conv": a 3x3 convolution, ReLU, and a 1x1
            convolution.
        hidden: channels between the two of "conv".

    Raises:
        ValueError: unknown kind.
    """

    def __init__(self, in_channels: int, kind: str = "linear", hidden: int = 64):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
        self.in_channels = in_channels
        if kind == "linear":
            self.layers = nn.Conv2d(in_channels, 1, 1)
        else:
            self.layers = nn.Sequential(
                nn.Conv2d(in_channels, hidden, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(hidden, 1, 1),
            )

    def forward(self, feat: Tensor) -> Tensor:
        """Logits: (B, C, h, w) -> (B, h, w)."""
        return self.layers(feat)[:, 0]


def distil_saliency(
    head: nn.Module,
    features: Tensor | Any,
    pseudo_masks: Tensor,
    epochs: int = 3,
    lr: float = 1e-3,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> list[float]:
    """Train a head to predict masks, with Adam and :func:`balanced_bce`.

    Args:
        head: from (B, C, h, w) to logits (B, h, w); trained in place.
        features: shape (N, C, h, w), or a
            :class:`~uss_utils.feature_cache.FeatureCache`.
        pseudo_masks: bool or integers, above 0 = object, shape (N, H, W); logits are
            upsampled to their size.
        epochs: passes over the images.
        lr: learning rate of Adam.
        batch_size: images per step.
        seed: of the order.
        progress: show a bar.

    Returns:
        Mean loss of every epoch.

    Raises:
        ValueError: counts differ, or there is only object or only background.
    """
    n = len(features)
    if len(pseudo_masks) != n:
        raise ValueError(f"{n} images of features, but {len(pseudo_masks)} masks")
    share = float((pseudo_masks > 0).float().mean()) if n else 0.0
    if share in (0.0, 1.0):
        what = "object" if share else "background"
        raise ValueError(f"the masks hold {what} only, so there is nothing to learn")
    optimiser = torch.optim.Adam(head.parameters(), lr=lr)
    device = next(head.parameters()).device
    size, per_epoch = tuple(pseudo_masks.shape[-2:]), -(-n // batch_size)
    losses = []
    for step in tqdm(range(epochs * per_epoch), "distil", disable=not progress):
        items = batch_indices(step, n, batch_size, seed)
        known = features[items] if isinstance(features, Tensor) else None
        feat = features.batch(items) if known is None else known
        logits = upsample(head(feat.to(device).float())[:, None], size)[:, 0]
        loss = balanced_bce(logits, pseudo_masks[items].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    means = torch.stack(losses).split(per_epoch) if losses else ()
    return [float(part.mean()) for part in means]
