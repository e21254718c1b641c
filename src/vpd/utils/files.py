"""Files that are complete or absent: atomic writes, digests and locks."""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vpd.utils.errors import UserError

PAUSE = 0.1
"""Seconds between attempts to get a lock."""


@contextlib.contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error, such as that of a full disk, into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; free some space or fix the permissions") from error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` (same suffix) and rename it onto ``path`` if the block succeeds."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    with _plain_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path`` that replaces ``path`` if the block succeeds.

    A ``path`` that holds the same already stays, as new: other jobs may be reading it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    with _plain_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if _equal(temporary, path):
                _touch(path)
            else:
                _replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _equal(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    names, others = (sorted(path.relative_to(root) for path in root.rglob("*")) for root in (first, second))
    files = [name for name in names if not (first / name).is_dir()]
    return names == others and all(_same_file(first / name, second / name) for name in files)


def _same_file(first: Path, second: Path) -> bool:
    return second.is_file() and (first.samefile(second) or filecmp.cmp(first, second, shallow=False))


def _touch(folder: Path) -> None:
    """Date the files of now, which is how orchestrators see that they were made again."""
    for path in folder.rglob("*"):
        with contextlib.suppress(PermissionError):
            os.utime(path)


def _replace(temporary: Path, path: Path) -> None:
    """Put one folder in the place of another, which is whole until it goes."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        os.rename(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON file; UserError if it is missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that makes it first") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it and run the stage that makes it again"
        ) from None


# ---------------------------------------------------------------------------------------------------------------- locks
# flock is advisory, goes with the process, and holds between the machines that mount a folder by NFS. The file lies beside
# the folder that it is about, which may be replaced or removed under the lock.
@contextlib.contextmanager
def locked(folder: str | Path, wait: float = 20.0) -> Iterator[None]:
    """Hold an exclusive lock on ``folder`` for the block; UserError if another process holds it for ``wait`` seconds.

    A killed job leaves nothing to clean up. The wait covers the moment in which its workers save their state.
    """
    folder = Path(folder)
    deadline = time.monotonic() + wait
    with _lock_file(folder) as file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise UserError(
                    f"another process is already working in {folder} ({_holder(file)}); wait for it to end, or stop it"
                )
            time.sleep(PAUSE)
        _sign(file)
        folder.mkdir(parents=True, exist_ok=True)
        yield


@contextlib.contextmanager
def exclusive(out: str | Path, what: str = "") -> Iterator[None]:
    """Be the only process, on all machines that share the folder of ``out``, that makes it in the block.

    Waits as long as another lives, and says in one line for whom; then what the other made is there. Whoever may not write
    beside ``out`` can spoil nothing and does not wait. UserError where there can be no lock.
    """
    out = Path(out)
    try:
        file = _lock_file(out)
    except OSError as error:
        if os.access(out.parent, os.W_OK):
            raise UserError(f"cannot lock {out}: {error.filename}: {error.strerror}; fix its permissions") from error
        yield
        return
    with file:
        _wait_for(file, what or str(out))
        _sign(file)
        yield


def _wait_for(file: IO[str], what: str) -> None:
    if _try_lock(file):
        return
    print(f"{what}: waiting for {_holder(file)}, which is at it", file=sys.stderr, flush=True)
    while not _try_lock(file):
        time.sleep(PAUSE)


def _lock_file(path: Path) -> IO[str]:
    """Open the lock file of ``path``, for writing, as NFS wants it; whoever may write beside ``path`` may lock it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.suppress(FileExistsError):
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        lock.chmod(path.parent.stat().st_mode & 0o666)
    return open(lock, "r+", encoding="utf-8")


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{file.name} cannot be locked ({error.strerror}); use a file system with locks, such as NFS with its lock service"
        ) from error
    return True


def _sign(file: IO[str]) -> None:
    """Note who holds the lock."""
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.readline().strip() or "another process"
