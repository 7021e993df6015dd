"""A data set of random pictures, small enough to be made on the spot."""

import numpy as np
import torch

from uss_utils.datasets.base import SegmentationDataset
from uss_utils.datasets.transforms import Transform


class Toy(SegmentationDataset):
    """``n`` pictures of 16 x 16 pixels; ``seed`` decides their content."""

    def __init__(self, n=60, size=16, seed=0, transform=None):
        palette = np.zeros((2, 3), np.uint8)
        super().__init__("toy", "train", ("a", "b"), palette, transform or Transform())
        self.n, self.size, self.seed = n, size, seed

    def __len__(self):
        return self.n

    def read(self, index):
        random = torch.Generator().manual_seed(1000 * self.seed + index)
        shape = (self.size, self.size, 3)
        image = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        return image.numpy(), np.zeros((self.size, self.size), np.int64)
