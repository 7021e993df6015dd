"""A network that embeds every pixel, with the groupings that make a hierarchy of it.

Backbone -> two 1x1 convolutions -> embedding, trained on a coarse grid and used on a
finer one with the same weights; beside it position table and clustering transformers
(Ke et al., Unsupervised Hierarchical Semantic Segmentation with Multiview
Cosegmentation and Clustering Transformers, CVPR 2022, section 3). :class:`HSGHead` is
its saved form: what stands behind a :class:`~uss_utils.frozen.Frozen` backbone in a
:class:`~uss_utils.segmenter.Segmenter`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uss_utils import joined_norm
from uss_utils.grouping import Grouping
from uss_utils.resnets import STAGES, DilatedResNet
from uss_utils.rows import as_float

RATES = (1, 4, 8)  # dilations of the last residual stage, block by block
TEST_STRIDE = 8  # grid of a trained model


class HSGNet(nn.Module):
    """Embedding of every pixel, and the grouping of segments.

    Its layers draw their start from torch's global generator; convolutions from a
    normal distribution of variance 2 / (k^2 out). The embedding's bias is not zero: at
    a pixel whose ReLUs are all shut the embedding is the bias, and a vector of length
    zero has no direction to learn from (its gradient is of the order of 1e12).

    Args:
        dim: channels D of the embedding.
        backbone: a :class:`~uss_utils.resnets.DilatedResNet`, whose grid is set, or its
            name; None or ``nn.Identity()`` where features are given instead of images.
        output_stride: grid of training in pixels, 8 or 16; features keep theirs, and
            networks of one or two stages their stride of 4 or 8.
        hierarchy: the grouping, or whether to make one with the paper's settings; the
            first stage of training does without.
        in_channels: channels C of given features.
        mid_channels: between both convolutions; None: as many as they take.
        n_stages: of a ResNet given by name.

    Raises:
        ValueError: another backbone or stride, or features of unknown width.
    """

    def __init__(
        self,
        dim: int = 128,
        backbone: nn.Module | str | None = "resnet50",
        output_stride: int = 16,
        hierarchy: bool | Grouping = True,
        *,
        in_channels: int | None = None,
        mid_channels: int | None = None,
        n_stages: int = STAGES,
    ):
        super().__init__()
        self.backbone = _backbone(backbone, n_stages)
        if isinstance(self.backbone, DilatedResNet):
            in_channels = self.backbone.dim
            self.backbone.set_stride(output_stride, RATES)
        if in_channels is None:
            raise ValueError(
                "given features need in_channels, their number of channels"
            )
        mid = in_channels if mid_channels is None else mid_channels
        self.dim, self.in_channels, self.mid_channels = dim, in_channels, mid
        self.output_stride = output_stride
        self.head = nn.Sequential(
            nn.Conv2d(in_channels, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(),
            nn.Conv2d(mid, dim, 1),
        )
        for layer in (self.head[0], self.head[3]):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.grouping = Grouping(dim) if hierarchy is True else hierarchy or None

    def forward(self, images: Tensor, stride: int | None = None) -> Tensor:
        """The embedding map, not normalised.

        Args:
            images: normalised, shape (B, 3, H, W), or features (B, C, h, w).
            stride: grid in pixels, 8 or 16; None: that of training. Features keep
                theirs.

        Returns:
            float32 (float64 stays), shape (B, D, h, w).

        Raises:
            ValueError: another stride.
        """
        if isinstance(self.backbone, DilatedResNet):
            self.backbone.set_stride(stride or self.output_stride, RATES)
        return as_float(self.head(self.backbone(images)))

    def start_from(self, other: "HSGNet") -> None:
        """Take over backbone and head; what groups, if anything, stays as it is.

        So the second stage of training begins with the network of the first.

        Raises:
            ValueError: the other network is of another shape.
        """
        for part in ("backbone", "head"):
            try:
                getattr(self, part).load_state_dict(getattr(other, part).state_dict())
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"the {part} to start from is of another network ({reason})"
                ) from error

    def synchronise_batch_norm(self) -> None:
        """Let batch norms see the batches of all processes, as in the paper.

        But for those of the grouping: every process groups the segments of all.
        """
        joined_norm.join(self.backbone, self.head)


def _backbone(given: nn.Module | str | None, n_stages: int) -> nn.Module:
    if given is None:
        return nn.Identity()
    if isinstance(given, str):
        return DilatedResNet(given, n_stages)
    if not isinstance(given, DilatedResNet | nn.Identity):
        raise ValueError(
            "the backbone is a DilatedResNet, its name, or None where features are "
            f"given, not a {type(given).__name__}"
        )
    return given


class HSGHead(nn.Module):
    """An :class:`HSGNet` as the head of a model: from features to unit embeddings.

    Behind the backbone "pixels" the head is a whole network, used at stride 8; behind a
    frozen vision transformer it is the head alone. The grouping, if there is one, is
    carried along: ``net`` gives the hierarchy of an image, at its own stride.

    Args:
        net: the trained network.
    """

    kind = "hsg"

    def __init__(self, net: HSGNet):
        super().__init__()
        self.net = net
        self.in_dim = net.in_channels if self._given() else 3
        self.dim = net.dim

    def _given(self) -> bool:
        return not isinstance(self.net.backbone, DilatedResNet)

    @classmethod
    def empty(
        cls,
        backbone: str | None,
        stages: int | None,
        in_channels: int,
        dim: int,
        mid: int,
        stride: int,
        grouping: dict[str, Any] | None,
    ) -> "HSGHead":
        """A head whose weights are still to come; no generator is disturbed.

        Args:
            backbone: name of a ResNet, or None for given features.
            stages: of the ResNet.
            in_channels: see :class:`HSGNet`; so are the others.
            dim: of the embedding.
            mid: channels between both convolutions.
            stride: of training.
            grouping: options of :class:`~uss_utils.grouping.Grouping`, or None.
        """
        with torch.random.fork_rng(devices=[]):
            hierarchy = False if grouping is None else Grouping(dim, **grouping)
            net = HSGNet(
                dim,
                backbone,
                stride,
                hierarchy,
                in_channels=in_channels,
                mid_channels=mid,
                n_stages=STAGES if stages is None else stages,
            )
        return cls(net)

    def forward(self, feat: Tensor) -> Tensor:
        """Embeddings at stride 8, or at the features' grid, of length 1 at every place.

        Args:
            feat: shape (B, C, H, W); behind "pixels" normalised images.

        Returns:
            float32 (float64 stays), shape (B, D, h, w).

        Raises:
            ValueError: features of another width.
        """
        if feat.ndim != 4 or feat.shape[1] != self.in_dim:
            raise ValueError(
                f"features must have shape (B, {self.in_dim}, h, w), got "
                f"{tuple(feat.shape)}"
            )
        return F.normalize(self.embedding(feat), dim=1)

    def embedding(self, feat: Tensor) -> Tensor:
        """The same before it is brought to length 1, as it is to be enlarged."""
        return self.net(feat, TEST_STRIDE)

    def config(self) -> dict:
        """What :func:`uss_utils.heads.from_config` needs to build the same head."""
        net, given = self.net, self._given()
        return {
            "kind": self.kind,
            "backbone": None if given else net.backbone.name,
            "stages": None if given else net.backbone.n_stages,
            "in_channels": net.in_channels,
            "dim": self.dim,
            "mid": net.mid_channels,
            "stride": net.output_stride,
            "grouping": None if net.grouping is None else net.grouping.options,
        }
