"""The two probes that read a code, and the two ways of fitting them.

*Alongside*: :class:`Readout` trains both in the same steps as the code, on a detached
copy of it, as STEGO and its successors do. *After*: :func:`refit` fits them to the
finished code, k-means for the clusters and a converged linear probe, so that a code is
judged by what it holds and not by how far its probes have come.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Adam

from uss_utils.clustering import kmeans
from uss_utils.probes import (
    ClusterProbe,
    LinearProbe,
    fit_linear_probe,
    linear_probe_loss,
)
from uss_utils.sampling import TILE, sample_pixels, tiles


class Readout(nn.Module):
    """Cluster probe and, for known classes, linear probe (STEGO, section 4).

    Args:
        dim: code channels D.
        n_clusters: number of clusters.
        n_classes: number of classes K; 0: no linear probe.
        generator: draws the start; None uses torch's global generator.
    """

    def __init__(
        self,
        dim: int,
        n_clusters: int,
        n_classes: int,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.n_classes = n_classes
        self.cluster = ClusterProbe(dim, n_clusters, generator=generator)
        self.linear = LinearProbe(dim, n_classes, generator) if n_classes else None

    def losses(self, code: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Losses of both probes; no gradient reaches the code.

        Args:
            code: shape (B, D, h, w).
            label: int64 (B, H, W), ignore = -1; None: no linear probe loss.

        Returns:
            "cluster", and "linear" where there are labels: scalars.
        """
        code = code.detach().float()
        losses = {"cluster": self.cluster(code)[0]}
        if self.linear is not None and label is not None:
            losses["linear"] = linear_probe_loss(
                self.linear(code), label, self.n_classes
            )
        return losses

    def optimisers(
        self, linear_lr: float = 5e-3, cluster_lr: float = 5e-3
    ) -> dict[str, Adam]:
        """One Adam per probe, by name."""
        found = {"cluster": Adam(self.cluster.parameters(), lr=cluster_lr)}
        if self.linear is not None:
            found["linear"] = Adam(self.linear.parameters(), lr=linear_lr)
        return found


def fit_clusters(
    rows: Tensor,
    n_clusters: int,
    *,
    metric: str = "cosine",
    restarts: int = 10,
    iterations: int = 50,
    generator: torch.Generator | None = None,
) -> ClusterProbe:
    """Cluster probe from k-means, the best of some restarts.

    Args:
        rows: codes, shape (n, D).
        n_clusters: number of clusters.
        metric: "cosine" or "euclidean".
        restarts: independent starts.
        iterations: of each.
        generator: draws the starts.

    Raises:
        ValueError: fewer rows than clusters, or rows that are not finite.
    """
    found = kmeans(
        rows,
        n_clusters,
        metric=metric,
        restarts=restarts,
        iterations=iterations,
        generator=generator,
    )
    probe = ClusterProbe.from_centroids(found.centroids, metric)
    return probe.to(rows.device)


def fit_linear(
    parts: Iterable[tuple[Tensor, Tensor]],
    n_classes: int,
    *,
    pixels: int = 256,
    steps: int = 500,
    lr: float = 1e-2,
    batch: int = 2048,
    generator: torch.Generator,
) -> LinearProbe:
    """Converged linear probe, trained on random labelled pixels of the upsampled code.

    Args:
        parts: batches of codes (B, D, h, w) and labels (B, H, W), ignore = -1.
        n_classes: K.
        pixels: drawn per image.
        steps: of Adam.
        lr: its learning rate.
        batch: pixels per step.
        generator: draws pixels, start and order.

    Raises:
        ValueError: (nearly) all pixels are ignored, or codes that are not finite.
    """
    drawn = [sample_pixels(code, label, pixels, generator) for code, label in parts]
    rows, classes = (torch.cat(part) for part in zip(*drawn, strict=True))
    if not len(rows):
        raise ValueError(
            f"none of {pixels} random pixels of each training image has a label: all "
            "of them, or nearly all, are ignored. Check the label ids, or leave the "
            "linear probe out with steps=0"
        )
    mean, directions = _conditioned(rows)
    probe = fit_linear_probe(
        *tiles((rows - mean) @ directions, classes, generator),
        n_classes,
        steps=steps,
        lr=lr,
        batch_size=max(1, batch // TILE**2),
        generator=generator,
    )
    weight = probe.weight[:, :, 0, 0] @ directions.T
    probe.bias -= weight @ mean
    probe.weight.copy_(weight[:, :, None, None])
    return probe


def _conditioned(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and directions (D, D) that give rows equal spread in all directions.

    Descent takes far fewer steps on such rows. The map is linear, so the probe fitted
    behind it is folded back into a linear probe on the code as it is.
    """
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh((centred.T @ centred / len(rows)).double())
    floor = 1e-4 * values[-1].clamp_min(1e-12)  # weaker directions are noise
    return mean, (vectors / (values.clamp_min(0) + floor).sqrt()).float()
