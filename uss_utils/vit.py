"""Frozen vision transformers: one forward pass, many outputs.

:class:`Backbone` wraps a plain timm ViT with learned or rotary positions, with or
without register tokens. Load one by name with :func:`uss_utils.backbones.load`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, apply_rot_embed_cat, resample_abs_pos_embed
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from uss_utils.frozen import BackboneOutput, Frozen, check_images

POSITIONS = ("released", "timm")


class Backbone(Frozen):
    """A frozen vision transformer.

    Args:
        vit: a plain timm ViT (``VisionTransformer`` or ``Eva``); its parameters are
            frozen in place.
        name: what to call it.
        position: what happens to a learned position table at another image size.
            "released": as in the models' own code (STEGO's released featurizer, DINO
            and DINOv2): bicubic with the explicit scale factor (h + 0.1) / grid, no
            antialias; for DINOv2 with registers the plain antialiased resize its code
            uses. "timm": timm's antialiased resize. No effect on rotary positions.
        untrained: the weights are random.

    Raises:
        ValueError: not a plain ViT, or an unknown ``position``.
    """

    def __init__(
        self,
        vit: VisionTransformer | Eva,
        name: str,
        *,
        position: str = "released",
        untrained: bool = False,
    ):
        super().__init__()
        check_plain(vit, name)
        if position not in POSITIONS:
            raise ValueError(
                f"unknown position {position!r}; known: {', '.join(POSITIONS)}"
            )
        self.vit = vit
        self.name, self.untrained = name, untrained
        self.dim, self.depth = vit.embed_dim, len(vit.blocks)
        self.patch = vit.patch_embed.patch_size[0]
        self.heads = vit.blocks[-1].attn.num_heads
        self.prefix = vit.num_prefix_tokens
        self.position = position
        if vit.pos_embed is None:
            self.position = "none" if _rope(vit) is None else "rotary"
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        *,
        layers: Sequence[int] = (),
        attention: bool = False,
        keys: bool = False,
        cls: bool = False,
    ) -> BackboneOutput:
        """One pass through the ViT.

        Args:
            images: float, ImageNet-normalised, shape (B, 3, H, W); H and W multiples of
                the patch.
            layers: blocks whose raw output is wanted: 0 .. depth-1, or negative from
                the end (-2 is the input of the last block).
            attention: also the attention logits of the last block.
            keys: also its keys.
            cls: also the class token.

        Raises:
            ValueError: wrong image shape or size, a layer that does not exist, a model
                without class token, or without the usual attention.
        """
        h, w = check_images(images, self.patch)
        wanted = self._resolve(layers)
        if cls and self.vit.cls_token is None:
            raise ValueError(f"{self.name} has no class token")
        x = self._embed(images, h, w)
        rope = _rope(self.vit)
        rope = None if rope is None else rope.get_embed(shape=(h, w))
        tokens = {}
        with _QueryKeyTap(self, attention or keys) as tap:
            for index, block in enumerate(self.vit.blocks):
                x = block(x) if rope is None else block(x, rope=_at(rope, index, self))
                tokens.update((asked, x.float()) for asked in wanted.get(index, ()))
        x = self.vit.norm(x).float()
        out = BackboneOutput(feat=self._map(x, h, w).contiguous(), tokens=tokens)
        out.layers = {asked: self._map(t, h, w) for asked, t in tokens.items()}
        if cls:
            out.cls = x[:, 0, :, None, None]
        if keys:
            flat = tap.key.transpose(1, 2).flatten(2).float()
            out.keys = self._map(flat, h, w).contiguous()
        if attention:
            out.attention = self._logits(tap, rope)
        return out

    def _resolve(self, layers: Sequence[int]) -> dict[int, list[int]]:
        """Block number -> the indices it was asked with."""
        wanted: dict[int, list[int]] = {}
        for asked in layers:
            if not -self.depth <= asked < self.depth:
                raise ValueError(
                    f"no layer {asked} in {self.name}: it has {self.depth} blocks, "
                    f"0..{self.depth - 1} (or -{self.depth}..-1)"
                )
            wanted.setdefault(asked % self.depth, []).append(asked)
        return wanted

    def _map(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """Patch tokens (B, p + n, C) as a map (B, C, h, w)."""
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (h, w))

    def _embed(self, images: Tensor, h: int, w: int) -> Tensor:
        """Patch embedding, prefix tokens and positions: the input of block 0."""
        vit = self.vit
        patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
        patches = vit.patch_embed.norm(patches)
        table = vit.pos_embed
        free = 0 if vit.no_embed_class else self.prefix
        if table is not None:
            table = torch.cat([table[:, :free], self._grid(table[:, free:], h, w)], 1)
        if table is not None and vit.no_embed_class:
            patches = patches + table
        starts = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
        x = torch.cat([t.expand(len(images), -1, -1) for t in starts] + [patches], 1)
        if table is not None and not vit.no_embed_class:
            x = x + table
        return vit.norm_pre(x)

    def _grid(self, table: Tensor, h: int, w: int) -> Tensor:
        """The patches' part of the position table, resampled to h x w."""
        rows, columns = self.vit.patch_embed.grid_size
        if (rows, columns) == (h, w):
            return table
        if self.position == "timm" or self.vit.reg_token is not None:
            return resample_abs_pos_embed(
                table, [h, w], [rows, columns], num_prefix_tokens=0
            )
        grid = table.transpose(1, 2).unflatten(2, (rows, columns)).float()
        # The 0.1 guards the floor of the output size; as the factor is given, it also
        # shifts the sampling points, and the published weights were used that way.
        scale = ((h + 0.1) / rows, (w + 0.1) / columns)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return grid.flatten(2).transpose(1, 2).to(table.dtype)

    def _logits(self, tap: "_QueryKeyTap", rope: Tensor | None) -> Tensor:
        """q·k / sqrt(d) of the last block, rotated where positions are rotary."""
        attn = self.vit.blocks[-1].attn
        query, key = tap.query.float(), tap.key.float()
        if rope is not None:
            turn = _at(rope, self.depth - 1, self).float()
            half = getattr(attn, "rotate_half", False)
            query, key = (
                torch.cat(
                    [
                        t[:, :, : self.prefix],
                        apply_rot_embed_cat(t[:, :, self.prefix :], turn, half=half),
                    ],
                    dim=2,
                )
                for t in (query, key)
            )
        with torch.autocast(query.device.type, enabled=False):
            return (query * attn.scale) @ key.transpose(-2, -1)


