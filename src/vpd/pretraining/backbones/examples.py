"""The synthetic scenes in memory with captions, classes and instances, which of them are held out, and augmented views."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from vpd.datasets import captions as captioned
from vpd.datasets import objects as layout
from vpd.datasets.manifest import located
from vpd.pretraining.captions import Captions, load_captions
from vpd.utils.errors import UserError
from vpd.utils.progress import track

HELD_SHARE, LEAST_HELD = 0.05, 2  # images held out: this share of all, but at least this many
LEAST_PIXELS = 8  # smaller visible parts are not prompted for
ASPECT = 4 / 3  # most a crop is stretched, as in the common random resized crop


@dataclass(frozen=True)
class Examples:
    """Everything that an objective may look at; the numbers of what is held out, or of what is there to train on."""

    captions: Captions
    classes: list[str]  # C names
    visible: Tensor  # (N,C) bool: whether a class is visible in an image
    masks: Tensor  # (N,H,W) uint8 instance ids
    instances: Tensor  # (M,2) image and instance id of every thing of at least LEAST_PIXELS pixels

    @property
    def first_held(self) -> int:
        """Number of the first held-out image; all that follow are held out, too."""
        count = len(self.captions.images)
        return count - max(LEAST_HELD, math.ceil(count * HELD_SHARE))

    def numbers(self, kind: str, held: bool) -> Tensor:
        """Numbers of ``images``, of ``pairs`` of image and caption, or of ``things``, which are rows of ``instances``."""
        images = torch.arange(len(self.captions.images))
        image_of = {"images": images, "pairs": self.captions.image_of, "things": self.instances[:, 0]}[kind]
        return torch.nonzero((image_of >= self.first_held) == held)[:, 0]

    def texts(self, held: bool) -> list[str]:
        """Distinct captions."""
        numbers = self.captions.text_of[self.numbers("pairs", held)].tolist()
        return [self.captions.texts[number] for number in dict.fromkeys(numbers)]


def load_examples(captions: Path, objects: Path) -> Examples:
    """Read the captions and objects datasets of the same scenes; UserError if they show different images, or too few."""
    images, own, root = load_captions(captions), located(captions), located(objects)
    entries = layout.entries(root)
    files = list(dict.fromkeys(entry["file"] for entry in captioned.entries(own)))
    same = files == [entry["file"] for entry in entries]
    if not same or any((own / file).read_bytes() != (root / file).read_bytes() for file in files):
        raise UserError(f"{objects} and {captions} show different images; give both the same seed, size and count")
    if len(entries) <= LEAST_HELD:
        raise UserError(f"{objects} has {len(entries)} images, but {LEAST_HELD} are held out of training; draw more")
    classes = sorted({name for entry in entries for name in entry["classes"]})
    visible = torch.tensor([[name in entry["classes"] for name in classes] for entry in entries])
    reading = track(entries, len(entries), "reading instance masks", "masks")
    masks = np.stack([layout.read_mask(root / entry["mask"]) for entry in reading])
    sizes = [np.bincount(mask.ravel())[1:] for mask in masks]  # without nothing and stuff, 0
    things = [(i, number) for i, size in enumerate(sizes) for number, n in enumerate(size, 1) if n >= LEAST_PIXELS]
    return Examples(images, classes, visible, torch.from_numpy(masks), torch.tensor(things).reshape(-1, 2))


# Whole batches are augmented at once: at 64x64 the overhead of one call per image would exceed the training step.
def flipped(images: Tensor, generator: Generator) -> Tensor:
    """Images (B,3,H,W), each mirrored left to right with probability one half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)


def crops(images: Tensor, size: tuple[int, int], areas: tuple[float, float], generator: Generator) -> Tensor:
    """Random resized crops (B,3,*size) that cover a share within ``areas`` of their images, bilinear."""
    low, high = areas
    draws = torch.rand(4, len(images), generator=generator)
    area, stretch = low + (high - low) * draws[0], (2 * draws[1] - 1) * math.log(ASPECT) / 2
    # Half the crop's sides, where the image spans [-1, 1].
    width, height = ((area.sqrt() * (sign * stretch).exp()).clamp(max=1.0) for sign in (1, -1))
    across, down = ((1 - half) * (2 * share - 1) for half, share in ((width, draws[2]), (height, draws[3])))
    zero = torch.zeros_like(width)
    rows = [torch.stack([width, zero, across], dim=1), torch.stack([zero, height, down], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), [len(images), 3, *size], align_corners=False)
    return F.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


def jittered(images: Tensor, strength: float, grey: float, generator: Generator) -> Tensor:
    """Change brightness, contrast and saturation by factors within 1 +- ``strength``; take all colour from a share ``grey``."""
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
    factors[2][torch.rand(len(images), generator=generator) < grey] = 0.0
    bright, contrast, saturation = factors.to(images)
    images = ((images + 1) * bright - 1).clamp(-1, 1)
    mean = luminance(images).mean(dim=(2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(-1, 1)
    light = luminance(images)
    return (light + (images - light) * saturation).clamp(-1, 1)


def luminance(images: Tensor) -> Tensor:
    """(B,1,H,W) weighted mean of the colours."""
    return (images * torch.tensor((0.299, 0.587, 0.114)).to(images)[:, None, None]).sum(dim=1, keepdim=True)
