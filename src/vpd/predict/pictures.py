"""Find pictures, and name the files of their predictions."""

import itertools
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from vpd.datasets.images import suffixes
from vpd.predict.predictions import ARRAYS
from vpd.utils.errors import UserError, printable
from vpd.utils.files import files_in

LONGEST_STEM = 200
"""Bytes of a file name; file systems allow 255, and temporary files and suffixes need some."""


def say(sentence: str) -> None:
    """Print one sentence to standard error, above the progress bar if there is one."""
    tqdm.write(f"vpd: {printable(sentence)}", file=sys.stderr)


def find_pictures(given: Sequence[Path], out: Path) -> tuple[list[Path], list[str]]:
    """Collect the pictures in files and folders but ``out``, and a sentence for each of ``given`` that holds none."""
    pictures: dict[Path, Path] = {}
    faults = []
    for path in given:
        inside = _in_folder(path, out) if path.is_dir() else [path] if path.is_file() else []
        if not inside:
            folder = "contains no pictures; name a folder that does"
            faults.append(f"{path} {folder if path.is_dir() else 'does not exist; check its name'}")
        for picture in inside:
            pictures.setdefault(picture.resolve(), picture)
    return list(pictures.values()), faults


def _in_folder(folder: Path, out: Path) -> list[Path]:
    written = out.resolve()
    if folder.resolve() == written:
        raise UserError(f"{folder} is both the folder of pictures and that of predictions; name another --out")
    files = [path for path in files_in(folder, "**/*") if not path.resolve().is_relative_to(written)]
    pictures = [path for path in files if path.suffix.lower() in suffixes()]
    if len(pictures) < len(files):
        say(f"{folder}: skipped {len(files) - len(pictures)} files that are not pictures")
    return pictures


class Job(NamedTuple):
    """A picture and the files that are written for it: the prediction as PNG and arrays, and the two side by side."""

    image: Path
    picture: Path
    arrays: Path
    panel: Path


def plan_outputs(images: Sequence[Path], out: Path) -> list[Job]:
    """Name the files of every picture after it; if a name is taken, ``x`` becomes ``x-2``, ``x-3`` and so on."""
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
        if overwritten := [path for path in outputs if path.resolve() in originals]:
            raise UserError(f"the prediction would overwrite the picture {overwritten[0]}; name another --out")
        if (others := [path for path in outputs if path.exists()]) and not _is_prediction(outputs[1]):
            raise UserError(f"{others[0]} is no prediction of vpd and would be replaced; name another --out")
        taken |= names
        jobs.append(Job(image, *outputs))
    return jobs


def _is_prediction(arrays: Path) -> bool:
    """Whether the file, which is written before the pictures beside it, has the arrays of a prediction."""
    try:
        with zipfile.ZipFile(arrays) as file:
            return {name.removesuffix(".npy") for name in file.namelist()} in ARRAYS
    except (OSError, zipfile.BadZipFile):
        return False
