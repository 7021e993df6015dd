"""How far one clue gets that understands nothing of the picture.

The best guess from a clue (the row of a pixel, its colour) answers, for every value
of the clue, the class that is commonest there in labelled pictures. What it scores on
new pictures is what a data set gives away for nothing.
"""

import torch
from torch import Tensor

from uss_utils.datasets.transforms import denormalise
from uss_utils.metrics import Confusion, Scores

SQUARE = 8  # pixels, as the patches of the tiny ViT
LEVELS = 8  # of red, green and blue


def row_of(label: Tensor) -> Tensor:
    """Row number of every pixel, int64, of the shape (N, H, W) of the labels."""
    return torch.arange(label.shape[-2])[:, None].expand(label.shape)


def clues(image: Tensor) -> dict[str, Tensor]:
    """Clues by name, from knowing nothing upwards.

    Args:
        image: normalised, shape (N, 3, H, W).

    Returns:
        One integer per pixel, int64 (N, H, W): always 0 ("nothing"), the number of its
        "row", of its "square" of 8 x 8 pixels, of its "colour", rounded to 8 levels per
        channel.
    """
    n, _, height, width = image.shape
    row = row_of(image[:, 0])
    across = -(-width // SQUARE)
    square = row // SQUARE * across + torch.arange(width) // SQUARE
    level = (denormalise(image.cpu()) * LEVELS).long().clamp(0, LEVELS - 1)
    colour = (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]
    nothing = torch.zeros(n, height, width, dtype=torch.int64)
    return {"nothing": nothing, "row": row, "square": square, "colour": colour}


def count(
    clue: Tensor, label: Tensor, n_classes: int, n_values: int | None = None
) -> Confusion:
    """How often each class occurs with each value of a clue.

    Args:
        clue: integers 0..n_values-1, any shape.
        label: classes, same shape, ignore = -1.
        n_classes: K.
        n_values: V; one more than the largest value when None.

    Returns:
        Counts, one row per value and one column per class.
    """
    n_values = int(clue.max()) + 1 if n_values is None else n_values
    table = Confusion(n_classes, extra=n_values - n_classes)
    table.update(clue, label)
    return table


def best_guess(
    clue: Tensor, label: Tensor, new_clue: Tensor, new_label: Tensor, n_classes: int
) -> Scores:
    """Answer the commonest class of each value of the clue; score on new pictures.

    Args:
        clue: integers from 0, any shape; of the pictures whose labels are counted.
        label: their classes, same shape, ignore = -1.
        new_clue: the clue in the pictures to guess. A value that was not seen before
            gets no answer, which counts as wrong.
        new_label: the classes to find.
        n_classes: K.
    """
    n_values = int(max(clue.max(), new_clue.max())) + 1
    answer = count(clue, label, n_classes, n_values).match("majority")
    return count(new_clue, new_label, n_classes, n_values).scores(answer)
