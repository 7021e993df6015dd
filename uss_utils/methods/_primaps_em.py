"""PriMaPs-EM's prototypes: their start, the votes of the masks, and how they learn."""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from uss_utils.pca import PCA
from uss_utils.probes import (
    EPS,
    LinearProbe,
    linear_probe_loss,
    summed_cross_entropy,
)
from uss_utils.schedules import EMA, Schedule
from uss_utils.upsampling import in_parts, upsample

NONE = 255  # id of a pixel that is in no mask
IDS = 256  # mask ids are bytes


class PrototypeHead(nn.Module):
    """One prototype per class, its direction and its length learned apart (6.1).

    Args:
        direction: v, shape (K, C), of any length: a longer one turns more slowly.
        gain: g, shape (K,); None: 1.
    """

    def __init__(self, direction: Tensor, gain: Tensor | None = None):
        super().__init__()
        gain = torch.ones(len(direction)).to(direction) if gain is None else gain
        if direction.dim() != 2 or gain.shape != direction.shape[:1]:
            raise ValueError(
                "prototypes are directions of shape (K, C) and gains of shape (K,), "
                f"got {tuple(direction.shape)} and {tuple(gain.shape)}"
            )
        self.direction = nn.Parameter(direction.detach().clone())
        self.gain = nn.Parameter(gain.detach().clone())

    def effective(self) -> Tensor:
        """The prototypes themselves, g v / |v|, shape (K, C)."""
        return self.gain[:, None] * F.normalize(self.direction, dim=1, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Inner products with all prototypes: (B, C, h, w) to (B, K, h, w).

        Raises:
            ValueError: features of another width.
        """
        k, c = self.direction.shape
        if x.dim() != 4 or x.shape[1] != c:
            raise ValueError(
                f"expected features of shape (B, {c}, h, w), got {tuple(x.shape)}; "
                f"the {k} prototypes belong to others"
            )
        return F.conv2d(x, self.effective()[:, :, None, None])


# ------------------------------------------------------------------------------ start


@torch.no_grad()
def pca_centers(feature_batches: Iterable[Tensor], n_classes: int) -> Tensor:
    """The leading principal directions of all patches (5.1), in one pass.

    Memory grows with the square of the channels, not with the number of images.

    Args:
        feature_batches: features, not normalised, shape (B, C, h, w) each.
        n_classes: K.

    Returns:
        Unit rows in order of falling variance, shape (K, C), float32 (float64 stays);
        the patches' mean projection on each is positive.

    Raises:
        ValueError: more prototypes than directions that the features span, or features
            that are not finite.
    """
    rows = (image.flatten(1).T for feat in feature_batches for image in feat)
    pca = PCA.fit_batches(rows)
    found, channels = pca.components.shape
    if not 1 <= n_classes <= found:
        raise ValueError(
            f"{n_classes} prototypes cannot start at as many principal directions: "
            f"these features of {channels} channels span {found}; use 1..{found} "
            "clusters, or other features"
        )
    directions = pca.components[:n_classes]
    backward = directions @ pca.mean < 0
    return torch.where(backward[:, None], -directions, directions)


def cosine_kmeans_loss(features: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the mean cosine of every patch with its best centre (5.2).

    The gradient reaches that centre alone, through its normalisation.

    Args:
        features: shape (B, C, h, w).
        centers: of any length, shape (K, C).

    Returns:
        loss (scalar) and index of the best centre, int64 (B, h, w).
    """
    directions = F.normalize(centers, dim=1, eps=EPS)
    patches = F.normalize(features, dim=1, eps=EPS)
    best = F.conv2d(patches, directions[:, :, None, None]).max(1)
    return -best.values.mean(), best.indices


# ----------------------------------------------------------------------------- E-step


@torch.no_grad()
def assign_masks(
    class_map: Tensor, masks: Tensor, n_classes: int, ignore: int = NONE
) -> Tensor:
    """Every mask takes the class that most of its pixels have (6.2).

    Args:
        class_map: integers 0..K-1, shape (B, H, W).
        masks: id of every pixel's mask, 0..255, shape (B, H, W); ids are counted image
            by image.
        n_classes: K.
        ignore: id of pixels that are in no mask.

    Returns:
        Class of every pixel's mask, the smallest of those that tie; ``ignore`` outside
        the masks; int64 (B, H, W).

    Raises:
        ValueError: shapes differ, or a value is out of range.
    """
    if class_map.shape != masks.shape or masks.dim() != 3:
        raise ValueError(
            f"classes {tuple(class_map.shape)} and masks {tuple(masks.shape)} need the "
            "same shape (B, H, W)"
        )
    for what, values, limit in (
        ("class", class_map, n_classes),
        ("mask id", masks, IDS),
    ):
        low, high = (int(end) for end in values.aminmax())
        if low < 0 or high >= limit:
            raise ValueError(f"a {what} lies in 0..{limit - 1}, got {low}..{high}")
    image = torch.arange(len(masks), device=masks.device)[:, None, None]
    place = masks + image * IDS
    votes = torch.bincount(
        (place * n_classes).add_(class_map).flatten(),
        minlength=len(masks) * IDS * n_classes,
    ).view(-1, n_classes)
    # No two classes are equal in this: the smaller one wins a tie on every device.
    order = torch.arange(n_classes, device=votes.device)
    winner = (votes * n_classes - order).argmax(1)
    winner.view(-1, IDS)[:, ignore] = ignore
    return winner[place]


# ----------------------------------------------------------------------------- M-step


@torch.no_grad()
def class_weights(logits: Tensor, size: tuple[int, int], gamma: float = 2.0) -> Tensor:
    """(1 - share of the class in the soft prediction) ^ gamma, per class (6.3).

    Args:
        logits: shape (B, K, h, w).
        size: (H, W), where the shares are counted.
        gamma: 0 weighs all classes alike.

    Returns:
        shape (K,), in [0, 1].
    """
    total = sum(
        upsample(logits[part], size).softmax(1).sum((0, 2, 3))
        for part in in_parts(logits, size)
    )
    return (1 - total / (len(logits) * size[0] * size[1])).clamp_min(0) ** gamma


def prototype_focal_loss(
    logits: Tensor, target: Tensor, gamma: float = 2.0, ignore: int = NONE
) -> Tensor:
    """Cross-entropy in which classes that are predicted often count less (6.3).

    Args:
        logits: of patches or of pixels, shape (B, K, h, w); they are upsampled to the
            target's size.
        target: classes, shape (B, H, W); pixels that hold ``ignore``, or no class
            0..K-1, count 0.
        gamma: see :func:`class_weights`; no gradient passes the weights.
        ignore: value of pixels without a class.

    Returns:
        Scalar: the weighted sum, divided by the number of all pixels.
    """
    target = target.long()
    valid = (target >= 0) & (target < logits.shape[1]) & (target != ignore)
    target = torch.where(valid, target, -1)
    weights = class_weights(logits, tuple(target.shape[-2:]), gamma)
    return summed_cross_entropy(logits, target, weights) / target.numel()


# --------------------------------------------------------------------------- momentum


def momentum_decay(call: int, max_decay: float = 0.98, warmup: bool = True) -> float:
    """Share of themselves that the slow prototypes keep at their n-th move (6.4).

    Args:
        call: n, from 1.
        max_decay: largest share.
        warmup: begin with a mean of the snapshots, 1 - 1/n: a plain copy for the first
            two moves, then every snapshot counts alike until ``max_decay`` is reached.
    """
    if not warmup:
        return max_decay
    return 0.0 if call <= 2 else min(1 - 1 / call, max_decay)


def momentum_ramp(
    every: int = 10, max_decay: float = 0.98, warmup: bool = True
) -> Schedule:
    """:func:`momentum_decay` as the decay of an :class:`EMA`.

    Args:
        every: steps between two moves; the average has to start at this step, too.
        max_decay: see :func:`momentum_decay`.
        warmup: see :func:`momentum_decay`.
    """
    return lambda step, total: momentum_decay(step // every, max_decay, warmup)


def ema_update(
    teacher: nn.Module,
    student: nn.Module,
    call: int,
    max_decay: float = 0.98,
    warmup: bool = True,
) -> float:
    """Move the slow prototypes, directions and gains as they are, once (6.4).

    Args:
        teacher: the slow prototypes; changed in place.
        student: the running ones.
        call: see :func:`momentum_decay`, as are the others.
        max_decay: largest decay.
        warmup: begin with a mean.

    Returns:
        The decay that was used.
    """
    decay = momentum_decay(call, max_decay, warmup)
    EMA(student, decay, target=teacher).update(0, 1)
    return decay


class EMStep(nn.Module):
    """Running and slow prototypes and the linear probe, and the losses of one step.

    Args:
        running: prototypes at their start; the slow ones begin as a copy.
        linear: linear probe that is trained alongside, or None.
        gamma: see :func:`class_weights`.
    """

    def __init__(
        self,
        running: PrototypeHead,
        linear: LinearProbe | None = None,
        *,
        gamma: float = 2.0,
    ):
        super().__init__()
        self.running = running
        self.slow = copy.deepcopy(running).requires_grad_(False)
        self.linear = linear
        self.gamma = gamma

    @torch.no_grad()
    def vote(self, x: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The E-step: what the slow prototypes see, and what the masks make of it.

        Args:
            x: features of the plain view, shape (B, C, h, w).
            masks: ids, 255 = none, shape (B, H, W).

        Returns:
            Class map and pseudo labels (255 = none), int64 (B, H, W).
        """
        logits, size = self.slow(x), tuple(masks.shape[-2:])
        parts = in_parts(logits, size)
        best = [upsample(logits[part], size).max(1).indices for part in parts]
        class_map = torch.cat(best)
        return class_map, assign_masks(class_map, masks, logits.shape[1])

    def losses(
        self,
        plain: Tensor,
        augmented: Tensor,
        masks: Tensor,
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """E-step on one view, M-step on the other.

        Args:
            plain: features of the plain view, shape (B, C, h, w).
            augmented: those of the same images with other colours, same shape.
            masks: ids, 255 = none, shape (B, H, W).
            label: int64 (B, H, W) for the linear probe, or None.

        Returns:
            Scalars: "focal" and, with a linear probe, "linear" (the sum divided by all
            pixels, 5.3), and their sum "loss".
        """
        _, pseudo = self.vote(plain, masks)
        logits = self.running(augmented)
        terms = {"focal": prototype_focal_loss(logits, pseudo, self.gamma)}
        if self.linear is not None and label is not None:
            logits = self.linear(plain)
            terms["linear"] = linear_probe_loss(
                logits, label, logits.shape[1], over="all"
            )
        return {"loss": sum(terms.values())} | terms

    def optimisers(self, lr: float, linear_lr: float) -> dict[str, Optimizer]:
        """Adam for the running prototypes and for the linear probe."""
        found = {"prototypes": Adam(self.running.parameters(), lr=lr)}
        if self.linear is not None:
            found["linear"] = Adam(self.linear.parameters(), lr=linear_lr)
        return found