class _QueryKeyTap:
    """Keeps queries and keys (B, heads, p + n, d) of the last block, if wanted.

    timm passes them through ``q_norm`` and ``k_norm`` (identity in most models), so
    listening there costs nothing and needs no second projection.
    """

    def __init__(self, backbone: Backbone, wanted: bool):
        self.query = self.key = None
        self.handles = []
        if not wanted:
            return
        attn = backbone.vit.blocks[-1].attn
        if type(attn) not in (Attention, EvaAttention):
            raise ValueError(
                f"{backbone.name} has another kind of attention "
                f"({type(attn).__name__}); its keys and logits cannot be read"
            )
        self.handles = [
            attn.q_norm.register_forward_hook(self._keep("query")),
            attn.k_norm.register_forward_hook(self._keep("key")),
        ]

    def _keep(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            setattr(self, name, output)

        return hook

    def __enter__(self) -> "_QueryKeyTap":
        return self

    def __exit__(self, *error) -> None:
        for handle in self.handles:
            handle.remove()


def check_plain(vit: nn.Module, name: str) -> None:
    """Refuse models this file does not know how to take apart.

    Raises:
        ValueError: not a timm ``VisionTransformer``/``Eva`` on square patches.
    """
    plain = (
        type(vit) in (VisionTransformer, Eva) and type(vit.patch_embed) is PatchEmbed
    )
    if not plain or len(set(vit.patch_embed.patch_size)) > 1:
        raise ValueError(
            f"{name} is a {type(vit).__name__}, not a plain ViT with square patches; "
            "see backbones.names()"
        )


def _rope(vit: nn.Module) -> nn.Module | None:
    return getattr(vit, "rope", None)


def _at(rope: Tensor, index: int, backbone: Backbone) -> Tensor:
    """Rotation of one block: some models have one per block."""
    return rope[index] if getattr(backbone.vit, "rope_mixed", False) else rope
