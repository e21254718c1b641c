"""Receipts in the finished tree: what was fetched from where, with the digests actually seen."""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from vpd.download.sources import Entry
from vpd.utils.files import read_json, write_json

FOLDER = ".fetched"


@dataclass(frozen=True)
class Part:
    """One file of an entry, as it was used."""

    path: Path
    origin: str
    """Address that it came from, or what else brought it."""
    sha256: str


def receipt_path(out: Path, name: str) -> Path:
    """Where the receipt of ``name`` lies in the tree ``out``."""
    return out / FOLDER / f"{name}.json"


def is_complete(out: Path, name: str, entry: Entry) -> bool:
    """Whether the receipt says that this very entry is all there."""
    path = receipt_path(out, name)
    return path.is_file() and read_json(path).get("content") == _content(entry)


def write_receipt(out: Path, name: str, entry: Entry, parts: dict[str, Part], accepted: str) -> None:
    """Write the receipt, which makes the tree count as complete."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    files = {
        role: {
            "name": part.path.name,
            "origin": part.origin,
            "size": part.path.stat().st_size,
            "sha256": part.sha256,
        }
        for role, part in parts.items()
    }
    receipt = {"name": name, "licence": entry.licence, "accepted": accepted, "time": now, "files": files}
    write_json(receipt_path(out, name), receipt | {"prepare": entry.prepare, "content": _content(entry)})


def _content(entry: Entry) -> str:
    """Digest of what decides the tree: which files, and what is made of them. Mirrors and terms do not."""
    files = {role: [file.name, file.size, file.digests] for role, file in entry.files.items()}
    text = json.dumps([entry.prepare, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
