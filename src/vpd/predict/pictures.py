"""Find and decode pictures of any size, depth, mode and orientation, and name the files of their predictions."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from PIL import Image, ImageOps, UnidentifiedImageError

from vpd.utils.errors import UserError
from vpd.utils.progress import Progress

MAX_PIXELS = 80_000_000
MAX_ASPECT = 100
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats whose decoders only decode; Pillow would hand PostScript to an interpreter."""
WHITE = (255, 255, 255, 255)
LONGEST_STEM = 200
"""Bytes of a file name; file systems allow 255, and temporary files and suffixes need some."""


# -------------------------------------------------------------------------------------------------------------- messages
def printable(text: str) -> str:
    """Replace what a terminal or figure cannot show: undecodable bytes of file names, and control characters."""
    readable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "?" for letter in readable)


def say(sentence: str, progress: Progress | None = None) -> None:
    """Print one sentence to standard error, above the progress bar if there is one."""
    line = f"vpd: {printable(sentence)}"
    if progress is not None and progress.bar is not None:
        progress.bar.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------------ find
@cache
def suffixes() -> dict[str, str]:
    """Map lower-case file suffixes to those of ``FORMATS`` that this installation of Pillow decodes."""
    Image.init()
    known = Image.registered_extensions().items()
    return {suffix: name for suffix, name in known if name in FORMATS and name in Image.OPEN}


def find_pictures(given: Sequence[Path], out: Path) -> tuple[list[Path], list[str]]:
    """Collect the pictures among files and in folders (recursively), each once.

    Args:
        given: files and folders.
        out: folder of predictions, whose files are not pictures of a folder around it.

    Returns:
        The pictures, and one sentence for each of ``given`` that does not exist or holds none.
    """
    pictures: dict[Path, Path] = {}
    faults = []
    for path in given:
        inside = _in_folder(path, out) if path.is_dir() else [path] if path.is_file() else []
        if not inside:
            what = (
                "contains no pictures; name a folder that does" if path.is_dir() else "does not exist; check its name"
            )
            faults.append(f"{path} {what}")
        for picture in inside:
            pictures.setdefault(picture.resolve(), picture)
    return list(pictures.values()), faults


def _in_folder(folder: Path, out: Path) -> list[Path]:
    written = out.resolve()
    if folder.resolve() == written:
        raise UserError(f"{folder} is both the folder of pictures and that of predictions; name another --out")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if not path.resolve().is_relative_to(written)]
    pictures = [path for path in files if path.suffix.lower() in suffixes()]
    if len(pictures) < len(files):
        say(f"{folder}: skipped {len(files) - len(pictures)} files that are not pictures")
    return pictures


# ----------------------------------------------------------------------------------------------------------------- names
class Job(NamedTuple):
    """One picture and the files that are written for it."""

    image: Path
    picture: Path
    """The prediction as a PNG."""
    arrays: Path
    """The prediction as numpy arrays."""
    panel: Path
    """The picture beside its prediction."""


def plan_outputs(images: Iterable[Path], out: Path) -> list[Job]:
    """Name the files of every picture after it; if a name is taken, ``x`` becomes ``x-2``, ``x-3`` and so on.

    Raises:
        UserError: a prediction would overwrite one of the pictures.
    """
    images = list(images)
    originals = {image.resolve() for image in images}
    taken: set[str] = set()
    jobs = []
    for image in images:
        base = os.fsencode(image.stem)[:LONGEST_STEM].decode("utf-8", "ignore") or "picture"
        for stem in itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2))):
            outputs = [out / f"{stem}{suffix}" for suffix in (".png", ".npz", ".panel.png")]
            names = {path.name.casefold() for path in outputs}  # not all file systems distinguish upper and lower case
            if not names & taken:
                break
        for path in outputs:
            if path.resolve() in originals:
                raise UserError(f"the prediction would overwrite the picture {path}; name another --out")
        taken |= names
        jobs.append(Job(image, *outputs))
    return jobs


# ---------------------------------------------------------------------------------------------------------------- decode
def read_picture(path: Path) -> ndarray:
    """Decode a picture that nobody vouches for to upright RGB (H, W, 3) uint8.

    The Exif orientation is applied, transparent parts become white, 16 bits are scaled to 8, and of several frames only
    the first is used.

    Raises:
        UserError: the file is too large, too elongated, damaged or not a picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow reads what it only warns of
            with Image.open(path, formats=sorted(set(suffixes().values()))) as image:
                _check_size(path, *image.size)
                return np.array(_rgb(path, ImageOps.exif_transpose(image)))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check its name") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that can be read; convert it to JPEG or PNG") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} has far more than the limit of {MAX_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise UserError(f"{path} cannot be read as a picture ({reason}); save it again as JPEG or PNG") from None


def _check_size(path: Path, width: int, height: int) -> None:
    size = f"{path} has {width}x{height}"
    if width * height > MAX_PIXELS:
        raise UserError(f"{size} = {width * height:,} pixels, more than the limit of {MAX_PIXELS:,}; make it smaller")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(f"{size} pixels, a long side of more than {MAX_ASPECT} times the short one; crop it")


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB."""
    if image.mode[0] in "IF":
        return Image.fromarray(_eight_bits(path, np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, WHITE)
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image.convert("RGB")


def _eight_bits(path: Path, values: ndarray) -> ndarray:
    """Scale grey values of more than 8 bits: 16-bit integers by their full range, floating point by 0 to 1."""
    limit = 1 if values.dtype.kind == "f" else 65535
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= limit):  # also if some are not a number
        raise UserError(
            f"{path} has {values.dtype} values from {low} to {high}, but only 0 to {limit} has a known meaning; "
            f"save it with 8 or 16 bits"
        )
    return np.rint(values.astype(np.float32) * np.float32(255 / limit)).astype(np.uint8)
