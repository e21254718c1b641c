"""Which pictures are meant, and which files their predictions become."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpd.predict.pictures import suffixes
from vpd.utils.errors import UserError

NAMED = 3
LONGEST_STEM = 200
"""Bytes of a file name; file systems allow 255, and temporary files and suffixes need some."""


@dataclass(frozen=True)
class Job:
    """One picture and the stem of the files that are written for it into ``folder``."""

    image: Path
    folder: Path
    stem: str

    @property
    def picture(self) -> Path:
        """The prediction as a PNG."""
        return self.folder / f"{self.stem}.png"

    @property
    def arrays(self) -> Path:
        """The prediction as numpy arrays."""
        return self.folder / f"{self.stem}.npz"

    @property
    def panel(self) -> Path:
        """The picture beside its prediction."""
        return self.folder / f"{self.stem}.panel.png"

    @property
    def outputs(self) -> tuple[Path, Path, Path]:
        """All files of this picture."""
        return self.picture, self.arrays, self.panel


def find_pictures(given: Sequence[Path], out: Path, say: Callable[[str], None]) -> tuple[list[Path], list[str]]:
    """Return the pictures that ``given`` files and folders (recursively) name, each once, and what is wrong with others.

    Earlier predictions in ``out`` are no pictures of a folder around it. Skipped files are said.
    """
    found: dict[Path, Path] = {}
    faults = []
    for path in given:
        if path.is_dir():
            inside = _folder(path, out, say)
            if not inside:
                faults.append(f"{path} holds no pictures; name a folder that does")
        elif path.is_file():
            inside = [path]
        else:
            inside = []
            faults.append(f"{path} is neither a file nor a folder; check its name")
        for picture in inside:
            found.setdefault(picture.resolve(), picture)
    return list(found.values()), faults


def _folder(folder: Path, out: Path, say: Callable[[str], None]) -> list[Path]:
    """All pictures below ``folder`` by name, but none in ``out``."""
    written = out.resolve()
    if folder.resolve() == written:
        raise UserError(f"{folder} is both the folder of pictures and that of predictions; name another --out")
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.resolve().is_relative_to(written)]
    pictures = [path for path in files if path.suffix.lower() in suffixes()]
    others = [path.relative_to(folder).as_posix() for path in files if path.suffix.lower() not in suffixes()]
    if others:
        names = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
        say(f"{folder}: skipped what is no picture, {len(others)} in all ({names})")
    return pictures


def plan(images: Iterable[Path], out: Path) -> list[Job]:
    """Give every picture files of its own in ``out``; UserError if one of them is a picture that was given.

    A second ``x`` becomes ``x-2``; upper and lower case do not tell files apart, since not all file systems do.
    """
    images = list(images)
    given = {image.resolve(): image for image in images}
    taken: set[str] = set()
    jobs = []
    for image in images:
        job = next(job for job in _candidates(image, out) if not taken & _folded(job))
        taken |= _folded(job)
        jobs.append(job)
        for output in job.outputs:
            if output.resolve() in given:
                raise UserError(f"the prediction would overwrite the picture {output}; name another --out")
    return jobs


def _candidates(image: Path, out: Path) -> Iterable[Job]:
    stem = os.fsencode(image.stem)[:LONGEST_STEM].decode("utf-8", "ignore") or "picture"
    yield Job(image, out, stem)
    number = 2
    while True:
        yield Job(image, out, f"{stem}-{number}")
        number += 1


def _folded(job: Job) -> set[str]:
    return {output.name.casefold() for output in job.outputs}
