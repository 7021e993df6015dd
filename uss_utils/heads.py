"""Maps from patch features to codes, and the table they are restored from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from uss_utils.hierarchy_network import HSGHead
from uss_utils.last_block import BlockHead
from uss_utils.pca import PCA
from uss_utils.pixel_embedder import EmbedderHead


def channel_dropout(
    feat: Tensor,
    p: float = 0.1,
    *,
    keep: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop whole channels, one mask per image; survivors grow by 1 / (1 - p).

    STEGO's released featurizer does so to the input of each head branch and to the
    returned features. Within an image both ends of a pair share the mask; between two
    images the masks differ, so cosines shrink to about 1 - p of their value.

    Args:
        feat: shape (B, C, h, w).
        p: share of channels dropped, in [0, 1).
        keep: recorded mask, bool (B, C), instead of a draw.
        generator: CPU generator of the draw; None uses torch's global one.

    Returns:
        Same shape as ``feat``.

    Raises:
        ValueError: ``p`` outside [0, 1), or a mask of another shape.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout share p must lie in [0, 1), got {p}")
    shape = tuple(feat.shape[:2])
    if keep is None:
        if p == 0:
            return feat
        keep = torch.rand(shape, generator=generator) >= p
    if tuple(keep.shape) != shape:
        raise ValueError(f"the mask must have shape {shape}, got {tuple(keep.shape)}")
    return feat * (keep.to(feat) / (1 - p))[:, :, None, None]


class SegmentationHead(nn.Module):
    """STEGO's head: a linear branch plus a small non-linear one, on every patch.

    ``code = conv(drop(f)) + conv(relu(conv(drop'(f))))`` with 1x1 convolutions and two
    independent dropout masks (STEGO, section 4; shared by HP).

    Args:
        in_dim: channels C of the features.
        dim: channels D of the code.
        nonlinear: keep the second branch.
        dropout: share of channels dropped while training.
    """

    kind = "segmentation"

    def __init__(
        self, in_dim: int, dim: int, nonlinear: bool = True, dropout: float = 0.1
    ):
        super().__init__()
        self.in_dim, self.dim, self.dropout = in_dim, dim, dropout
        self.linear = nn.Conv2d(in_dim, dim, 1)
        self.nonlinear = None
        if nonlinear:
            self.nonlinear = nn.Sequential(
                nn.Conv2d(in_dim, in_dim, 1), nn.ReLU(), nn.Conv2d(in_dim, dim, 1)
            )

    def forward(self, feat: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Code of every patch, not normalised.

        Args:
            feat: shape (B, C, h, w).
            generator: CPU generator of the dropout masks (training mode only).

        Returns:
            Code, shape (B, D, h, w).

        Raises:
            ValueError: features of another width.
        """
        _check_width(feat, self.in_dim)
        code = self.linear(self._drop(feat, generator))
        if self.nonlinear is not None:
            code = code + self.nonlinear(self._drop(feat, generator))
        return code

    def _drop(self, feat: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.training:
            return feat
        return channel_dropout(feat, self.dropout, generator=generator)

    def config(self) -> dict:
        """What :func:`from_config` needs to build the same head."""
        return {
            "kind": self.kind,
            "in_dim": self.in_dim,
            "dim": self.dim,
            "nonlinear": self.nonlinear is not None,
            "dropout": self.dropout,
        }


class Standardise(nn.Module):
    """A fixed affine map: subtract a mean, then project (centring, PCA, whitening).

    Args:
        mean: mean feature of the data set, shape (C,).
        projection: matrix of shape (C, D), applied as ``(f - mean) @ projection``; None
            only centres (D = C).

    Raises:
        ValueError: shapes that do not fit together, or values that are not finite.
    """

    kind = "standardise"

    def __init__(self, mean: Tensor, projection: Tensor | None = None):
        super().__init__()
        mean = torch.as_tensor(mean, dtype=torch.float32)
        if mean.ndim != 1:
            raise ValueError(f"the mean must have shape (C,), got {tuple(mean.shape)}")
        if projection is not None:
            projection = torch.as_tensor(projection, dtype=torch.float32)
            if projection.ndim != 2 or len(projection) != len(mean):
                raise ValueError(
                    f"the projection must have shape ({len(mean)}, D), got "
                    f"{tuple(projection.shape)}"
                )
        for name, values in (("mean", mean), ("projection", projection)):
            if values is not None and not bool(torch.isfinite(values).all()):
                raise ValueError(f"the {name} contains NaN or infinite values")
        self.register_buffer("mean", mean.clone())
        self.register_buffer(
            "projection", None if projection is None else projection.clone()
        )
        self.in_dim = len(mean)
        self.dim = self.in_dim if projection is None else projection.shape[1]

    def forward(self, feat: Tensor) -> Tensor:
        """Standardised features: (B, C, h, w) -> (B, D, h, w).

        Raises:
            ValueError: features of another width.
        """
        _check_width(feat, self.in_dim)
        centred = feat - self.mean[:, None, None]
        if self.projection is None:
            return centred
        return torch.einsum("bchw,cd->bdhw", centred, self.projection)

    def config(self) -> dict:
        """What :func:`from_config` needs; the values come with the state dict."""
        dim = None if self.projection is None else self.dim
        return {"kind": self.kind, "in_dim": self.in_dim, "dim": dim}


class Chain(nn.Module):
    """A fixed map followed by a learned one, as one head.

    Args:
        first: applied to the features, e.g. a :class:`Standardise`.
        then: applied to its result, e.g. a :class:`SegmentationHead`.

    Raises:
        ValueError: the second takes another width than the first gives.
    """

    kind = "chain"

    def __init__(self, first: nn.Module, then: nn.Module):
        super().__init__()
        if first.dim != then.in_dim:
            raise ValueError(
                f"the first map gives {first.dim} channels, the second takes "
                f"{then.in_dim}"
            )
        self.first, self.then = first, then
        self.in_dim, self.dim = first.in_dim, then.dim

    def forward(self, feat: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D, h, w)."""
        return self.then(self.first(feat))

    def maps(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding and saliency, where the second map is an :class:`EmbedderHead`."""
        return self.then.maps(self.first(feat))

    def config(self) -> dict:
        """What :func:`from_config` needs; the values come with the state dict."""
        parts = {"first": self.first.config(), "then": self.then.config()}
        return {"kind": self.kind, **parts}


def _empty_chain(first: dict, then: dict) -> Chain:
    return Chain(from_config(first), from_config(then))


def fit_standardise(rows: Tensor, kind: str, dim: int = 32) -> Standardise:
    """The fixed map in front of clustering or a head, fitted to training patches.

    Cosines only tell directions apart once the common mean is gone; whitening also
    gives the weaker principal components an equal say.

    Args:
        rows: features, shape (n, C).
        kind: "none", "centre" or "whiten".
        dim: principal components that "whiten" keeps, at most C.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "none":
        return Standardise(torch.zeros(rows.shape[1])).to(rows.device)
    if kind == "centre":
        return Standardise(rows.double().mean(0).float()).to(rows.device)
    if kind != "whiten":
        raise ValueError(f"unknown kind {kind!r}; known: none, centre, whiten")
    pca = PCA.fit(rows, min(dim, rows.shape[1]), whiten=True)
    projection = (pca.components / pca.scale[:, None]).T
    return Standardise(pca.mean, projection).to(rows.device)


def _empty_standardise(in_dim: int, dim: int | None) -> Standardise:
    return Standardise(
        torch.zeros(in_dim), None if dim is None else torch.zeros(in_dim, dim)
    )


HEADS: dict[str, type[nn.Module]] = {
    head.kind: head
    for head in (
        SegmentationHead,
        Standardise,
        Chain,
        BlockHead,
        EmbedderHead,
        HSGHead,
    )
}
_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    SegmentationHead.kind: SegmentationHead,
    Standardise.kind: _empty_standardise,
    Chain.kind: _empty_chain,
    BlockHead.kind: BlockHead,
    EmbedderHead.kind: EmbedderHead.empty,
    HSGHead.kind: HSGHead.empty,
}


def from_config(config: dict) -> nn.Module:
    """Build a head from its ``config()``; load its state dict afterwards.

    Raises:
        ValueError: unknown kind, or fields that do not belong to it.
    """
    fields = dict(config)
    kind = fields.pop("kind", None)
    if kind not in HEADS:
        raise ValueError(f"unknown head {kind!r}; known: {', '.join(HEADS)}")
    try:
        return _BUILDERS[kind](**fields)
    except TypeError as error:
        raise ValueError(f"wrong fields for the head {kind!r}: {error}") from error


def _check_width(feat: Tensor, width: int) -> None:
    if feat.ndim != 4 or feat.shape[1] != width:
        raise ValueError(
            f"features must have shape (B, {width}, h, w), got {tuple(feat.shape)}"
        )
