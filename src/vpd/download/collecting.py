"""Brings the files of one entry into the archives folder: from files the user has, or from the mirrors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vpd.download.partial import Partial
from vpd.download.receipts import Part
from vpd.download.sources import Entry, FileSource
from vpd.download.transfer import NoMirror, Patience, obtain
from vpd.download.verify import Mismatch, Wanted, described, verify
from vpd.utils.disk import Meter, existing, require_space
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_path

CHUNK = 1 << 20


def collect(
    name: str, entry: Entry, archives: Path, out: Path, given: Sequence[Path], patience: Patience
) -> dict[str, Part]:
    """All files of ``entry`` by role, verified, in ``archives``.

    UserError if a given file is not one of them, the disk is too small, or no mirror works.
    """
    parts = {}
    for path in given:
        role, part = _accept(name, entry, Path(path), archives)
        parts[role] = part
    missing = {role: file for role, file in entry.files.items() if role not in parts}
    _require_space(name, entry, missing, archives, out)
    for role, file in missing.items():
        parts[role] = _fetch(name, entry, file, archives, patience)
    return parts


def wanted(file: FileSource) -> Wanted:
    """What ``file`` has to be."""
    return Wanted(file.size, dict(file.digests), file.name)


def place(path: Path, target: Path) -> None:
    """Put ``path`` at ``target`` too: a hard link on the same disk, a copy elsewhere."""
    if target.exists() and os.path.samefile(path, target):
        return
    with atomic_path(target) as temporary:
        temporary.unlink(missing_ok=True)  # a killed job may have left a link there, and a copy would write through it
        try:
            os.link(path.resolve(), temporary)
        except OSError:
            _copy(path, temporary)


def _copy(path: Path, target: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as source, target.open("wb") as file, Meter(size, f"copying {path.name}") as meter:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            meter.add(len(chunk))


def _accept(name: str, entry: Entry, path: Path, archives: Path) -> tuple[str, Part]:
    """Recognise a file that the user has, by name or else by digest, and put it among the archives."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a file that was downloaded by hand")
    role, digest = _named(entry, path) or _alike(entry, path) or (None, "")
    if role is None:
        expected = "; ".join(_expected(file) for file in entry.files.values())
        raise UserError(f"{path} is no file of {name}, which needs {expected}; rename it if it is one of them")
    target = archives / entry.files[role].name
    place(path, target)
    Partial(target).discard()
    return role, Part(target, "given", digest)


def _named(entry: Entry, path: Path) -> tuple[str, str] | None:
    for role, file in entry.files.items():
        if path.name in (file.name, *file.aliases):
            try:
                return role, verify(path, wanted(file))
            except Mismatch as wrong:
                raise UserError(f"{path} is not the expected {file.name}: {wrong}; get the right file") from None
    return None


def _alike(entry: Entry, path: Path) -> tuple[str, str] | None:
    for role, file in entry.files.items():
        if file.digests:
            try:
                return role, verify(path, wanted(file))
            except Mismatch:
                continue
    return None


def _expected(file: FileSource) -> str:
    known = described(wanted(file))
    return f"{' or '.join((file.name, *file.aliases))}{f' ({known})' if known else ''}"


def _require_space(name: str, entry: Entry, missing: dict[str, FileSource], archives: Path, out: Path) -> None:
    """Check the disks for what is still to be downloaded and for what is made of it."""
    needs = []
    for file in missing.values():
        target = archives / file.name
        have = target.stat().st_size if target.is_file() else Partial(target).length()
        needs.append((archives, max(file.expected_size - have, 0), f"downloading {file.name}"))
    linked = entry.prepare == "keep" and existing(archives).stat().st_dev == existing(out).stat().st_dev
    needs.append((out, 0 if linked else entry.prepared, f"preparing {name}"))
    require_space(needs)


def _fetch(name: str, entry: Entry, file: FileSource, archives: Path, patience: Patience) -> Part:
    target = archives / file.name
    if not file.urls and not target.is_file():
        raise UserError(f"{name}: no mirror of {file.name} is known; {_by_hand(name, entry, file)}")
    try:
        got = obtain(file.urls, target, wanted(file), patience)
    except NoMirror as error:
        raise UserError(f"{error}; {_by_hand(name, entry, file)}") from None
    return Part(target, got.url or "already in the archives folder", got.sha256)


def _by_hand(name: str, entry: Entry, file: FileSource) -> str:
    """What the user can do without a mirror."""
    how = " ".join(entry.by_hand.split()).rstrip(".") if entry.by_hand else f"get {file.name} by hand"
    return f"{how}, then run: vpd fetch {name} --from-archive FOLDER/{(*file.aliases, file.name)[0]}"
