"""Members of zip and tar archives put into a tree: only plain files, never outside it, complete or not at all."""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from vpd.utils.disk import amount, require_space
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder
from vpd.utils.progress import track

RATIO = 200
"""Unpacked bytes per byte of the archive above which it counts as a bomb; images and .mat files stay below 20."""
ALLOWED = 100_000_000
"""Unpacked bytes that need no such ratio."""
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError)
"""What the readers of archives raise."""


class Member(NamedTuple):
    """Anything in an archive but a folder."""

    name: str
    size: int
    """Bytes once unpacked, as the archive declares; zipfile and tarfile never read more."""
    plain: bool
    """Whether it is a file that can be read, and no link, device or encrypted file."""
    open: Callable[[], IO[bytes] | None]


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[list[Member]]:
    """Yield the members, their names and sizes checked; errors while reading become a UserError."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                infos = [info for info in file.infolist() if not info.is_dir()]
                members = [Member(i.filename, i.file_size, _plain(i), partial(file.open, i)) for i in infos]
                yield _checked(archive, members)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                entries = [entry for entry in _complete(tar) if not entry.isdir()]
                yield _checked(
                    archive, [Member(e.name, e.size, e.isreg(), partial(tar.extractfile, e)) for e in entries]
                )
        else:
            raise UserError(f"{archive} is truncated or no zip or tar archive; delete it and fetch it again")
    except DAMAGE as error:
        raise UserError(f"{archive} is truncated or damaged ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked: {error}; free some space or fetch it again") from error


def _plain(info: zipfile.ZipInfo) -> bool:
    encrypted = info.flag_bits & 0x1
    return not encrypted and stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)


def _complete(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """All members; ReadError if the closing block of zeros is missing, which ``tarfile`` does not report."""
    members, file = tar.getmembers(), cast("IO[bytes]", tar.fileobj)
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    return members


def _checked(archive: Path, members: list[Member]) -> list[Member]:
    for name in (member.name for member in members):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":":
            raise UserError(f"{archive}: the member {name!r} could write outside the tree; get a clean archive")
    total, limit = sum(member.size for member in members), max(ALLOWED, RATIO * archive.stat().st_size)
    if total > limit:
        raise UserError(f"{archive} would unpack to {amount(total)}, like a decompression bomb; get a clean archive")
    return members


def choose(archive: Path, pattern: re.Pattern[str], path: str, wanted: str) -> dict[str, str]:
    """Select the members whose whole name matches ``pattern``; UserError, which calls them ``wanted``, if there are none.

    Returns:
        Member's name -> its path in the tree: ``path`` with the groups of the match, as in ``re.Match.expand``.
    """
    with _opened(archive) as members:
        names = [member.name for member in members]
    matches = {name: pattern.fullmatch(str(PurePosixPath(name))) for name in names}
    chosen = {name: match.expand(path) for name, match in matches.items() if match}
    if not chosen:
        raise UserError(f"{archive} holds no {wanted}; {places(names)}; get the archive that holds them")
    return chosen


def places(names: Iterable[str]) -> str:
    """Summarise where an archive's files lie: ``found a/b, c``."""
    folders = sorted({"/".join(PurePosixPath(name).parts[:2]) for name in names})
    return f"found {', '.join(folders[:5])}{', ...' * (len(folders) > 5)}" if folders else "it is empty"


def extract(archive: Path, folder: Path, chosen: dict[str, str]) -> None:
    """Unpack the ``chosen`` members (name -> path) into ``folder``, which a damaged archive leaves half full.

    UserError naming archive and member for a link, a device or a password.
    """
    with _opened(archive) as members:
        selected = [member for member in members if member.name in chosen]
        for member in selected:
            if not member.plain:
                raise UserError(f"{archive}: {member.name!r} is a link, a device or encrypted; get a clean archive")
        require_space([(folder, sum(member.size for member in selected), f"the files of {archive.name}")])
        for member in track(selected, len(selected), f"unpacking {archive.name}", "files"):
            path = folder / chosen[member.name]
            path.parent.mkdir(parents=True, exist_ok=True)
            with cast("IO[bytes]", member.open()) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file)


def extract_all(files: dict[str, Path], out: Path) -> None:
    """Unpack every archive; its top files and folders replace those of the tree."""
    with staged(out, "extract") as stage:
        for archive in files.values():
            extract(archive, stage, choose(archive, re.compile("(.+)"), r"\1", "files"))


@contextlib.contextmanager
def staged(out: Path, kind: str, tops: Sequence[str] | None = None) -> Iterator[Path]:
    """Yield an empty folder inside ``out``; if the block succeeds, the ``tops`` made there replace those of ``out``.

    The tree sees only renames: old tops go, last one first, and new ones come, last one last. A list file named last is
    thus never there without the files that it lists, whenever a kill comes. Everything else in ``out``
    stays. By default the tops are all that the block makes.
    """
    new = out / f".{kind}.new"
    with atomic_folder(new) as stage:
        yield stage
    tops = sorted(os.listdir(new)) if tops is None else tops
    for number, top in reversed(list(enumerate(tops))):
        if os.path.lexists(out / top):
            os.replace(out / top, new / f".old-{number}")
    for top in tops:
        (out / top).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / top, out / top)
    shutil.rmtree(new)


@contextlib.contextmanager
def errors_naming(archive: Path, stage: Path) -> Iterator[None]:
    """Let errors about files in ``stage``, which is gone when they are read, name the ``archive`` that they came from."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(f"{stage}{os.sep}", f"{archive}: ")) from None
