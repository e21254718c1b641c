"""Pictures as a library's user has them: files, Pillow images, arrays or tensors, one or many."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from PIL import Image
from torch import Tensor

from vpd.datasets.dataset import image_tensor
from vpd.datasets.images import read_image, rgb
from vpd.datasets.transforms import normalise
from vpd.utils.errors import UserError

Picture = str | os.PathLike[str] | Image.Image | ndarray | Tensor
"""A file's path, a Pillow image, an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (3, H, W). Numbers are uint8, or
floating-point from 0 to 1; arrays without colours may be uint16."""
Pictures = Picture | Sequence[Picture]
"""One picture, several, or an array (N, H, W, 3) or a tensor (N, 3, H, W)."""


def is_one(pictures: Pictures) -> bool:
    """Whether this is one picture instead of several."""
    if isinstance(pictures, ndarray | Tensor):
        return pictures.ndim < 4
    return isinstance(pictures, str | os.PathLike | Image.Image)


def each(pictures: Pictures) -> Iterator[tuple[str, Picture]]:
    """Name and yield the pictures one by one: files by their paths, others by their numbers."""
    several: Any = [pictures] if is_one(pictures) else pictures
    if not isinstance(several, Sequence | ndarray | Tensor):
        raise UserError(f"images are a {type(several).__name__}; give one image or a list of them")
    for number, picture in enumerate(several):
        yield str(picture) if isinstance(picture, str | os.PathLike) else f"image {number}", picture


def as_array(picture: Picture, name: str) -> ndarray:
    """Return a picture as (H, W, 3) uint8 RGB; UserError, which calls it ``name``, for what is none."""
    if isinstance(picture, str | os.PathLike):
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        return rgb(picture, name)
    values = _numbers(picture, name)
    if values.ndim == 3 and np.issubdtype(values.dtype, np.floating):
        _check_range(float(values.min()), float(values.max()), name)
        values = np.rint(values * 255).astype(np.uint8)
    return rgb(Image.fromarray(values), name)


def _numbers(picture: Any, name: str) -> ndarray:
    """Return an array or a tensor as an array with its colours last."""
    if isinstance(picture, Tensor):
        _check_tensor(picture, name)
        numbers = picture.detach().cpu()
        picture = (numbers.float() if numbers.is_floating_point() else numbers).numpy().transpose(1, 2, 0)
    if not isinstance(picture, ndarray):
        raise UserError(f"{name} is a {type(picture).__name__}; give a path, a Pillow image, an array or a tensor")
    if not picture.size or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (3, 4)):
        raise UserError(f"{name} is an array of shape {picture.shape}; give (H, W), (H, W, 3) or (H, W, 4)")
    if np.issubdtype(picture.dtype, np.floating):
        return picture if picture.dtype in (np.float32, np.float64) else picture.astype(np.float32)
    # Of other integers nobody knows which number is white.
    if picture.dtype != np.uint8 and not (picture.ndim == 2 and picture.dtype in (np.uint16, np.bool_)):
        raise UserError(f"{name} has {picture.dtype} values; give uint8, or floating-point from 0 to 1")
    return picture


def as_batch(pictures: Pictures) -> Tensor:
    """Return pictures of one size as a tensor (N, 3, H, W) in [-1, 1], through which gradients reach floating-point tensors.

    Raises:
        UserError: a picture is none, there are none, or their sizes differ.
    """
    batch = [_signed(picture, name) for name, picture in each(pictures)]
    if not batch:
        raise UserError("there are no images; give at least one")
    sizes = {f"{image.shape[2]}x{image.shape[1]}" for image in batch}
    if len(sizes) > 1:
        raise UserError(
            f"the images have different sizes ({', '.join(sorted(sizes))}); resize them, or pass one by one"
        )
    return torch.stack(batch)


def _signed(picture: Picture, name: str) -> Tensor:
    if isinstance(picture, Tensor) and picture.is_floating_point():
        _check_tensor(picture, name)
        return picture * 2 - 1
    return image_tensor(normalise(as_array(picture, name)))


def _check_tensor(picture: Tensor, name: str) -> None:
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise UserError(f"{name} is a tensor of shape {tuple(picture.shape)}; give (3, H, W)")
    if picture.is_floating_point():
        _check_range(float(picture.detach().min()), float(picture.detach().max()), name)


def _check_range(low: float, high: float, name: str) -> None:
    if not (low >= 0 and high <= 1):  # true for NaN as well
        raise UserError(f"{name} has values from {low:g} to {high:g}; scale floating-point images to 0 to 1")
