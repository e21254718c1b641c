"""Getting datasets and released weights: terms, disk space, mirrors, checks, and the finished tree."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vpd.download.collecting import collect
from vpd.download.kinds import preparation
from vpd.download.licences import accepted, agree
from vpd.download.receipts import FOLDER, Part, is_complete, write_receipt
from vpd.download.sources import Entry, entry_of, load_sources
from vpd.download.transfer import PATIENCE, Patience
from vpd.utils.disk import amount
from vpd.utils.errors import UserError
from vpd.utils.files import exclusive, locked

__all__ = ["fetch", "listing"]

LONGEST_WAIT = 7 * 86400.0
"""Seconds that a job waits for another one that fetches the same."""


def fetch(
    name: str,
    out: Path,
    archives: Path,
    *,
    sources: Path | None = None,
    accept: bool = False,
    given: Sequence[Path] = (),
    patience: Patience = PATIENCE,
) -> None:
    """Complete the tree ``out`` with entry ``name`` of the catalogue ``sources`` (None: the one that comes with vpd).

    ``archives`` keeps archives, partial files and accepted licences; ``given`` are files that the user has already.
    ``accept`` agrees to the terms, which a terminal is asked about otherwise; ``patience`` is how long mirrors are tried.
    Returns at once if the tree's receipt says that all is there, and waits for another job that fetches the same.
    UserError for every failure.
    """
    out, archives = Path(out), Path(archives)
    catalogue = load_sources(sources)
    entry = entry_of(catalogue, name, sources)
    prepare = preparation(entry.prepare, f"{sources or 'vpd fetch'}: entries.{name}.prepare")
    with _plain_errors(name):
        if is_complete(out, name, entry):
            return
        date = agree(entry.licence, catalogue.licence_of(entry), name, archives, accept)
        with _alone(archives / ".locks" / name, name):
            if is_complete(out, name, entry):
                return
            parts = collect(name, entry, archives, out, given, patience)
            with exclusive(out / FOLDER / "tree", str(out)):
                _finish(name, entry, prepare, parts, out, date)


def _finish(name: str, entry: Entry, prepare, parts: dict[str, Part], out: Path, date: str) -> None:
    """Make the tree, then its receipt, unless another job with other archives has just done so."""
    if not is_complete(out, name, entry):
        prepare({role: part.path for role, part in parts.items()}, out)
        write_receipt(out, name, entry, parts, date)


def listing(sources: Path | None, archives: Path) -> str:
    """What can be fetched: name, bytes to download and on disk, terms, and whether they are accepted."""
    catalogue = load_sources(sources)
    lines = [f"{'name':15} {'download':>9} {'on disk':>9}  terms"]
    for name, entry in catalogue.entries.items():
        exact = all(file.size for file in entry.files.values())
        size = sum(file.expected_size for file in entry.files.values())
        down = ("" if exact else "~") + amount(size) if size else "unknown"
        date = accepted(entry.licence, Path(archives))
        state = f"accepted {date}" if date else "not accepted yet"
        terms = f"{catalogue.licence_of(entry).name}, {state}"
        lines.append(f"{name:15} {down:>9} {'~' + amount(entry.prepared):>9}  {terms}")
        if not all(file.urls for file in entry.files.values()):
            lines.append(f"{'':15} by hand: {' '.join((entry.by_hand or '').split())}")
    return "\n".join(lines)


@contextlib.contextmanager
def _alone(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of ``folder``, waiting with a message for whoever has it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, wait=0))
        except UserError:
            print(f"{what}: another process is fetching it; waiting for it to end", file=sys.stderr, flush=True)
            stack.enter_context(locked(folder, wait=LONGEST_WAIT))
        yield


@contextlib.contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """Turn an error of the operating system, such as a folder that may not be written, into a UserError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f" at {error.filename}" if error.filename else ""
        raise UserError(
            f"{name} cannot be fetched{place}: {error.strerror or error}; free some space or fix the permissions"
        ) from error
