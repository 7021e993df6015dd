"""A network that embeds every pixel and tells whether it belongs to an object.

Backbone -> decoder -> two 1x1 convolutions on the same map: an embedding, and one
saliency logit (MaskContrast, section 3). :class:`EmbedderHead` is its saved form: what
stands behind a :class:`~uss_utils.frozen.Frozen` backbone in a
:class:`~uss_utils.segmenter.Segmenter`.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from uss_utils.joined_norm import is_joined
from uss_utils.resnets import DilatedResNet
from uss_utils.rows import as_float
from uss_utils.upsampling import upsample

Decoder = Literal["deeplab", "conv", "linear"]
RATES = (12, 24, 36)  # dilations of DeepLab's pyramid at stride 8


class PixelEmbedder(nn.Module):
    """Embedding and saliency logit of every pixel.

    Its layers draw their start from torch's global generator.

    Args:
        backbone: from images (B, 3, H, W) to a map (B, C, h, w), e.g. a
            :class:`~uss_utils.resnets.DilatedResNet`; ``nn.Identity()`` where features
            are given instead of images.
        in_channels: channels C of that map.
        dim: channels D of the embedding.
        mid_channels: channels M of the decoder.
        head: the decoder. "deeplab": DeepLab v3's pyramid and a 3x3 convolution (Chen
            et al., 2017, section 3.3); "conv": a 3x3 convolution; both with batch norm
            and ReLU. "linear": a 1x1 convolution and ReLU.
        upsample: bring both maps to the size of the images; otherwise they stay at the
            backbone's grid, and an epoch takes a fraction of the time.

    Raises:
        ValueError: unknown head.
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_channels: int,
        dim: int = 32,
        mid_channels: int = 256,
        head: Decoder = "deeplab",
        upsample: bool = True,
    ):
        super().__init__()
        self.in_channels, self.dim, self.mid_channels = in_channels, dim, mid_channels
        self.head, self.upsample = head, upsample
        self.frozen_stages = 0
        self.backbone = backbone
        self.decoder = _decoder(head, in_channels, mid_channels)
        self.embedding = nn.Conv2d(mid_channels, dim, 1)
        self.saliency = nn.Conv2d(mid_channels, 1, 1, bias=False)

    def features(self, images: Tensor) -> Tensor:
        """What both maps are made from: the decoder's output, shape (B, M, h, w).

        Raises:
            ValueError: DeepLab's decoder is trained on a single image: its pooled
                branch has one value per channel then, which has no variance.
        """
        if self.training and len(images) == 1 and self._needs_two():
            raise ValueError(
                "the deeplab decoder cannot be trained on a batch of one image; use at "
                "least two, or head='conv'"
            )
        return self.decoder(self.backbone(images))

    def _needs_two(self) -> bool:
        """Whether a batch norm would see a single value per channel."""
        return self.head == "deeplab" and not is_joined(self.decoder)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps at the backbone's grid: (B, D, h, w) and (B, h, w)."""
        shared = self.features(images)
        return as_float(self.embedding(shared)), as_float(self.saliency(shared))[:, 0]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps, at the size of the images if ``upsample``.

        Args:
            images: what the backbone takes, shape (B, ., H, W).

        Returns:
            Embedding, not normalised, (B, D, H, W), and saliency logits, (B, H, W),
            both float32 (float64 stays).

        Raises:
            ValueError: see :meth:`features`.
        """
        embedding, saliency = self.maps(images)
        saliency = self._resized(saliency[:, None], images)
        return self._resized(embedding, images), saliency[:, 0]

    def embed(self, images: Tensor) -> Tensor:
        """The embedding of :meth:`forward` alone."""
        return self._resized(as_float(self.embedding(self.features(images))), images)

    def _resized(self, x: Tensor, images: Tensor) -> Tensor:
        return upsample(x, tuple(images.shape[-2:])) if self.upsample else x

    # ------------------------------------------------------------------ freezing

    def freeze_backbone_stages(self, n: int) -> None:
        """Keep the first stages of the backbone as they are.

        They get no gradient, and their batch norms stay in eval mode whatever
        ``train()`` is told.

        Args:
            n: residual stages, 0 to 4; the stem goes with the first.

        Raises:
            ValueError: the backbone has no such stages.
        """
        stages = self._stages()
        if not 0 <= n <= len(stages):
            raise ValueError(
                f"the backbone has {len(stages)} stages that can be frozen, got n={n}"
            )
        self.frozen_stages = n
        for number, stage in enumerate(stages):
            for module in stage:
                module.requires_grad_(number >= n)
        self.train(self.training)

    def _stages(self) -> list[list[nn.Module]]:
        stages = getattr(self.backbone, "stages", None)
        return [] if stages is None else stages()

    def train(self, mode: bool = True) -> "PixelEmbedder":
        """Training mode for all but the frozen stages."""
        super().train(mode)
        for stage in self._stages()[: self.frozen_stages]:
            for module in stage:
                module.eval()
        return self


def _decoder(kind: str, in_channels: int, mid: int) -> nn.Sequential:
    if kind == "deeplab":
        pyramid = ASPP(in_channels, RATES, mid)
        return nn.Sequential(pyramid, *_convolution(mid, mid))
    if kind == "conv":
        return nn.Sequential(*_convolution(in_channels, mid))
    if kind == "linear":
        return nn.Sequential(nn.Conv2d(in_channels, mid, 1), nn.ReLU())
    raise ValueError(f"unknown head {kind!r}; known: {', '.join(get_args(Decoder))}")


def _convolution(in_channels: int, mid: int) -> list[nn.Module]:
    kernel = nn.Conv2d(in_channels, mid, 3, padding=1, bias=False)
    return [kernel, nn.BatchNorm2d(mid), nn.ReLU()]


class EmbedderHead(nn.Module):
    """A :class:`PixelEmbedder` as the head of a model: from features to embeddings.

    Behind the backbone "pixels" the head is a whole network; behind a frozen vision
    transformer it is the decoder. Its code keeps the network's grid.

    Args:
        embedder: on a :class:`~uss_utils.resnets.DilatedResNet` or ``nn.Identity()``.

    Raises:
        ValueError: another backbone, which a file could not bring back.
    """

    kind = "embedder"

    def __init__(self, embedder: PixelEmbedder):
        super().__init__()
        backbone = embedder.backbone
        if not isinstance(backbone, DilatedResNet | nn.Identity):
            raise ValueError(
                "a model is saved with a DilatedResNet or with nn.Identity() as its "
                f"embedder's backbone, not with {type(backbone).__name__}"
            )
        self.embedder = embedder
        given = isinstance(backbone, nn.Identity)
        self.backbone = None if given else backbone.name
        self.stages = None if given else backbone.n_stages
        self.in_dim = embedder.in_channels if given else 3
        self.dim = embedder.dim

    @classmethod
    def empty(
        cls,
        backbone: str | None,
        stages: int | None,
        in_channels: int,
        dim: int,
        mid: int,
        head: Decoder,
    ) -> "EmbedderHead":
        """A head whose weights are still to come; no generator is disturbed.

        Args:
            backbone: name of a ResNet, or None for ``nn.Identity()``.
            stages: of the ResNet.
            in_channels: see :class:`PixelEmbedder`; so are the others.
            dim: of the embedding.
            mid: of the decoder.
            head: the decoder.
        """
        with torch.random.fork_rng(devices=[]):
            given = backbone is None
            network = nn.Identity() if given else DilatedResNet(backbone, stages)
            return cls(PixelEmbedder(network, in_channels, dim, mid, head))

    def forward(self, feat: Tensor) -> Tensor:
        """Embeddings at the network's grid: (B, C, H, W) -> (B, D, h, w), float32.

        Raises:
            ValueError: features of another width.
        """
        return self.maps(feat)[0]

    def maps(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D, h, w), and saliency logits (B, h, w).

        Raises:
            ValueError: features of another width.
        """
        if feat.ndim != 4 or feat.shape[1] != self.in_dim:
            raise ValueError(
                f"features must have shape (B, {self.in_dim}, h, w), got "
                f"{tuple(feat.shape)}"
            )
        return self.embedder.maps(feat)

    def config(self) -> dict:
        """What :func:`uss_utils.heads.from_config` needs to build the same head."""
        return {
            "kind": self.kind,
            "backbone": self.backbone,
            "stages": self.stages,
            "in_channels": self.embedder.in_channels,
            "dim": self.dim,
            "mid": self.embedder.mid_channels,
            "head": self.embedder.head,
        }
