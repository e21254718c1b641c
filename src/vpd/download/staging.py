"""From an archive to a part of a dataset tree: choose members, unpack them aside, and put them in place when all is there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from vpd.download.members import opened_archive
from vpd.utils.errors import UserError, nearest
from vpd.utils.files import atomic_folder

SHOWN = 5
"""Places in an archive that an error names."""


def file_of(files: dict[str, Path], role: str, kind: str) -> Path:
    """The file that plays ``role``; UserError if the source names none."""
    if role not in files:
        raise UserError(f"preparing '{kind}' needs a file with the role '{role}'; {nearest(role, files)}")
    return files[role]


def choose(archive: Path, target: Callable[[str], str | None], wanted: str) -> dict[str, str]:
    """Member names and their targets, where ``target`` gives one; UserError telling what there is if it never does."""
    with opened_archive(archive) as content:
        files = [str(PurePosixPath(member.name.replace("\\", "/"))) for member in content if member.kind != "folder"]
    chosen = {name: place for name in files if (place := target(name)) is not None}
    if not chosen:
        raise UserError(f"{archive} holds no {wanted}; {found(files)}; get the archive that holds them")
    return chosen


def found(names: Sequence[str]) -> str:
    """Say in which places of an archive its files lie: ``found a/b, c``."""
    places = sorted({"/".join(PurePosixPath(name).parts[:2]) for name in names})
    return f"found {', '.join(places[:SHOWN])}{', ...' * (len(places) > SHOWN)}" if places else "it is empty"


@contextlib.contextmanager
def staged(out: Path, kind: str, tops: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder inside ``out``; if the block succeeds, the ``tops`` made there replace those of ``out``.

    The tree sees only renames: old tops go, last one first, and new ones come, last one last. A list file named last is
    thus never there without all that it lists. Whatever else is in ``out`` stays.
    """
    whole = out / f".{kind}.new"
    with atomic_folder(whole) as stage:
        yield stage
    for number, top in reversed(list(enumerate(tops))):
        if os.path.lexists(out / top):
            os.replace(out / top, whole / f".old-{number}")
    for top in tops:
        (out / top).parent.mkdir(parents=True, exist_ok=True)
        os.replace(whole / top, out / top)
    shutil.rmtree(whole)


@contextlib.contextmanager
def naming(source: Path, stage: Path) -> Iterator[None]:
    """Let errors about files in ``stage``, which does not outlive them, name the ``source`` that they came from."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(f"{stage}{os.sep}", f"{source}: ")) from None
