"""A trained head on its backbone, as a frozen backbone in its own right.

What works on features then works on codes too: PriMaPs-EM groups the features of DINO
and the codes of STEGO by the very same lines.
"""

import copy

import torch
from torch import Tensor, nn

from uss_utils.frozen import BackboneOutput, Frozen


class Coded(Frozen):
    """A backbone whose features are the code that a head makes of them.

    Args:
        inner: the backbone below.
        head: from its features to code, one of :data:`uss_utils.heads.HEADS`; copied,
            and in eval mode: no dropout.
    """

    def __init__(self, inner: Frozen, head: nn.Module):
        super().__init__()
        self.inner = inner
        self.head = copy.deepcopy(head).eval().requires_grad_(False)
        self.name, self.dim = inner.name, head.dim
        self.patch, self.position = inner.patch, inner.position
        self.untrained = inner.untrained
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> BackboneOutput:
        """Codes of normalised images (B, 3, H, W): ``feat`` (B, D, h, w)."""
        return BackboneOutput(feat=self.head(self.inner.features(images)).float())

    def _kind(self) -> str:
        return f"{type(self).__name__}({self.head.config()})"
