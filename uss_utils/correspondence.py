"""Correspondences: how similar every place of one image is to every place of another.

STEGO learns from them (section 3), and they are worth looking at by themselves: the
tensors here have shape (B, h, w, i, j), where ``[b, h, w, i, j]`` compares place (h, w)
of the first image of pair b with place (i, j) of the second.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uss_utils.features import sample_at

EPS = 1e-10  # smallest norm a vector is divided by


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every place of one map with every place of another (STEGO, eq. 1).

    Args:
        a: vectors of the first images, shape (B, C, h, w).
        b: vectors of the second images, shape (B, C, i, j).

    Returns:
        In [-1, 1], shape (B, h, w, i, j).

    Raises:
        ValueError: maps of different number or width.
    """
    if a.ndim != 4 or b.ndim != 4 or a.shape[:2] != b.shape[:2]:
        raise ValueError(
            "a correlation needs two maps of shape (B, C, h, w) with the same B and C, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return _products(_unit(a), _unit(b))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1, eps=EPS)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of all places of two maps, (B, h, w, i, j)."""
    found = a.flatten(2).transpose(1, 2) @ b.flatten(2)
    return found.view(-1, *a.shape[2:], *b.shape[2:])


def centre(corr: Tensor) -> Tensor:
    """Take from every place what it shares with the whole second image.

    The mean over (i, j) is subtracted: a place that resembles everything attracts
    nothing in particular. The released code then adds the mean of the whole uncentred
    tensor, over all pairs, which the paper does not mention; all published shifts are
    made for that.

    Args:
        corr: shape (B, h, w, i, j).

    Returns:
        Same shape and same overall mean; for every place its mean over (i, j) is that
        overall mean.
    """
    return corr - (corr.mean((3, 4), keepdim=True) - corr.mean())


def pair_loss(
    feat_corr: Tensor,
    code_corr: Tensor,
    shift: float,
    clamp: bool = True,
    stabilize: bool = False,
) -> Tensor:
    """Loss of every pair of places (STEGO, eq. 4).

    ``-code_corr * (feat_corr - shift)``: codes of places whose features correlate above
    the shift are pulled together, the others pushed apart.

    Args:
        feat_corr: of the features, usually centred; a constant, shape (B, h, w, i, j).
        code_corr: of the codes, same shape; the gradient flows through it.
        shift: the limit b between attraction and repulsion.
        clamp: codes that are at least orthogonal are not pushed further: negative
            ``code_corr`` counts as 0 and gets no gradient.
        stabilize: likewise, ``code_corr`` above 0.8 counts as 0.8.

    Returns:
        Same shape.
    """
    lowest = 0.0 if clamp else -9999.0  # a cosine never gets there
    limited = code_corr.clamp(lowest, 0.8 if stabilize else None)
    return limited * (shift - feat_corr.detach())


def shift_for_share(feat_corr: Tensor, share: float) -> float:
    """The shift that lets a given share of the pairs of places attract each other.

    Published shifts suit one backbone; a share carries over to other features.

    Args:
        feat_corr: centred, any shape.
        share: in [0, 1].

    Returns:
        The (1 - share)-quantile: ``(feat_corr > shift)`` holds for ``share`` of all
        entries, up to one entry (and ties).

    Raises:
        ValueError: a share outside [0, 1], no entries, or entries that are not finite.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies in [0, 1], got {share}")
    values = feat_corr.detach().float().cpu().numpy()
    if not values.size or not np.isfinite(values).all():
        raise ValueError(
            "a shift can only be found among finite correlations; got "
            + ("none at all" if not values.size else "NaN or infinite ones")
        )
    return float(np.quantile(values, 1 - share))


def random_coords(
    n: int, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Random points (x, y) in [-1, 1), shape (n, samples, samples, 2)."""
    return 2 * torch.rand(n, samples, samples, 2, generator=generator) - 1


def random_partners(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Another image of the batch for every image.

    A random permutation in which every image that met itself gets the next one
    instead; the result is then no permutation any more.

    Args:
        n: images in the batch.
        generator: CPU generator; None uses torch's global one.

    Returns:
        Index of each image's partner, never its own, int64 (n,).

    Raises:
        ValueError: fewer than two images.
    """
    if n < 2:
        raise ValueError(
            f"random pairs need at least two images in a batch, got {n}; raise "
            "batch_size, or leave out an incomplete last batch"
        )
    partners = torch.randperm(n, generator=generator)
    own = partners == torch.arange(n)
    return (partners + own) % n


class Terms(NamedTuple):
    """One value for each kind of pair that STEGO learns from.

    Attributes:
        intra: two places of the same image.
        inter: a place of the image, one of a nearest neighbour.
        neg: a place of the image, one of another image of the batch.
    """

    intra: float
    inter: float
    neg: float


def pair_correlations(
    map: Tensor, map_pos: Tensor, coords: tuple[Tensor, Tensor], perms: Tensor
) -> dict[str, list[Tensor]]:
    """Correlations at sampled points for the three kinds of pairs.

    Args:
        map: features or codes of the images, shape (B, C, h, w).
        map_pos: those of their neighbours, same shape.
        coords: points of the images, and points of the images they are compared with,
            each (B, P, Q, 2) as in :func:`~uss_utils.features.sample_at`.
        perms: row r holds the partner of every image in draw r, int64 (R, B).

    Returns:
        For each of :class:`Terms` a list, of one element or ("neg") of R, of
        correlations, shape (B, Q, P, Q, P).
    """
    here, there = (points.to(map) for points in coords)
    own, near = _unit(sample_at(map, here)), _unit(sample_at(map_pos, there))
    # index_select copies whole images, several times faster than map[partners].
    others = (map.index_select(0, partners) for partners in perms.to(map.device))
    return {
        "intra": [_products(own, own)],
        "inter": [_products(own, near)],
        "neg": [_products(own, _unit(sample_at(other, there))) for other in others],
    }


class CorrespondenceLoss(nn.Module):
    """STEGO's loss: the weighted mean of the pair loss over three kinds of pairs.

    Args:
        weights: of the three terms, in the order of :class:`Terms`.
        shifts: limits b between attraction and repulsion, likewise.
        samples: S; S x S random points of each image are compared.
        negatives: random partners per image.
        pointwise: centre the correlations of the features (:func:`centre`).
        zero_clamp: see ``clamp`` of :func:`pair_loss`.
        stabilize: see :func:`pair_loss`.

    Raises:
        ValueError: not three weights and shifts, or nothing to sample.
    """

    def __init__(
        self,
        weights: tuple[float, float, float],
        shifts: tuple[float, float, float],
        samples: int = 11,
        negatives: int = 5,
        pointwise: bool = True,
        zero_clamp: bool = True,
        stabilize: bool = False,
    ):
        super().__init__()
        if len(weights) != 3 or len(shifts) != 3:
            raise ValueError(
                "three weights and three shifts are needed (intra, inter, neg), got "
                f"{len(weights)} and {len(shifts)}"
            )
        if samples < 1 or negatives < 1:
            raise ValueError(
                "at least one sample and one negative are needed, got "
                f"samples={samples}, negatives={negatives}"
            )
        self.weights, self.shifts = Terms(*weights), Terms(*shifts)
        self.samples, self.negatives = samples, negatives
        self.pointwise, self.zero_clamp = pointwise, zero_clamp
        self.stabilize = stabilize

    def draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Random points and partners for a batch of ``n`` images.

        Returns:
            ``coords`` and ``perms`` as :func:`pair_correlations` takes them.

        Raises:
            ValueError: a batch of one image.
        """
        coords = tuple(random_coords(n, self.samples, generator) for _ in range(2))
        draws = [random_partners(n, generator) for _ in range(self.negatives)]
        return coords, torch.stack(draws)

    def forward(
        self,
        feat: Tensor,
        feat_pos: Tensor,
        code: Tensor,
        code_pos: Tensor,
        coords: tuple[Tensor, Tensor] | None = None,
        perms: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of pairs.

        Args:
            feat: features of the images, shape (B, C, h, w).
            feat_pos: features of their neighbours, same shape.
            code: codes of the images, shape (B, D, h, w).
            code_pos: codes of the neighbours, same shape.
            coords: points, see :func:`pair_correlations`; None draws them.
            perms: partners, see :func:`pair_correlations`; None draws them.
            generator: CPU generator of the draws; None uses torch's global one.

        Returns:
            The loss, and its parts by term ("intra", "inter", "neg"), detached:
            ``parts["intra"]`` is the mean pair loss, ``parts["map_intra"]`` the pair
            loss of every pair of places and ``parts["code_intra"]`` the correlation of
            their codes, both (B, Q, P, Q, P); for "neg" (R B, ...), draw by draw.

        Raises:
            ValueError: a batch of one image and no ``perms``.
        """
        if coords is None or perms is None:
            drawn = self.draw(len(feat), generator)
            coords = drawn[0] if coords is None else coords
            perms = drawn[1] if perms is None else perms
        # Cosines in half precision would round away what the shifts tell apart.
        with torch.autocast(feat.device.type, enabled=False):
            with torch.no_grad():
                feats = pair_correlations(feat.float(), feat_pos.float(), coords, perms)
            codes = pair_correlations(code.float(), code_pos.float(), coords, perms)
            return self._total(feats, codes)

    def _total(
        self, feats: dict[str, list[Tensor]], codes: dict[str, list[Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = 0.0, {}
        for name, weight in self.weights._asdict().items():
            shift = getattr(self.shifts, name)
            losses = torch.cat(
                [
                    pair_loss(
                        centre(f) if self.pointwise else f,
                        s,
                        shift,
                        self.zero_clamp,
                        self.stabilize,
                    )
                    for f, s in zip(feats[name], codes[name], strict=True)
                ]
            )
            mean = losses.mean()
            total = total + weight * mean
            parts[name] = mean.detach()
            parts[f"map_{name}"] = losses.detach()
            parts[f"code_{name}"] = torch.cat(codes[name]).detach()
        return total, parts
