"""Terms are shown before anything is fetched, agreed to once, and the agreement is kept beside the archives."""

from __future__ import annotations

import datetime
import sys
import textwrap
from pathlib import Path

from vpd.download.sources import Licence
from vpd.utils.errors import UserError
from vpd.utils.files import locked, read_json, write_json

RECORD = "licences.json"


def accepted(licence: str, archives: Path) -> str | None:
    """The date on which the licence with this id was accepted, or None."""
    record = archives / RECORD
    return read_json(record).get(licence, {}).get("accepted") if record.is_file() else None


def agree(identity: str, licence: Licence, name: str, archives: Path, accept: bool) -> str:
    """The date of agreement to ``licence``, asked for once.

    ``accept`` says yes beforehand; else a terminal is asked. UserError with the terms and the command otherwise.
    """
    date = accepted(identity, archives)
    if date is not None:
        return date
    if not (accept or _asked(licence, name)):
        raise UserError(
            f"{name} comes under terms that have to be accepted first: {licence.name} ({_flat(licence.terms)} "
            f"Text: {licence.text}); if you accept them, run: vpd fetch {name} --accept-licence"
        )
    return _record(identity, licence, archives)


def _asked(licence: Licence, name: str) -> bool:
    """Show the terms and ask on a terminal; False where there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    terms = textwrap.fill(_flat(licence.terms), 100)
    print(f"{name}: {licence.name}\n\n{terms}\n\nText: {licence.text}", file=sys.stderr)
    print("Do you accept these terms? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _record(identity: str, licence: Licence, archives: Path) -> str:
    """Note today's agreement; two jobs may do so at once."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    with locked(archives / ".locks" / "licences"):
        record = read_json(archives / RECORD) if (archives / RECORD).is_file() else {}
        record[identity] = {"name": licence.name, "text": licence.text, "accepted": date}
        write_json(archives / RECORD, record)
    return date


def _flat(text: str) -> str:
    return " ".join(text.split())
