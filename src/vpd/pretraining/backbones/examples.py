"""The drawn images in memory, with captions, classes and instances, and which of them are kept out of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vpd.datasets.layouts import objects as layout
from vpd.datasets.layouts.captions import entries as captioned
from vpd.datasets.manifest import located
from vpd.pretraining.captions import Captions, load_captions
from vpd.utils.errors import UserError
from vpd.utils.progress import track

HELD_SHARE = 0.05
LEAST_HELD = 2
"""Images kept out of training: this share of all, but at least this many."""
LEAST_PIXELS = 8
"""Smaller visible parts are not prompted for: on a 64x64 image they are a speck of two or three pixels a side."""


@dataclass(frozen=True)
class Examples:
    """What the objectives may look at; each names in ``sees`` what it does look at.

    captions: images (N,3,H,W) uint8 and their texts; shown: (N,C) bool, whether a class is visible; classes: their C
    names; masks: (N,H,W) uint8 instance ids; instances: (M,2) image and instance id of every thing of at least
    LEAST_PIXELS pixels.
    """

    captions: Captions
    classes: list[str]
    shown: Tensor
    masks: Tensor
    instances: Tensor

    @property
    def first_held(self) -> int:
        """Number of the first image kept out of training; all that follow are, too."""
        count = len(self.captions.images)
        return count - max(LEAST_HELD, math.ceil(count * HELD_SHARE))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.captions.size

    def images(self, held: bool) -> Tensor:
        """Numbers of the images to train on, or of those kept out."""
        return torch.arange(*((self.first_held, len(self.captions.images)) if held else (0, self.first_held)))

    def pairs(self, held: bool) -> Tensor:
        """Numbers of the (image, caption) pairs whose image is kept out, or is not."""
        return torch.nonzero((self.captions.image_of >= self.first_held) == held)[:, 0]

    def texts(self, held: bool) -> list[str]:
        """Distinct captions of the images to train on, or of those kept out."""
        numbers = self.captions.text_of[self.pairs(held)].tolist()
        return [self.captions.texts[number] for number in dict.fromkeys(numbers)]

    def things(self, held: bool) -> Tensor:
        """Numbers of the rows of ``instances`` whose image is kept out, or is not."""
        return torch.nonzero((self.instances[:, 0] >= self.first_held) == held)[:, 0]


def load_examples(captions: Path, objects: Path) -> Examples:
    """Read a captions dataset and the objects dataset of the same scenes; UserError if they show different images."""
    images, root = load_captions(captions), located(objects)
    entries = layout.entries(root)
    _check_same(located(captions), root, entries)
    if len(entries) <= LEAST_HELD:
        raise UserError(f"{objects} holds {len(entries)} images, but {LEAST_HELD} are kept out of training; draw more")
    classes = sorted({name for entry in entries for name in entry["classes"]})
    shown = torch.tensor([[name in entry["classes"] for name in classes] for entry in entries])
    masks = np.stack(
        [
            layout.read_mask(root / entry["mask"])
            for entry in track(entries, len(entries), "reading instance masks", "masks")
        ]
    )
    return Examples(images, classes, shown, torch.from_numpy(masks), _instances(masks))


def _check_same(captions: Path, objects: Path, entries: list[dict]) -> None:
    files = list(dict.fromkeys(entry["file"] for entry in captioned(captions)))
    if files != [entry["file"] for entry in entries]:
        raise UserError(f"{objects} and {captions} list different images; give both the same seed, size and count")
    for file in files:
        if (captions / file).read_bytes() != (objects / file).read_bytes():
            raise UserError(f"{objects / file} is not the image of that name in {captions}; give both the same seed")


def _instances(masks: np.ndarray) -> Tensor:
    """(M,2) image and id of every instance that is large enough."""
    found = []
    for image, mask in enumerate(masks):
        sizes = np.bincount(mask.ravel())
        found += [(image, number) for number in range(1, len(sizes)) if sizes[number] >= LEAST_PIXELS]
    return torch.tensor(found).reshape(-1, 2)
