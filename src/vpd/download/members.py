"""Members of zip and tar archives behind one face, read without trusting what the archive says."""

from __future__ import annotations

import contextlib
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vpd.utils.errors import UserError


@dataclass(frozen=True)
class Member:
    """One file, folder or other thing in an archive."""

    name: str
    size: int
    """Bytes once unpacked, as the archive declares."""
    packed: int
    """Bytes that it takes in the archive; 0 in a tar, whose members are not packed one by one."""
    kind: str
    """``file``, ``folder``, or what else it is, in words."""
    open: Callable[[], BinaryIO]


@contextlib.contextmanager
def opened_archive(archive: Path) -> Iterator[list[Member]]:
    """Yield the members of a zip, tar or tar.gz; anything broken in it, now or while reading, is a UserError."""
    if not archive.is_file():
        raise UserError(f"{archive} does not exist; fetch it first")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                yield [_zip_member(file, info) for info in file.infolist()]
        elif _is_tar(archive):
            with tarfile.open(archive) as file:
                yield [_tar_member(file, info) for info in _whole(file)]
        else:
            raise UserError(f"{archive} {_nature(archive)}; delete it and fetch it again")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise _damaged(archive, str(error)) from None
    except NotImplementedError as error:
        raise UserError(f"{archive} is packed in a way that Python cannot read ({error}); unpack it by hand") from None
    except OSError as error:
        if error.errno is None:  # gzip says damage this way, the operating system gives a number
            raise _damaged(archive, str(error)) from None
        place = f" to {error.filename}" if error.filename else ""
        raise UserError(f"{archive} cannot be unpacked{place}: {error.strerror}; free some space or fix it") from error


def _damaged(archive: Path, reason: str) -> UserError:
    return UserError(f"{archive} is truncated or damaged ({reason}); delete it and fetch it again")


def _nature(archive: Path) -> str:
    """Why a file that no reader accepts may be no archive."""
    with archive.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"PK"):
        return "is a truncated zip archive"
    if head.startswith(b"\x1f\x8b"):
        return "is a truncated or damaged gzip archive"
    return f"is neither a zip nor a tar archive (it starts with {head!r})"


def _is_tar(archive: Path) -> bool:
    try:
        return tarfile.is_tarfile(archive)
    except (EOFError, zlib.error, lzma.LZMAError):
        return False


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    kind = "folder" if info.is_dir() else "file"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a link" if stat.S_ISLNK(mode) else "a device or pipe"
    if info.flag_bits & 0x1:
        kind = "protected by a password"
    return Member(info.filename, info.file_size, info.compress_size, kind, lambda: file.open(info))


def _tar_member(file: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    kind = "file" if info.isreg() else "folder" if info.isdir() else "a device or pipe"
    if info.issym() or info.islnk():
        kind = "a link"
    return Member(info.name, info.size, 0, kind, lambda: file.extractfile(info))


def _whole(file: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """All members; ReadError without the block of zeros that ends a tar, whose absence ``tarfile`` passes over."""
    members = file.getmembers()
    file.fileobj.seek(file.offset)
    if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    return members
