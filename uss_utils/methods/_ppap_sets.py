"""PPAP's sets: anchors, proxies that move to where patches are dense, three groups.

Everything here reads frozen features alone and carries no gradient. It is computed in
float32 whatever the autocast state: a rounded cosine would fall on the other side of
its boundary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from uss_utils.heads import channel_dropout


class Propagation(NamedTuple):
    """Where the proxies of S x A anchors ended (section 3.2).

    Attributes:
        sim: cosines of all N rows to the last proxy, shape (S, A, N).
        phi: boundary of the positives, shape (S, A).
        psi: boundary of the negatives, shape (S, A).
        proxy: unit vectors, shape (S, A, C).
        moved: length of the way, the sum of all steps' 1 - cos, shape (S, A).
        history: one entry for the start and one per step, if asked for.
    """

    sim: Tensor
    phi: Tensor
    psi: Tensor
    proxy: Tensor
    moved: Tensor
    history: "list[Moment] | None" = None


class Moment(NamedTuple):
    """The state after some steps.

    Attributes:
        proxy: shape (S, A, C).
        move: 1 - cos to the proxy before, shape (S, A); 0 at the start.
        phi: shape (S, A).
        psi: shape (S, A).
        sim: cosines to the proxy, shape (S, A, N).
        pos: rows beyond ``phi``, the anchor itself included, bool (S, A, N).
    """

    proxy: Tensor
    move: Tensor
    phi: Tensor
    psi: Tensor
    sim: Tensor
    pos: Tensor


class Sets(NamedTuple):
    """Which rows an anchor is compared with, bool (S, A, N) each (section 3.3).

    Attributes:
        pos: positives, without the anchor.
        low: rows below psi; the anchor may be among them.
        ambiguous: in neither set, without the anchor: they play no part.
        denominator: positives and low rows, without the anchor.
    """

    pos: Tensor
    low: Tensor
    ambiguous: Tensor
    denominator: Tensor


def reference_rows(
    ref: Tensor,
    keep: Tensor | None = None,
    drop: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Unit rows of the reference features, some channels of every image dropped.

    Two patches of one image lose the same channels, those of two images do not: cosines
    between images shrink to about 1 - drop of their value.

    Args:
        ref: frozen features, shape (B, C, h, w).
        keep: recorded mask, bool (B, C), instead of a draw.
        drop: share of channels dropped, in [0, 1).
        generator: CPU generator of the draw.

    Returns:
        float32, shape (B h w, C), rows ordered image by image.
    """
    kept = channel_dropout(ref.detach().float(), drop, keep=keep, generator=generator)
    return F.normalize(kept.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)


def sample_anchors(
    n_rows: int,
    chunk: int = 784,
    per_chunk: int = 49,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random rows of every chunk of consecutive rows.

    Rows behind the last whole chunk are never anchors. Fewer rows than one chunk make
    one chunk of their own, with at most as many anchors as there are rows.

    Args:
        n_rows: N.
        chunk: rows per chunk; the released code has 784, one image at patch 8.
        per_chunk: anchors A of each.
        generator: CPU generator.

    Returns:
        Row numbers, int64, shape (S, A), no row twice.

    Raises:
        ValueError: no rows, or more anchors asked for than a chunk has rows.
    """
    if n_rows < 1 or not 1 <= per_chunk <= chunk:
        raise ValueError(
            f"{per_chunk} anchors of each {chunk} rows of {n_rows}: at least one row "
            "is needed, and no more anchors than a chunk has rows"
        )
    chunk = min(chunk, n_rows)
    n_chunks = n_rows // chunk
    drawn = torch.rand(n_chunks, chunk, generator=generator).argsort(1)
    first = torch.arange(n_chunks)[:, None] * chunk
    return drawn[:, :per_chunk] + first


@torch.no_grad()
def propagate(
    x: Tensor,
    anchors: Tensor,
    phi0: float,
    psi0: float,
    sigma_pos: float,
    sigma_amb: float,
    steps: int,
    history: bool = False,
) -> Propagation:
    """Move a proxy from every anchor to where the patches around it are dense.

    Each step puts the proxy in the mean direction of its positives; the further it
    moved, by 1 - cos, the wider its positives' cap and the higher the boundary of the
    negatives (section 3.2, equations 2 to 5).

    Args:
        x: unit rows, shape (N, C).
        anchors: row numbers, shape (S, A).
        phi0: boundary of the positives at the start.
        psi0: boundary of the negatives at the start.
        sigma_pos: a move of d lowers phi by d / sigma_pos.
        sigma_amb: a move of d raises psi by d / sigma_amb.
        steps: T; 0 keeps the anchors themselves.
        history: keep every step.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        proxy = x[anchors.to(x.device)]
        phi, psi, moved = (
            torch.full(proxy.shape[:2], start, device=x.device)
            for start in (phi0, psi0, 0.0)
        )
        sim = proxy @ x.T
        pos = sim > phi[..., None]
        past = [Moment(proxy, moved, phi, psi, sim, pos)] if history else None
        for _ in range(steps):
            # The direction of the mean is that of the sum: one product of matrices.
            target = F.normalize(pos.float() @ x, dim=-1)
            move = 1 - (proxy * target).sum(-1)
            psi, phi = psi + move / sigma_amb, phi - move / sigma_pos
            proxy, moved = target, moved + move
            sim = proxy @ x.T
            pos = sim > phi[..., None]
            if history:
                past.append(Moment(proxy, move, phi, psi, sim, pos))
    return Propagation(sim, phi, psi, proxy, moved, past)


@torch.no_grad()
def partition(sim: Tensor, phi: Tensor, psi: Tensor, anchors: Tensor) -> Sets:
    """Positives, negatives and the ambiguous zone between them (section 3.3).

    After a long way psi may lie above phi: a row beyond both is a positive, and stands
    once in the denominator.

    Args:
        sim: cosines to the last proxies, shape (S, A, N).
        phi: shape (S, A).
        psi: shape (S, A).
        anchors: row numbers, shape (S, A).
    """
    own = anchors.to(sim.device)[..., None]
    pos = sim > phi[..., None]
    low = sim < psi[..., None]
    ambiguous = ~(pos | low)
    denominator = pos | low
    for group in (pos, ambiguous, denominator):
        group.scatter_(2, own, False)
    return Sets(pos, low, ambiguous, denominator)
