"""Read and write images, label maps and depth maps; whatever cannot be read ends in a UserError that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image

from vpd.utils.errors import UserError

MILLIMETRES = 1000.0
JPEG_QUALITY = 95


def _read(path: Path, mode: str | None) -> ndarray:
    """Decode all of an image file."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert(mode) if mode else image)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; prepare the dataset again") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); fetch or draw it again") from None


def read_image(path: Path) -> ndarray:
    """RGB image, (H, W, 3) uint8."""
    return _read(path, "RGB")


def read_labels(path: Path, classes: int) -> ndarray:
    """Label map, (H, W) uint8, values 0 (no class) to ``classes``."""
    labels = _read(path, None)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise UserError(f"{path} is not a label map: found {labels.dtype} {labels.shape}, expected one 8-bit channel")
    if labels.size and labels.max() > classes:
        raise UserError(
            f"{path} has label {labels.max()}, but there are only {classes} classes; check objectInfo150.txt"
        )
    return labels


def read_depth(path: Path) -> ndarray:
    """Depth map, (H, W) float32 metres from 16-bit millimetres; 0 is invalid."""
    depth = _read(path, None)
    if depth.ndim != 2 or depth.dtype not in (np.uint16, np.int32):
        raise UserError(f"{path} is not a depth map: found {depth.dtype} {depth.shape}, expected one 16-bit channel")
    return depth.astype(np.float32) / np.float32(MILLIMETRES)


def check_pair(image: ndarray, image_path: Path, other: ndarray, other_path: Path) -> None:
    """UserError unless both have the same height and width."""
    if image.shape[:2] != other.shape[:2]:
        sizes = " and ".join(f"{array.shape[1]}x{array.shape[0]}" for array in (other, image))
        raise UserError(
            f"{other_path} and {image_path.name} differ in size ({sizes}); one of them is damaged, replace it"
        )


def save_jpeg(path: Path, image: ndarray) -> None:
    """Write an RGB image as JPEG with full colour resolution."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=JPEG_QUALITY, subsampling=0)


def save_png(path: Path, values: ndarray) -> None:
    """Write uint8 labels or uint16 depth as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
