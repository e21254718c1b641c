"""What all readers share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vpd.utils.errors import pick


class Dataset(torch.utils.data.Dataset):
    """Samples by index and epoch; the same (seed, epoch, index) always gives the same bits."""

    classes: list[str] = []
    splits: dict[str, str] = {}
    """Split as asked for -> split on disk."""

    def __init__(self, split: str, seed: int) -> None:
        self.split = pick(split, self.splits, "split", type(self).__name__)
        self.training, self.seed = split == "train", seed

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.sample(index)

    def sample(self, index: int, epoch: int = 0) -> dict:
        """One sample, augmented when training."""
        raise NotImplementedError

    def generator(self, index: int, epoch: int) -> np.random.Generator:
        """The only source of randomness of a sample."""
        return np.random.Generator(np.random.PCG64((self.seed, epoch, index)))


def image_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) to a contiguous (3, H, W) tensor of the same type."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def label_tensor(labels: np.ndarray) -> Tensor:
    """(H, W) int64."""
    return torch.from_numpy(labels.astype(np.int64))
