"""The part of a file that has arrived, with a note of where it came from, so that a killed download goes on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vpd.download.verify import Wanted
from vpd.utils.errors import UserError
from vpd.utils.files import write_json


class Partial:
    """``<target>.part`` beside the target, and ``<target>.part.json`` with url, validator and total size."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        self._source = self._read()

    def _read(self) -> dict:
        """The note; empty if it is missing or a killed job left it damaged, as then nothing is known of the bytes."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    @property
    def total(self) -> int | None:
        """Size of the whole file as its server said."""
        return self._source.get("total")

    def length(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def validator_for(self, url: str) -> str | None:
        """ETag or date under which the bytes came from ``url``; None if they came from elsewhere."""
        return self._source.get("validator") if self._source.get("url") == url else None

    def resumable(self, url: str, wanted: Wanted) -> int:
        """How many bytes a request to ``url`` may skip.

        All that arrived, if the server can be asked whether its file is still the same, or if a digest will tell
        afterwards whether the pieces fit; else none.
        """
        length = self.length()
        too_long = length > (wanted.size or self.total or length)
        return length if not too_long and (self.validator_for(url) or wanted.digests) else 0

    def begin(self, url: str, validator: str | None, total: int | None) -> None:
        """Forget what arrived before and note where the bytes to come are from."""
        self.discard()
        self._source = {"url": url, "validator": validator, "total": total}
        write_json(self.note, self._source)

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[bytes], object]]:
        """Yield a function that appends bytes, unbuffered, so that a killed job keeps them."""
        with self.path.open("ab", buffering=0) as file:
            yield lambda chunk: self._append(file, chunk)

    def _append(self, file, chunk: bytes) -> None:
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"cannot write {self.path}: {reason}; free some space, then run the same command to go on"
            ) from error

    def discard(self) -> None:
        """Throw away what arrived."""
        self._source = {}
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def complete(self) -> None:
        """Rename the finished file onto its target."""
        os.replace(self.path, self.target)
        self.note.unlink(missing_ok=True)
