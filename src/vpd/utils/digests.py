"""SHA-256 digests of files, remembered for as long as a file's size, time and inode stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from vpd.utils.errors import UserError
from vpd.utils.files import write_json

REMEMBERED = Path(".vpd/digests")  # below the working directory; can be deleted at any time
SETTLED = 2.0  # seconds; a file changed more recently could change again without a visible change of its time


def sha256(path: str | Path) -> str:
    """Hex SHA-256 digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """Sixteen hex digits of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name of those ``names`` below a folder that exist; a file unchanged since the last call is not read again."""
    memory = REMEMBERED / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    known = _load(memory)
    found, seen = {}, {}
    for name in names:
        path = folder / name
        try:
            stat = path.stat()
            mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            entry = known.get(name)
            found[name] = entry[1] if entry and entry[0] == mark else sha256(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; fix its permissions") from error
        if time.time_ns() - stat.st_mtime_ns > SETTLED * 1e9:
            seen[name] = [mark, found[name]]
    if any(known.get(name) != entry for name, entry in seen.items()):
        with contextlib.suppress(UserError):  # a read-only working directory only costs the time to read again
            write_json(memory, known | seen)
    return found


def _load(memory: Path) -> dict[str, list]:
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def changed(folder: Path, files: dict[str, str]) -> list[str]:
    """Names in ``files`` (name -> SHA-256) whose file below ``folder`` is missing or has another digest."""
    found = digests(folder, files)
    return [name for name, expected in files.items() if found.get(name) != expected]


def tree(folder: Path) -> list[str]:
    """All files below ``folder``, relative to it, sorted."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path.relative_to(folder).as_posix() for path in files)
