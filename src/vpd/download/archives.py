"""Safe extraction of zip and tar archives: nothing outside the folder, no links, no bombs, complete or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from vpd.download.members import Member, opened_archive
from vpd.utils.disk import Meter, amount, require_space
from vpd.utils.errors import UserError

CHUNK = 1 << 20
RATIO = 200
"""Unpacked bytes per byte of the archive above which it counts as a bomb; images and .mat files stay below 20."""
ALLOWED = 100_000_000
"""Unpacked bytes that need no such ratio."""


def extract(archive: Path, out: Path, *, members: Callable[[str], str | None] | None = None) -> int:
    """Unpack ``archive`` (zip, tar, tar.gz) into the folder ``out`` and return how many files it held.

    ``members`` maps a member's name to its path below ``out``, or to None to leave it out. Files go to a temporary
    folder inside ``out`` first and are moved when all are there; files of the same name are replaced. UserError for a
    damaged archive, and for one with names that lead outside, links, colliding names or an absurd unpacked size.
    """
    archive, out = Path(archive), Path(out)
    with opened_archive(archive) as content:
        chosen = _chosen(archive, content, members or (lambda name: name))
        if not chosen:
            raise UserError(f"{archive} holds none of the files expected; check that it is the right archive")
        total = _check_sizes(archive, chosen)
        require_space([(out, total, f"the files of {archive.name}")])
        with _temporary(out, archive.name) as folder:
            with Meter(total, f"unpacking {archive.name}") as meter:
                for target, member in chosen.items():
                    _write(archive, member, folder / target, meter)
            _merge(folder, out)
    return len(chosen)


def _chosen(archive: Path, content: list[Member], mapping: Callable[[str], str | None]) -> dict[str, Member]:
    """Files to unpack by their path below the folder, every name checked."""
    chosen: dict[str, Member] = {}
    taken: dict[str, str] = {}
    for member in content:
        name = _safe(archive, member.name)
        target = mapping(name) if name and member.kind != "folder" else None
        if target is None:
            continue
        if member.kind != "file":
            raise UserError(f"{archive}: '{name}' is {member.kind}; only plain files are unpacked, get a clean archive")
        target = _safe(archive, target)
        _claim(archive, target, taken)
        chosen[target] = member
    _refuse_files_as_folders(archive, chosen, taken)
    return chosen


def _safe(archive: Path, name: str) -> str:
    """``name`` with plain slashes and without ``./``; UserError if it could lead out of the folder."""
    name = name.replace("\\", "/")
    path = PurePosixPath(name)
    drive = name[1:2] == ":"
    if path.is_absolute() or drive or ".." in path.parts or any(ord(letter) < 32 for letter in name):
        raise UserError(f"{archive}: the member {name!r} could write outside the folder; get a clean archive")
    return "" if str(path) == "." else str(path)


def _folded(name: str) -> str:
    """What a file system that ignores case and accents' spelling sees."""
    return unicodedata.normalize("NFC", name).casefold()


def _claim(archive: Path, target: str, taken: dict[str, str]) -> None:
    other = taken.get(_folded(target))
    if other is not None:
        raise UserError(f"{archive}: '{other}' and '{target}' would be the same file; get a clean archive")
    taken[_folded(target)] = target


def _refuse_files_as_folders(archive: Path, chosen: dict[str, Member], taken: dict[str, str]) -> None:
    for target in chosen:
        for parent in PurePosixPath(target).parents:
            if _folded(str(parent)) in taken:
                raise UserError(f"{archive}: '{parent}' is both a file and a folder; get a clean archive")


def _check_sizes(archive: Path, chosen: dict[str, Member]) -> int:
    """Unpacked bytes, as declared; UserError if they are out of proportion or members share packed bytes."""
    size, total = archive.stat().st_size, sum(member.size for member in chosen.values())
    shared = sum(member.packed for member in chosen.values()) > size
    if shared or total > max(ALLOWED, RATIO * size):
        raise UserError(
            f"{archive} would unpack from {amount(size)} to {amount(total)}, like an archive made to fill disks; "
            "get a clean archive"
        )
    return total


@contextlib.contextmanager
def _temporary(out: Path, name: str):
    """A fresh folder on the disk of ``out``, removed at the end or, after a kill, at the next start."""
    folder = out / f".{name}.partial"
    fresh = [parent for parent in (out, *out.parents) if not parent.exists()]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in fresh:
                parent.rmdir()  # only if nothing came into it


def _write(archive: Path, member: Member, path: Path, meter: Meter) -> None:
    """Unpack one file; UserError if it is longer or shorter than declared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with member.open() as source, path.open("wb") as file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > member.size:
                break
            file.write(chunk)
            meter.add(len(chunk))
    if written != member.size:
        more = "longer" if written > member.size else "shorter"
        raise UserError(f"{archive} is truncated or damaged ('{member.name}' is {more} than declared); fetch it again")


def _merge(source: Path, out: Path) -> None:
    """Move everything in ``source`` into ``out``, whole folders where it can; files of the same name are replaced."""
    for path in sorted(source.iterdir()):
        target = out / path.name
        if path.is_dir() and target.is_dir():
            _merge(path, target)
        elif target.is_dir() or (path.is_dir() and target.exists()):
            raise UserError(f"{target} is in the way of a {'folder' if path.is_dir() else 'file'}; remove it")
        else:
            os.replace(path, target)
