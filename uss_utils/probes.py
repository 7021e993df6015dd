"""Probes: the small instruments that read a code map.

A cluster probe groups patches without labels; a linear probe says how much of the
classes a straight cut can read off the code (it uses labels, so it is a measuring
instrument, never a method). Both are trained on detached codes.

Evaluation asks for scores at pixel resolution of the *upsampled code*. A 1x1 layer and
bilinear upsampling commute, so the functions here upsample K scores instead of D code
channels and give the same numbers for a fraction of the work (STEGO, evaluation).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from uss_utils.environment import pick_device
from uss_utils.rows import METRICS, as_float, check_metric
from uss_utils.upsampling import in_parts, upsample, upsampled_norm

EPS = 1e-12  # smallest norm a vector is divided by
PROBE_METRICS = (*METRICS, "dot")


def _uniform(shape: tuple[int, ...], bound: float, generator) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


class ClusterProbe(nn.Module):
    """Centroids in code space, learned by gradient descent (STEGO, sec. 3.2).

    Args:
        dim: code channels D.
        n_clusters: number of centroids K.
        metric: "cosine" compares directions; "euclidean" compares distances; "dot" is
            the plain inner product, which lets lengths of codes and centroids count
            (PriMaPs-EM's prototypes).
        generator: draws the start, N(0, 1); None uses torch's global generator.
    """

    def __init__(
        self,
        dim: int,
        n_clusters: int,
        metric: str = "cosine",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_metric(metric, PROBE_METRICS)
        self.metric = metric
        self.clusters = nn.Parameter(
            torch.randn(n_clusters, dim, generator=generator)  # free norm
        )

    @classmethod
    def from_centroids(
        cls, centroids: Tensor, metric: str = "cosine"
    ) -> "ClusterProbe":
        """Probe with given centroids (those of k-means, say), shape (K, D)."""
        probe = cls(centroids.shape[1], centroids.shape[0], metric)
        probe.clusters.data = centroids.detach().clone().float()
        return probe

    def linear_scores(self, x: Tensor) -> Tensor:
        """The part of the scores that is linear in the code.

        Cosine: <x, mu/|mu|>, not divided by |x|. Euclidean: <x, mu> - |mu|^2 / 2.
        Dot: <x, mu>.

        Args:
            x: codes, shape (B, D, h, w).

        Returns:
            shape (B, K, h, w).

        Raises:
            ValueError: the code has other channels than the centroids.
        """
        _check_channels(x, self.clusters.shape[1])
        if self.metric == "cosine":
            directions = F.normalize(self.clusters, dim=1, eps=EPS)
            return F.conv2d(x, directions[:, :, None, None])
        offset = None
        if self.metric == "euclidean":
            offset = self.clusters.square().sum(1) / -2
        return F.conv2d(x, self.clusters[:, :, None, None], offset)

    def scores(self, x: Tensor) -> Tensor:
        """How well each centroid fits each position.

        Args:
            x: codes, shape (B, D, h, w).

        Returns:
            shape (B, K, h, w): cosines, inner products, or for "euclidean"
            <x, mu> - |mu|^2 / 2, which is minus half the squared distance up to a term
            that all clusters share.
        """
        scores = self.linear_scores(x)
        if self.metric != "cosine":
            return scores
        return scores / x.norm(dim=1, keepdim=True).clamp_min(EPS)

    def forward(self, x: Tensor, alpha: float | None = None) -> tuple[Tensor, Tensor]:
        """Loss and assignment: -mean over positions of sum_k p_k z_k.

        Args:
            x: codes, shape (B, D, h, w); detach them unless they should learn too.
            alpha: None = p is the one-hot of the best cluster, a constant; a number =
                softmax(alpha * scores), which the gradient flows through.

        Returns:
            loss (scalar) and p, shape (B, K, h, w).
        """
        scores = self.scores(x)
        if alpha is None:
            best = scores.detach().max(1, keepdim=True).indices
            probs = torch.zeros_like(scores).scatter_(1, best, 1.0)
        else:
            probs = (alpha * scores).softmax(1)
        return -(probs * scores).sum(1).mean(), probs

    def log_probs(self, x: Tensor, alpha: float = 2.0) -> Tensor:
        """Log of softmax(alpha * scores) over the clusters, shape (B, K, h, w)."""
        return (alpha * self.scores(x)).log_softmax(1)


class LinearProbe(nn.Module):
    """One 1x1 layer from code to classes.

    Args:
        dim: code channels D.
        n_classes: classes K.
        generator: draws the start, U(+-1/sqrt(D)) as torch's own layers do; None uses
            torch's global generator.
    """

    def __init__(
        self, dim: int, n_classes: int, generator: torch.Generator | None = None
    ):
        super().__init__()
        bound = 1 / math.sqrt(dim)
        self.weight = nn.Parameter(_uniform((n_classes, dim, 1, 1), bound, generator))
        self.bias = nn.Parameter(_uniform((n_classes,), bound, generator))

    def forward(self, x: Tensor) -> Tensor:
        """Codes (B, D, h, w) to logits (B, K, h, w)."""
        _check_channels(x, self.weight.shape[1])
        return F.conv2d(x, self.weight, self.bias)


def _check_channels(x: Tensor, dim: int) -> None:
    if x.dim() != 4 or x.shape[1] != dim:
        raise ValueError(
            f"expected codes of shape (B, {dim}, h, w), got {tuple(x.shape)}; "
            "the probe belongs to another code"
        )


def linear_probe_loss(
    logits: Tensor, label: Tensor, n_classes: int, *, over: str = "labelled"
) -> Tensor:
    """Cross-entropy of the upsampled logits over the labelled pixels.

    Args:
        logits: shape (B, K, h, w).
        label: class ids, shape (B, H, W); pixels outside 0..K-1 are ignored.
        n_classes: K.
        over: the sum is divided by the number of "labelled" pixels, or of "all", so
            that ignored ones count as 0 (PriMaPs-EM).

    Returns:
        Scalar; zero (with zero gradient) where no pixel is labelled.

    Raises:
        ValueError: the logits do not have K channels, or ``over`` is unknown.
    """
    if logits.shape[1] != n_classes or len(logits) != len(label):
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit {len(label)} label maps of "
            f"{n_classes} classes"
        )
    if over not in ("labelled", "all"):
        raise ValueError(f"over={over!r} is unknown; known: labelled, all")
    valid = (label >= 0) & (label < n_classes)
    total = summed_cross_entropy(logits, torch.where(valid, label, -1).long())
    return total / (label.numel() if over == "all" else valid.sum().clamp(min=1))


def summed_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Sum of the cross-entropy of upsampled logits.

    Args:
        logits: shape (B, K, h, w).
        target: int64, 0..K-1 or -1 = ignored, shape (B, H, W).
        weight: of every class, shape (K,); None: 1.

    Returns:
        Scalar.
    """
    return _SummedCrossEntropy.apply(as_float(logits), target, weight)


class _SummedCrossEntropy(torch.autograd.Function):
    """Its gradient is computed at once, so that no map at pixel size has to be kept."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        size, asked = tuple(target.shape[-2:]), ctx.needs_input_grad[0]
        total, gradient = logits.new_zeros(()), torch.zeros_like(logits)
        for part in in_parts(logits, size):
            with torch.set_grad_enabled(asked):
                small = logits[part].detach().requires_grad_(asked)
                loss = F.cross_entropy(
                    upsample(small, size),
                    target[part],
                    weight,
                    ignore_index=-1,
                    reduction="sum",
                )
            total += loss.detach()
            if asked:
                (gradient[part],) = torch.autograd.grad(loss, small)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor) -> tuple[Tensor, None, None]:
        return scale * ctx.saved_tensors[0], None, None


def fit_linear_probe(
    codes: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    steps: int = 500,
    lr: float = 5e-3,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> LinearProbe:
    """Train a linear probe on given codes with Adam.

    Args:
        codes: shape (N, D, h, w); no gradient reaches them.
        labels: class ids, shape (N, H, W); pixels outside 0..K-1 are ignored.
        n_classes: K.
        steps: optimiser steps.
        lr: learning rate of Adam.
        batch_size: maps per step; maps are visited in shuffled epochs.
        generator: draws start and order; None uses torch's global generator.
        device: where to compute ("auto" picks); None = where the codes are.

    Returns:
        The trained probe, on ``device``.

    Raises:
        ValueError: counts differ, no pixel is labelled, codes are not finite, or the
            device is absent.
    """
    _check_training_set(codes, labels, n_classes)
    device = codes.device if device is None else pick_device(str(device))
    probe = LinearProbe(codes.shape[1], n_classes, generator).to(device)
    optimiser = torch.optim.Adam(probe.parameters(), lr=lr)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(len(codes), generator=generator)
        batch, order = order[:batch_size], order[batch_size:]
        logits = probe(codes[batch.to(codes.device)].detach().to(device).float())
        label = labels[batch.to(labels.device)].to(device)
        optimiser.zero_grad()
        linear_probe_loss(logits, label, n_classes).backward()
        optimiser.step()
    return probe.requires_grad_(False)


def _check_training_set(codes: Tensor, labels: Tensor, n_classes: int) -> None:
    if len(codes) != len(labels):
        raise ValueError(
            f"{len(codes)} codes but {len(labels)} label maps; a linear probe needs "
            "one label map per code"
        )
    if not ((labels >= 0) & (labels < n_classes)).any():
        raise ValueError(
            f"no labelled pixel (classes 0..{n_classes - 1}): all pixels are ignored, "
            "so there is nothing a linear probe could learn"
        )
    if not codes.isfinite().all():
        raise ValueError(
            "the codes hold NaN or infinite values; check the model that made them"
        )


def cluster_log_probs_upsampled(
    probe: ClusterProbe, code: Tensor, size: tuple[int, int], alpha: float = 2.0
) -> Tensor:
    """``probe.log_probs(upsample(code, size), alpha)`` without upsampling the code.

    Args:
        probe: the cluster probe.
        code: shape (B, D, h, w).
        size: (H, W) in pixels.
        alpha: inverse temperature.

    Returns:
        shape (B, K, H, W).
    """
    scores = upsample(probe.linear_scores(code), size)
    if probe.metric == "cosine":
        # Upsampling the cosines themselves would be wrong: the norm of a blend of two
        # vectors is not the blend of their norms.
        alpha = alpha / upsampled_norm(code, size).clamp_min(EPS)
    return scores.mul_(alpha).log_softmax(1)  # in place: the maps are large


def linear_log_probs_upsampled(
    probe: LinearProbe, code: Tensor, size: tuple[int, int]
) -> Tensor:
    """``log_softmax(probe(upsample(code, size)))`` without upsampling the code.

    Args:
        probe: the linear probe.
        code: shape (B, D, h, w).
        size: (H, W) in pixels.

    Returns:
        shape (B, K, H, W).
    """
    return upsample(probe(code), size).log_softmax(1)


def cluster_prediction_upsampled(
    probe: ClusterProbe, code: Tensor, size: tuple[int, int]
) -> Tensor:
    """Best cluster per pixel of the upsampled code, int64, shape (B, H, W).

    The norm of the code is the same for all clusters, so it cannot change the winner.
    """
    return upsample(probe.linear_scores(code), size).max(1).indices


def linear_prediction_upsampled(
    probe: LinearProbe, code: Tensor, size: tuple[int, int]
) -> Tensor:
    """Best class per pixel of the upsampled code, int64, shape (B, H, W)."""
    return upsample(probe(code), size).max(1).indices
