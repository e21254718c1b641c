"""The captioned images that pre-training reads, held in memory as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vpd.datasets.manifest import located
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.progress import track

SIDE_MULTIPLE = 8
"""``StableDiffusionPipeline`` draws only sides that are multiples of this."""


@dataclass(frozen=True)
class Captions:
    """Distinct images (N,3,H,W) uint8, distinct captions, and which of them each pair is made of (P,)."""

    images: Tensor
    texts: list[str]
    image_of: Tensor
    text_of: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.images.shape[-2:])

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Images ``index`` as float32 (B,3,H,W) in [-1,1]."""
        return self.images[index].float() / 127.5 - 1.0


def load_captions(data: Path) -> Captions:
    """Read a captions dataset folder; UserError if an image is missing, unreadable or of another size."""
    data = located(data)
    entries = read_json(data / "captions.json")
    if not entries:
        raise UserError(f"{data / 'captions.json'} lists no images; run the data stage again")
    files, image_of = _distinct([entry["file"] for entry in entries])
    texts, text_of = _distinct([entry["caption"] for entry in entries])
    images = torch.stack(
        [_read(data / name) for name in track(files, len(files), "reading captioned images", "images")]
    )
    if images.shape[-2] % SIDE_MULTIPLE or images.shape[-1] % SIDE_MULTIPLE:
        height, width = images.shape[-2:]
        raise UserError(f"{data}: images are {width}x{height}, but pre-training needs multiples of {SIDE_MULTIPLE}")
    return Captions(images, texts, image_of, text_of)


def _distinct(values: list[str]) -> tuple[list[str], Tensor]:
    """The distinct values in order of appearance, and the index of each value among them."""
    position = {value: index for index, value in enumerate(dict.fromkeys(values))}
    return list(position), torch.tensor([position[value] for value in values])


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image ({error}); run the data stage again") from None
