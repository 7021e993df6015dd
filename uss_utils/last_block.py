"""The last block of a vision transformer, taken off so that it can be trained.

PPAP trains a copy of the last block (section 3.1). Everything below it is frozen, so
the tokens that enter it are computed once; :class:`LastBlockTokens` gives them as a
map, :class:`BlockHead` is the block and the final norm behind it.
"""

import copy
from functools import partial

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from uss_utils.frozen import BackboneOutput, Frozen, check_images
from uss_utils.vit import Backbone


class LastBlockTokens(Frozen):
    """A backbone whose features are the tokens that enter its last block.

    Row 0 of the map begins with the prefix tokens (class token and registers), the
    patches follow from row 1 on; what is left of row 0 is zero.

    Args:
        vit_backbone: a plain vision transformer.

    Raises:
        ValueError: no vision transformer, or one with another kind of last block.
    """

    view = "tokens"

    def __init__(self, vit_backbone: Frozen):
        super().__init__()
        check_block(vit_backbone)
        self.vit_backbone = vit_backbone
        for name in (
            "name",
            "dim",
            "patch",
            "depth",
            "heads",
            "prefix",
            "position",
            "untrained",
        ):
            setattr(self, name, getattr(vit_backbone, name))
        self.eval()

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Size of the map: one row more than there are rows of patches.

        Raises:
            ValueError: see :func:`uss_utils.frozen.check_images`; or fewer patches in a
                row than there are prefix tokens.
        """
        h, w = check_images(images, self.patch)
        if w < self.prefix:
            raise ValueError(
                f"{self.prefix} class and register tokens do not fit beside rows of "
                f"{w} patches; use images at least {self.prefix * self.patch} wide"
            )
        return h + 1, w

    @torch.no_grad()
    def forward(self, images: Tensor) -> BackboneOutput:
        """Tokens of normalised images (B, 3, H, W): ``feat`` (B, C, h + 1, w)."""
        _, w = self.grid(images)
        last = self.depth - 1
        tokens = self.vit_backbone(images, layers=(last - 1,)).tokens[last - 1]
        front = tokens.new_zeros(len(tokens), w - self.prefix, self.dim)
        rows = [tokens[:, : self.prefix], front, tokens[:, self.prefix :]]
        flat = torch.cat(rows, 1).transpose(1, 2)
        return BackboneOutput(feat=flat.unflatten(2, (-1, w)).contiguous())


def check_block(backbone: Frozen) -> None:
    """Refuse backbones whose last block cannot be taken off.

    Raises:
        ValueError: a control, a single block, rotary positions, unusual attention, or
            any part that :class:`BlockHead` would not build anew as it is: another
            activation, say, or a gated perceptron.
    """
    vit = getattr(backbone, "vit", None)
    fits = (
        isinstance(backbone, Backbone)
        and type(vit) is VisionTransformer
        and len(vit.blocks) > 1
        and type(vit.blocks[-1]) is Block
        and type(vit.blocks[-1].attn) is Attention
        and type(vit.blocks[-1].mlp) is Mlp
        and isinstance(vit.norm, nn.LayerNorm)
        and _is_rebuilt(backbone)
    )
    if not fits:
        raise ValueError(
            f"the last block of {backbone.name!r} cannot be trained on its own: that "
            "takes a plain vision transformer with learned positions, such as DINO or "
            "DINOv2"
        )


def _is_rebuilt(backbone: Backbone) -> bool:
    """Whether the settings of a block make one of the same parts.

    What is printed of a module names its kinds of layers, their widths, biases and eps:
    all that a file of settings and weights has to bring back.
    """
    with torch.device("meta"):
        head = BlockHead(**_settings(backbone))
    vit = backbone.vit
    return repr([head.block, head.norm]) == repr([vit.blocks[-1], vit.norm])


def _settings(backbone: Backbone) -> dict:
    """Arguments of the :class:`BlockHead` that a backbone's last block makes."""
    block = backbone.vit.blocks[-1]
    return {
        "dim": backbone.dim,
        "heads": backbone.heads,
        "hidden": block.mlp.fc1.out_features,
        "prefix": backbone.prefix,
        "scaled": not isinstance(block.ls1, nn.Identity),
        "eps": block.norm1.eps,
        "qkv_bias": block.attn.qkv.bias is not None,
    }


class BlockHead(nn.Module):
    """A transformer block and the norm behind it, from token maps to patch features.

    Args:
        dim: channels C.
        heads: attention heads.
        hidden: width of the block's perceptron.
        prefix: class and register tokens.
        scaled: the block has LayerScale (DINOv2).
        eps: of the norms.
        qkv_bias: queries, keys and values have a bias.
    """

    kind = "block"

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        prefix: int = 1,
        scaled: bool = False,
        eps: float = 1e-6,
        qkv_bias: bool = True,
    ):
        super().__init__()
        self.in_dim = self.dim = dim
        self.prefix = prefix
        self._config = {
            "dim": dim,
            "heads": heads,
            "hidden": hidden,
            "prefix": prefix,
            "scaled": scaled,
            "eps": eps,
            "qkv_bias": qkv_bias,
        }
        with torch.random.fork_rng(devices=[]):  # the start is replaced anyway
            self.block = Block(
                dim,
                heads,
                mlp_ratio=(hidden + 0.5) / dim,  # timm rounds down
                qkv_bias=qkv_bias,
                init_values=1e-5 if scaled else None,
                norm_layer=partial(nn.LayerNorm, eps=eps),
            )
        self.norm = nn.LayerNorm(dim, eps=eps).requires_grad_(False)

    @classmethod
    def from_backbone(cls, backbone: Frozen) -> "BlockHead":
        """A trainable copy of a backbone's last block, with its frozen final norm.

        Args:
            backbone: a plain vision transformer, or its :class:`LastBlockTokens`.

        Raises:
            ValueError: see :func:`check_block`.
        """
        backbone = getattr(backbone, "vit_backbone", backbone)
        check_block(backbone)
        head = cls(**_settings(backbone))
        head.block = copy.deepcopy(backbone.vit.blocks[-1]).requires_grad_(True)
        head.norm = copy.deepcopy(backbone.vit.norm).requires_grad_(False)
        return head

    def forward(self, tokens: Tensor) -> Tensor:
        """Patch features behind block and norm, float32.

        Args:
            tokens: map of :class:`LastBlockTokens`, shape (B, C, h + 1, w).

        Returns:
            Shape (B, C, h, w).

        Raises:
            ValueError: maps of another width.
        """
        if tokens.dim() != 4 or tokens.shape[1] != self.dim:
            raise ValueError(
                f"token maps must have shape (B, {self.dim}, h + 1, w), got "
                f"{tuple(tokens.shape)}"
            )
        w = tokens.shape[3]
        flat = tokens.flatten(2).transpose(1, 2)
        x = torch.cat([flat[:, : self.prefix], flat[:, w:]], 1)
        x = self.norm(self.block(x)).float()[:, self.prefix :]
        return x.transpose(1, 2).unflatten(2, (-1, w)).contiguous()

    def config(self) -> dict:
        """What :func:`uss_utils.heads.from_config` needs to build the same head."""
        return {"kind": self.kind, **self._config}
