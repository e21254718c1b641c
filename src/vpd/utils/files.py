"""Files that are complete or absent: atomic writes, reading without surprises, and locks."""

import contextlib
import filecmp
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from vpd.utils.errors import UserError, disk_full

JUNK = {"Thumbs.db", "desktop.ini"}  # beside hidden files, what file managers add unasked
MANIFEST, FINGERPRINT = "manifest.json", "fingerprint.json"  # what this project writes into a finished folder
PAUSE = 0.1  # seconds between attempts to get a lock


@contextlib.contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk, in whatever form a library raises it, into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_full(error) or (isinstance(error, OSError) and (error.strerror or error))
        if not reason:
            raise
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
def atomic_folder(path: str | Path, own: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path`` that replaces ``path`` if the block succeeds.

    A ``path`` that holds the same already stays, as new: other jobs may be reading it. UserError, before anything is written,
    if it is not empty and has neither manifest nor fingerprint of this project, unless the caller knows it to be its ``own``.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    if not own and _foreign(path):
        raise UserError(f"{path} holds files that vpd did not make and will not replace; move them to another folder")
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


def is_junk(path: Path) -> bool:
    """Whether a file or folder is hidden, as macOS's ``._*`` and ``.DS_Store`` are, or added by a file manager."""
    return path.name.startswith(".") or path.name in JUNK


def files_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Files in a folder that match a pattern (``**/*`` also looks into its folders), sorted, without junk."""
    return sorted(path for path in folder.glob(pattern) if path.is_file() and not is_junk(path))


def _foreign(path: Path) -> bool:
    """Whether something is there that has content but nothing that says it is this project's."""
    if not path.exists() or (path.is_dir() and all(map(is_junk, path.iterdir()))):
        return False
    manifest = path / MANIFEST
    listed = manifest.is_file() and b'"schema"' in manifest.read_bytes()
    return not (listed or (path / FINGERPRINT).is_file())


def _equal(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    names, others = (sorted(path.relative_to(root) for path in root.rglob("*")) for root in (first, second))
    pairs = [(first / name, second / name) for name in names if not (first / name).is_dir()]
    return names == others and all(
        b.is_file() and (a.samefile(b) or filecmp.cmp(a, b, shallow=False)) for a, b in pairs
    )


def _touch(folder: Path) -> None:
    """Date the files of now, which is how orchestrators see that they were made again."""
    for path in folder.rglob("*"):
        with contextlib.suppress(PermissionError):
            os.utime(path)


def restore(path: Path) -> None:
    """Put back the folder that a kill of ``atomic_folder`` between its two renames left beside its place."""
    if _old(path).is_dir() and not path.exists():
        os.rename(_old(path), path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _replace(temporary: Path, path: Path) -> None:
    """Put one folder in the place of another, which is whole until it goes."""
    old = _old(path)
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


# ------------------------------------------------------------------------------------------------------------- reading
AGAIN = "delete it and run the stage that makes it again"
FIRST = "run the stage that makes it first"


@contextlib.contextmanager
def readable(path: str | Path, cure: str = AGAIN, missing: str = FIRST) -> Iterator[None]:
    """Turn whatever keeps ``path`` from being opened, or its bytes from being understood, into a UserError that names it.

    ``missing`` is the cure where there is nothing. A pipe or device is refused, since its reader may wait without end.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path} is a folder or a device, not a file; {cure}")
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {missing}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; fix its permissions, or {cure}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}); {cure}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; {cure}") from None


def read_text(path: str | Path, cure: str = AGAIN, missing: str = FIRST) -> str:
    """Read a text file, with or without a byte-order mark; UserError as ``readable`` raises it."""
    with readable(path, cure, missing):
        return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: str | Path, kind: type = dict, cure: str = AGAIN) -> Any:
    """Read a JSON file that holds a value of ``kind``; UserError if it is missing, damaged or holds another.

    ``vpd.utils.validation.read_as`` also checks what is inside.
    """
    text = read_text(path, cure)
    with readable(path, cure):
        try:
            value = json.loads(text, parse_constant=_refuse)
            json.dumps(value, ensure_ascii=False).encode() if "\\u" in text else None
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}); {cure}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path} holds a value of type {type(value).__name__}, not {kind.__name__}; {cure}")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


# ---------------------------------------------------------------------------------------------------------------- locks
# Advisory, released when the process exits, and held between the machines that mount a folder by NFS. The lock file lies
# beside the folder that it guards, because the folder may be replaced or removed under the lock.
@contextlib.contextmanager
def locked(folder: str | Path, wait: float = 20.0) -> Iterator[None]:
    """Hold an exclusive lock on ``folder``, which is created, for the block; UserError if another one keeps it.

    ``wait`` is in seconds; the default is enough for the workers of a killed job to save their state.
    """
    folder = Path(folder)
    try:
        lock = _acquire(folder, wait)
    except Timeout:
        raise UserError(f"another process is already working in {folder}; wait for it to end, or stop it") from None
    with lock:
        folder.mkdir(parents=True, exist_ok=True)
        yield


@contextlib.contextmanager
def exclusive(out: str | Path, what: str = "") -> Iterator[None]:
    """Be the only process, on all machines that share the folder, that makes ``out`` in the block.

    Waits for another one without end, after one line that says so, which calls ``out`` ``what``. A process that cannot write
    beside ``out`` can damage nothing and does not wait. UserError if the lock file cannot be opened or locked.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        yield
        return
    try:
        lock = _acquire(out, 0)
    except Timeout:
        print(f"{what or out}: waiting for another process that is making it", file=sys.stderr, flush=True)
        lock = _acquire(out, -1)
    with lock:
        yield


def is_locked(out: str | Path) -> bool:
    """Tell whether another process is making ``out``."""
    with contextlib.suppress(Timeout), _acquire(Path(out), 0):
        return False
    return True


def _acquire(path: Path, wait: float) -> AcquireReturnProxy:
    """Lock ``path``; whoever may write beside it may lock it, whatever the umask of the first one was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = 0o600 | path.parent.stat().st_mode & 0o666
    file = path.with_name(f".{path.name}.lock")
    if file.exists() and not file.is_file():
        raise UserError(f"cannot lock {path}: {file} is not a file; remove it")
    try:
        return FileLock(file, mode=mode, is_singleton=False).acquire(timeout=wait, poll_interval=PAUSE)
    except Timeout:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot lock {path}: {reason}; fix its permissions or use a file system with locks") from error
