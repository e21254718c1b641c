"""What all datasets share: a format on disk, which can be checked without torch, and a reader, which makes tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy import ndarray

from vpd.utils.errors import pick
from vpd.utils.validation import read_as

if TYPE_CHECKING:  # vpd.world, vpd.download and planning read formats and must start without torch
    from torch import Tensor

Entry = TypeVar("Entry")
Check = Callable[[], bool]
"""Reads one sample. Raises UserError if it is unsound; returns whether it has anything to score."""
Preview = tuple[list[ndarray], list[str]]
"""One sample of the preview: (H, W, 3) uint8 images side by side, and lines of text below them."""


@dataclass(frozen=True)
class Contents:
    """What a dataset folder holds, by its lists and file names; no image has been read yet."""

    files: list[str]  # relative to the folder
    counts: dict[str, int]  # ``expect`` in params.yaml names the same keys
    checks: Mapping[str, Sequence[Check]]  # one a sample, by split (or another unit that must have something to score)


class Format(Protocol):
    """What a module of this package offers for its format on disk."""

    TOPS: tuple[str, ...]  # files and folders at the top of the dataset; if all are absent, nothing of it is there
    NEEDED: tuple[str, ...]  # splits that may not be empty, or nothing can be trained or scored

    def contents(self, root: Path) -> Contents:
        """List the dataset in ``root``; UserError if files are missing or lists are unsound."""

    def preview(self, root: Path) -> Iterator[Preview]:
        """Samples to show on preview.png."""


class Dataset:
    """Samples by index and epoch: the same (seed, epoch, index) always gives the same bits."""

    classes: list[str] = []
    splits: dict[str, str] = {}  # split as asked for -> split on disk

    def __init__(self, split: str, seed: int) -> None:
        self.split: str = pick(split, self.splits, "split", type(self).__name__)
        self.training, self.seed = split == "train", seed

    def __len__(self) -> int:
        raise NotImplementedError

    def sample(self, index: int, epoch: int = 0) -> dict[str, Any]:
        """Read one sample; augmented when training, by nothing but (seed, epoch, index)."""
        raise NotImplementedError

    def rng(self, index: int, epoch: int) -> np.random.Generator:
        """The only source of randomness of a sample, so that workers and resumed runs see the same bits."""
        return np.random.Generator(np.random.PCG64((self.seed, epoch, index)))


def read_entries(path: Path, entry: type[Entry], keys: str) -> list[Entry]:
    """Read a JSON list of objects with the keys of ``entry``, a TypedDict; ``keys`` names them in the UserError."""
    cure = f"it must be a list of objects with the keys {keys}: make the dataset again"
    return read_as(list[entry], path, cure)  # type: ignore[valid-type]


def image_tensor(image: ndarray) -> Tensor:
    """(H, W, 3) to a contiguous (3, H, W) tensor of the same type."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def label_tensor(labels: ndarray) -> Tensor:
    """(H, W) int64."""
    import torch

    return torch.from_numpy(labels.astype(np.int64))
