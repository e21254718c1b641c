"""Files that are complete or absent: atomic writes, digests and locks."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from vpd.errors import UserError


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
    """Yield an empty temporary folder beside ``path`` that replaces ``path`` if the block succeeds."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    with _plain_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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


def sha256(path: str | Path) -> str:
    """Hex SHA-256 digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: str | Path, wait: float = 20.0) -> Iterator[None]:
    """Hold an exclusive lock on ``folder`` for the block; UserError if another process holds it for ``wait`` seconds.

    The lock goes with the process, so a killed job leaves nothing to clean up. The wait covers the moment in which
    the workers of a killed job save their state.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    with open(folder / ".lock", "w") as file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise UserError(f"another process is already working in {folder}; wait for it to end, or stop it")
            time.sleep(0.1)
        yield


def _try_lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
