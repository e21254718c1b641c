"""Members of zip archives put into a tree: only plain files, never outside it, complete or not at all."""

import contextlib
import lzma
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from vpd.utils.disk import amount, require_space
from vpd.utils.errors import UserError
from vpd.utils.files import MANIFEST, atomic_folder, write_text
from vpd.utils.progress import track

RECEIPTS = ".fetched"
"""Folder in a tree with a receipt for each of its entries: fingerprint, and the archives that were used."""
RATIO = 200
"""Unpacked bytes per byte of the archive above which it counts as a bomb; images and .mat files stay below 20."""
ALLOWED = 100_000_000  # unpacked bytes that need no such ratio
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError)
"""What ``zipfile`` raises."""


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """Yield the archive and its members, names and sizes checked; errors while reading become a UserError."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.infolist() if not member.is_dir()]
            for name in (member.filename for member in members):
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":":
                    raise UserError(f"{archive}: the member {name!r} could write outside the tree; get a clean archive")
            # zipfile never reads more of a member than this size, whatever it unpacks to.
            total = sum(member.file_size for member in members)
            if total > max(ALLOWED, RATIO * archive.stat().st_size):
                bomb = f"{archive} would unpack to {amount(total)}, like a decompression bomb"
                raise UserError(f"{bomb}; get a clean archive")
            yield file, members
    except DAMAGE as error:
        raise UserError(f"{archive} is truncated or no intact zip ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked: {error}; free some space or fetch it again") from error


def choose(archive: Path, pattern: re.Pattern[str], path: str, wanted: str) -> dict[str, str]:
    """Map the members that match ``pattern`` to ``path`` with the match's groups; UserError without a ``wanted`` one."""
    with _opened(archive) as (_, members):
        names = [member.filename for member in members]
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
    """Unpack the ``chosen`` members (name -> path) into ``folder``; UserError for a link, a device or a password."""
    with _opened(archive) as (file, members):
        selected = [member for member in members if member.filename in chosen]
        for member in selected:
            kind, encrypted = stat.S_IFMT(member.external_attr >> 16), member.flag_bits & 0x1
            if encrypted or kind not in (0, stat.S_IFREG):
                raise UserError(f"{archive}: {member.filename!r} is a link, a device or encrypted; get a clean archive")
        require_space([(folder, sum(member.file_size for member in selected), f"the files of {archive.name}")])
        for member in track(selected, len(selected), f"unpacking {archive.name}", "files"):
            path = folder / chosen[member.filename]
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)


@contextlib.contextmanager
def staged(out: Path, kind: str, tops: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder inside ``out``; if the block succeeds, the ``tops`` made there replace those of ``out``.

    The tree sees only renames: old tops go, last one first, and new ones come, last one last. A list file named last is
    thus never there without the files that it lists, whenever a kill comes. Everything else in ``out`` stays. UserError if
    a top is there that no download put there.
    """
    new, begun = out / f".{kind}.new", out / RECEIPTS / f".{kind}.begun"
    fetched = begun.is_file() or any(out.glob(f"{RECEIPTS}/*/{MANIFEST}"))
    for path in (out / top for top in tops):
        if not fetched and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            cure = "use it as it is (source: folder), or name another folder"
            raise UserError(f"{path} was not fetched by vpd, which will not replace it; {cure}")
    with atomic_folder(new, own=True) as stage:
        yield stage
    write_text(begun, "")
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
