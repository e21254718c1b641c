"""Read and write images, label maps and depth maps; a file that cannot be read ends in a UserError that names it.

Datasets and ``vpd predict`` read every file here, by one rule: as a viewer shows it, upright by its own Exif orientation, and of
several pages or frames the first. Colour profiles are not applied.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import ExifTags, Image

from vpd.utils.errors import UserError
from vpd.utils.files import readable

MILLIMETRES = 1000.0
JPEG: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}  # with full colour resolution
DECODERS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats whose decoders only decode; Pillow would hand PostScript to an interpreter."""
LOSSLESS = ("BMP", "GIF", "PNG", "PPM", "TIFF")
"""Formats that keep labels and depths to the bit."""
MAX_PIXELS = 80_000_000
"""Larger images are refused: a small file can claim any size and fill the memory (a decompression bomb)."""
INTACT = "replace it by an intact file"
WHITE = (255, 255, 255, 255)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its Exif orientation."""


@cache
def decoders() -> tuple[str, ...]:
    """Those of ``DECODERS`` that this installation of Pillow has."""
    Image.init()
    return tuple(name for name in DECODERS if name in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """Endings of the names of files that can be read, in lower case."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in decoders())


def _read(path: Path, convert: Callable[[Image.Image, Path], Image.Image]) -> ndarray:
    """Decode all of an image file and turn it upright; UserError for whatever a decoder raises."""
    with readable(path, INTACT, "check its name, or prepare the dataset again"):
        pass
    with _decoding(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which is no concern of ours
        with Image.open(path, formats=decoders()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{path} has {width}x{height} pixels, more than {MAX_PIXELS:,}; make it smaller")
            return _upright(image, lambda stored: convert(stored, path))


@contextmanager
def _decoding(name: Path | str) -> Iterator[None]:
    """Turn whatever a decoder raises into a UserError that calls the image ``name``."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise UserError(f"{name} cannot be read as an image ({reason}); {INTACT}") from None


def _upright(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> ndarray:
    """Convert an image, and turn it as its Exif orientation says; as it is stored if that cannot be read, as viewers do."""
    image.load()  # so that what is caught below is the metadata's fault
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        turn = None
    converted = convert(image)
    return np.array(converted if turn is None else converted.transpose(turn))


def read_image(path: Path) -> ndarray:
    """Read a photograph of any colour mode as (H, W, 3) uint8 RGB; UserError if it is damaged, too large or no image.

    Transparent parts lie on white, 16-bit grey and floating-point grey from 0 to 1 are scaled to 8 bits.
    """
    return _read(path, _rgb)


def rgb(image: Image.Image, name: str = "the image") -> ndarray:
    """Return an image in memory as ``read_image`` returns it from a file; ``name`` is for messages."""
    with _decoding(name):
        return _upright(image, lambda stored: _rgb(stored, name))


def _rgb(image: Image.Image, path: Path | str) -> Image.Image:
    if image.mode[0] in "IF":
        # Pillow would clip instead of scale: every 16-bit value above 255 would become white.
        return Image.fromarray(_eight_bits(np.asarray(image), path)).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, WHITE)
        ground.alpha_composite(image.convert("RGBA"))
        return ground.convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: ndarray, path: Path | str) -> ndarray:
    limit = 1 if np.issubdtype(values.dtype, np.floating) else 65535
    if not (values.min() >= 0 and values.max() <= limit):  # true for NaN as well
        extent = f"{values.dtype} values from {values.min()} to {values.max()}"
        raise UserError(f"{path} has {extent}, but only 0 to {limit} has a known meaning; save it with 8 or 16 bits")
    return np.rint(values.astype(np.float32) * np.float32(255 / limit)).astype(np.uint8)


def _exact(image: Image.Image, path: Path) -> Image.Image:
    """The stored numbers, those of a palette not replaced by its colours."""
    if image.format not in LOSSLESS:
        raise UserError(f"{path} is a {image.format} file, which need not keep every value; save it as PNG")
    return image


def read_labels(path: Path, classes: int) -> ndarray:
    """Read a label map, (H, W) uint8, values 0 (no class) to ``classes``."""
    labels = _read(path, _exact)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise UserError(
            f"{path} is not a label map: found {labels.dtype} {labels.shape}, expected one 8-bit channel; {INTACT}"
        )
    if labels.size and labels.max() > classes:
        raise UserError(f"{path} has label {labels.max()}, but there are only {classes} classes; check the class file")
    return labels


def read_depth(path: Path) -> ndarray:
    """Read a depth map, (H, W) float32 metres from 16-bit millimetres; 0 is invalid."""
    depth = _read(path, _exact)
    if depth.ndim != 2 or depth.dtype not in (np.uint16, np.int32):
        raise UserError(
            f"{path} is not a depth map: found {depth.dtype} {depth.shape}, expected one 16-bit channel; {INTACT}"
        )
    return depth.astype(np.float32) / np.float32(MILLIMETRES)


def check_pair(image: ndarray, image_path: Path, other: ndarray, other_path: Path) -> None:
    """UserError unless both have the same height and width."""
    if image.shape[:2] != other.shape[:2]:
        sizes = " and ".join(f"{array.shape[1]}x{array.shape[0]}" for array in (other, image))
        raise UserError(f"{other_path} and {image_path.name} differ in size ({sizes}); replace the damaged one")


def save_jpeg(path: Path, image: ndarray) -> None:
    """Write an RGB image as JPEG."""
    _save(path, image, JPEG)


def through_jpeg(image: ndarray) -> ndarray:
    """Return an RGB image as it is after ``save_jpeg`` and ``read_image``."""
    file = BytesIO()
    Image.fromarray(image).save(file, **JPEG)
    return np.array(Image.open(file))


def save_png(path: Path, values: ndarray) -> None:
    """Write uint8 labels or uint16 depth as PNG."""
    _save(path, values, {"format": "PNG"})


def _save(path: Path, values: ndarray, options: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = BytesIO()
    Image.fromarray(values).save(file, **options)
    path.write_bytes(file.getvalue())  # Pillow's own writing does not notice a disk that takes a part
