"""MaskContrast's memory of the prototypes of earlier batches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PrototypeQueue(nn.Module):
    """The prototypes of the last objects, in a ring (section 3.2).

    Args:
        dim: channels D.
        size: prototypes K that are kept; 0 keeps none.
        generator: CPU generator of the first entries, which are random directions.

    Attributes:
        negatives: buffer, unit columns, shape (D, K).
        pointer: buffer, the column that is overwritten next.

    Raises:
        ValueError: a dimension below 1, or a negative size.
    """

    def __init__(self, dim: int, size: int, generator: torch.Generator | None = None):
        super().__init__()
        if dim < 1 or size < 0:
            raise ValueError(
                f"a queue needs dim >= 1 and size >= 0, got dim={dim}, size={size}"
            )
        start = F.normalize(torch.randn(dim, size, generator=generator), dim=0)
        self.register_buffer("negatives", start)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Overwrite the oldest columns.

        Args:
            keys: unit rows, the oldest first, shape (n, D); any n: of more than K the
                last K remain.

        Raises:
            ValueError: rows of another width.
        """
        dim, size = self.negatives.shape
        if keys.dim() != 2 or keys.shape[1] != dim:
            raise ValueError(
                f"prototypes must have shape (n, {dim}), got {tuple(keys.shape)}"
            )
        if not size:
            return
        left = keys[-size:].to(self.negatives)
        skipped = len(keys) - len(left)
        place = torch.arange(skipped, len(keys), device=left.device) + self.pointer
        self.negatives[:, place % size] = left.T
        self.pointer.add_(len(keys)).remainder_(size)
