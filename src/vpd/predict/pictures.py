"""Decode pictures as users have them: any size, depth, mode and orientation, from files that nobody vouches for."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image, ImageOps, UnidentifiedImageError

from vpd.utils.errors import UserError

MAX_PIXELS = 80_000_000
MAX_ASPECT = 100
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats whose decoders only decode; Pillow would hand PostScript to an interpreter."""
WHITE = (255, 255, 255, 255)
FULL = {"16 bits": 65535, "8 bits": 255}


@cache
def formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this installation of Pillow decodes."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """Endings of file names, in lower case, that promise one of ``formats``."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def read_picture(path: Path) -> tuple[ndarray, str]:
    """Return the upright RGB picture (H, W, 3) uint8, and what has to be said about it ("" if nothing).

    The Exif orientation is applied, transparent parts lie on white, 16 bits are scaled to 8, and of several frames the
    first is taken. UserError naming the file if it is too large, too elongated, damaged or no picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow only warns of, it reads
            with Image.open(path, formats=formats()) as image:
                _check_size(path, *image.size)
                return np.array(_rgb(path, ImageOps.exif_transpose(image))), _frames(path, image)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check its name") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that can be read; convert it to JPEG or PNG") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} has far more than the {MAX_PIXELS:,} pixels that are read; make it smaller") from None
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise UserError(f"{path} cannot be read as a picture ({reason}); save it again as JPEG or PNG") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{path} has {width}x{height} = {width * height:,} pixels, more than the {MAX_PIXELS:,} that are read; "
            f"make it smaller"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"{path} has {width}x{height} pixels, a long side of more than {MAX_ASPECT} times the short one; crop it"
        )


def _frames(path: Path, image: Image.Image) -> str:
    """Say that only the first frame is used; a second picture in a camera's JPEG is a preview or a depth map."""
    try:
        count = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    except Exception:  # as above
        return f"{path} is damaged behind its first frame, which is used"
    return f"{path} has {count} frames; the first is used" if count > 1 else ""


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    """Bring any mode of Pillow's to RGB."""
    if image.mode[0] in "IF":
        return Image.fromarray(_eight_bits(path, np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, WHITE)
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image.convert("RGB")


def _eight_bits(path: Path, values: ndarray) -> ndarray:
    """Scale grey values of more than 8 bits: 16-bit integers by their full range, floating point by 0 to 1."""
    floating = np.issubdtype(values.dtype, np.floating)
    low, high = values.min(), values.max()
    limit = 1 if floating else FULL["16 bits"]
    if not (low >= 0 and high <= limit):
        kind = f"{8 * values.dtype.itemsize}-bit {'floating-point' if floating else 'integer'}"
        raise UserError(
            f"{path} has {kind} values from {low} to {high}, but only 0 to {limit} has a known meaning; "
            f"save it with 8 or 16 bits"
        )
    return np.rint(values.astype(np.float32) * np.float32(FULL["8 bits"] / limit)).astype(np.uint8)
