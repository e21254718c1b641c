"""The captioned images of a pre-training, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vpd.datasets.captions import entries
from vpd.datasets.images import read_image
from vpd.datasets.manifest import located
from vpd.utils.errors import UserError
from vpd.utils.progress import track

SIDE_MULTIPLE = 8  # ``StableDiffusionPipeline`` draws only sides that are multiples of this


@dataclass(frozen=True)
class Captions:
    """Distinct images (N,3,H,W) uint8, distinct captions, and the numbers of both that make up each pair (P,)."""

    images: Tensor
    texts: list[str]
    image_of: Tensor
    text_of: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[-2], self.images.shape[-1]

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Images ``index`` as float32 (B,3,H,W) in [-1,1]."""
        return self.images[index].float() / 127.5 - 1.0


def load_captions(data: Path) -> Captions:
    """Read a captions dataset; UserError if an image is missing, unreadable, or of an unsuitable size."""
    data = located(data)
    listed = entries(data)
    if not listed:
        raise UserError(f"{data / 'captions.json'} lists no images; run the data stage again")
    files, image_of = _distinct([entry["file"] for entry in listed])
    texts, text_of = _distinct([entry["caption"] for entry in listed])
    arrays = [read_image(data / name) for name in track(files, len(files), "reading captioned images", "images")]
    images = torch.stack([torch.from_numpy(array).permute(2, 0, 1).contiguous() for array in arrays])
    height, width = images.shape[-2:]
    if height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
        raise UserError(f"{data}: images are {width}x{height}, but pre-training needs multiples of {SIDE_MULTIPLE}")
    return Captions(images, texts, image_of, text_of)


def _distinct(values: list[str]) -> tuple[list[str], Tensor]:
    """The distinct values in order of appearance, and the index of each value among them."""
    position = {value: index for index, value in enumerate(dict.fromkeys(values))}
    return list(position), torch.tensor([position[value] for value in values])
