"""What every frozen backbone promises, and the controls that learn nothing."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from uss_utils.datasets.transforms import denormalise


@dataclass
class BackboneOutput:
    """Everything one forward pass was asked for; what was not asked for is None/empty.

    ``p`` is the number of prefix tokens (class token + registers), ``n = h * w`` the
    number of patches, ``d`` the width of an attention head. All float32.

    Attributes:
        feat: tokens after the last block and the final norm, shape (B, C, h, w).
        cls: the class token of the same tensor, shape (B, C, 1, 1).
        keys: keys of the last block (before any rotation), heads concatenated in order
            (channel = head * d + i), without prefix tokens, shape (B, heads * d, h, w).
        attention: LOGITS of the last block, q·k / sqrt(d) before the softmax, prefix
            tokens included and first, shape (B, heads, p + n, p + n).
        layers: raw output of the asked blocks (before the final norm), as maps of shape
            (B, C, h, w), under the index they were asked with.
        tokens: the same outputs as sequences with the prefix tokens in front, shape
            (B, p + n, C): what the next block takes as input.
    """

    feat: Tensor
    cls: Tensor | None = None
    keys: Tensor | None = None
    attention: Tensor | None = None
    layers: dict[int, Tensor] = field(default_factory=dict)
    tokens: dict[int, Tensor] = field(default_factory=dict)


class Frozen(nn.Module):
    """A map from image to features that never learns: no gradient, always eval.

    Attributes:
        name: the name it was loaded under.
        dim: channels C of its features.
        patch: side of a patch in pixels.
        depth: number of transformer blocks (0 for a control).
        heads: attention heads per block (0 for a control).
        prefix: tokens before the patches: class token and registers.
        position: how the position table is resampled; "rotary" or "none" where there is
            no table.
        untrained: its weights are random.
        view: what its features are: "features", or "tokens" for
            :class:`uss_utils.last_block.LastBlockTokens`.
    """

    name: str
    dim: int
    patch: int
    depth: int = 0
    heads: int = 0
    prefix: int = 0
    position: str = "none"
    untrained: bool = False
    view: str = "features"

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in eval mode, whatever is asked: a frozen backbone has no other."""
        return super().train(False)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Height and width of the features of a batch of images.

        Raises:
            ValueError: see :func:`check_images`.
        """
        return check_images(images, self.patch)

    def features(self, images: Tensor) -> Tensor:
        """Dense features alone: ``forward(images).feat``, shape (B, C, h, w)."""
        return self(images).feat

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all weights: names, shapes and bytes; computed once."""
        state = self.state_dict()
        # In-place changes raise a tensor's version, so a stale value is never returned.
        versions = [tensor._version for tensor in state.values()]
        if getattr(self, "_fingerprint", (None,))[0] != versions:
            self._fingerprint = versions, weights_digest(self._kind(), state)
        return self._fingerprint[1]

    def _kind(self) -> str:
        return type(self).__name__


class Control(Frozen):
    """A baseline that learns nothing, with a backbone's interface.

    Args:
        name: "colour": the pixels themselves, RGB in [0, 1] (patch 1, C = 3). "row":
            the height in the image, (y + 0.5) / h per patch row, in (0, 1) (patch 8,
            C = 1): what the layout alone gives away. "pixels": the normalised image
            as it is (patch 1, C = 3), for heads that are whole networks.

    Raises:
        ValueError: another name.
    """

    PATCH = {"pixels": 1, "colour": 1, "row": 8}

    def __init__(self, name: str):
        super().__init__()
        if name not in self.PATCH:
            raise ValueError(
                f"unknown control {name!r}; known: {', '.join(self.PATCH)}"
            )
        self.name, self.patch = name, self.PATCH[name]
        self.dim = 1 if name == "row" else 3
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
        """The control's features; arguments as :meth:`Backbone.forward`.

        Raises:
            ValueError: wrong image shape or size, or anything asked for that only a
                transformer has.
        """
        h, w = check_images(images, self.patch)
        if layers or attention or keys or cls:
            raise ValueError(
                f"the control {self.name!r} has no layers, attention, keys or class "
                "token; ask a ViT for them"
            )
        if self.name == "pixels":
            return BackboneOutput(feat=images.float())
        if self.name == "colour":
            return BackboneOutput(feat=denormalise(images.float()))
        rows = (torch.arange(h, device=images.device) + 0.5) / h
        return BackboneOutput(feat=rows[:, None].expand(len(images), 1, h, w).clone())

    def _kind(self) -> str:
        return self.name


def check_images(images: Tensor, patch: int) -> tuple[int, int]:
    """Grid size (h, w) of a batch of images.

    Raises:
        ValueError: not (B, 3, H, W) float, smaller than one patch, or a side that is no
            multiple of the patch; the message names the next sizes.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            "images must be normalised floats of shape (B, 3, H, W), got "
            f"{images.dtype} {tuple(images.shape)}; see datasets.transforms.normalise"
        )
    height, width = images.shape[-2:]
    if min(height, width) < patch:
        raise ValueError(
            f"image {height} x {width} (height x width) is smaller than one patch of "
            f"{patch} x {patch}; use a larger image"
        )
    if height % patch or width % patch:
        raise ValueError(
            f"image {height} x {width} (height x width) does not divide into patches "
            f"of {patch}: {_next_sizes('height', height, patch)}; "
            f"{_next_sizes('width', width, patch)}"
        )
    return height // patch, width // patch


def _next_sizes(side: str, size: int, patch: int) -> str:
    below = size // patch * patch
    if below == size:
        return f"{side} {size} fits"
    return f"{side} {size} -> {below} or {below + patch}"


def weights_digest(kind: str, state: dict[str, Tensor]) -> str:
    """Digest of weights, and of words that say what they are for."""
    digest = hashlib.sha256(kind.encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
