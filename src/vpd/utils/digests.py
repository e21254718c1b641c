"""SHA-256 digests of files, remembered for as long as a file's size, times and inode stay the same."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vpd.utils.errors import UserError
from vpd.utils.files import is_junk, readable, write_json

REMEMBERED = Path(".vpd/digests")  # below the working directory, if that is a project's; can be deleted at any time
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
    with _memory(str(folder.resolve())) as (known, seen):
        found = {}
        for name in names:
            path = folder / name
            if not path.exists():
                continue
            with readable(path, "replace it by a file"):
                mark, settled = _mark(path)
                entry = known.get(name)
                found[name] = entry[1] if entry and entry[0] == mark else sha256(path)
            if settled:
                seen[name] = [mark, found[name]]
    return found


def remembered(name: str, files: Iterable[Path], make: Callable[[], str]) -> str:
    """The text that ``make`` gives for the contents of ``files``, made again only after one of them has changed."""
    marks = {str(path): _mark(path) for path in files}
    mark = {path: found for path, (found, _) in marks.items()}
    with _memory(name) as (known, seen):
        entry = known.get("")
        text = entry[1] if entry and entry[0] == mark else make()
        if all(settled for _, settled in marks.values()):
            seen[""] = [mark, text]
    return text


def _mark(path: Path) -> tuple[list[int], bool]:
    """What changes with a file's content, and whether the next change is sure to be seen in it."""
    stat = path.stat()
    # Programs can set the time of modification back (rsync -t, touch -r), but not that of the last change of the inode.
    changed_at = max(stat.st_mtime_ns, stat.st_ctime_ns)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino], time.time_ns() - changed_at > SETTLED * 1e9


@contextlib.contextmanager
def _memory(name: str) -> Iterator[tuple[dict[str, list], dict[str, list]]]:
    """Entries that are remembered under a name, and a dictionary for new ones."""
    path, seen = REMEMBERED / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json", dict[str, list]()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        known = {}
    yield known, seen
    # Whoever predicts in a folder of their own, with the library, finds nothing there afterwards.
    if not (REMEMBERED.parent.is_dir() or Path("params.yaml").is_file()):
        return
    if any(known.get(key) != entry for key, entry in seen.items()):
        with contextlib.suppress(UserError):  # a read-only working directory only costs the time to read again
            write_json(path, known | seen)


def changed(folder: Path, files: dict[str, str]) -> list[str]:
    """Names in ``files`` (name -> SHA-256) whose file below ``folder`` is missing or has another digest."""
    found = digests(folder, files)
    return [name for name, expected in files.items() if found.get(name) != expected]


def tree(folder: Path) -> list[str]:
    """All files below ``folder``, also behind links, relative to it, sorted; without junk."""
    found, seen = [], set[Path]()
    for place, folders, names in os.walk(folder, followlinks=True):
        if Path(place).resolve() in seen:  # links in a circle
            folders.clear()
            continue
        seen.add(Path(place).resolve())
        files = (path for path in (Path(place, name) for name in names) if path.is_file() and not is_junk(path))
        found += [path.relative_to(folder).as_posix() for path in files]
    return sorted(found)
