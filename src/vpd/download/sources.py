"""The catalogue of what ``vpd fetch`` can get, ``sources.yaml``, and the terms that a user has accepted."""

import datetime
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import TypedDict

from vpd.config.params import checked
from vpd.config.schema import Frozen
from vpd.utils.documents import read_yaml
from vpd.utils.errors import UserError
from vpd.utils.files import locked, write_json
from vpd.utils.validation import read_as

SOURCES = Path(__file__).with_name("sources.yaml")
ACCEPTED = "licences.json"
"""File in the archives folder."""
Url = Annotated[str, Field(pattern=r"^https?://[^/]")]
FileName = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]


class Acceptance(TypedDict):
    """What the archives folder records of accepted terms."""

    name: str
    text: str
    accepted: str


class Licence(Frozen):
    """Terms under which something may be used."""

    name: str
    terms: str = Field(min_length=1)  # summary in this project's own words
    text: Url  # where the authoritative text is


class FileSource(Frozen):
    """One file: its mirrors in the order in which they are tried, and how to recognise it."""

    name: FileName  # in the archives folder
    aliases: tuple[FileName, ...] = ()  # under which a user may have downloaded it
    urls: tuple[Url, ...] = ()
    size: PositiveInt | None = None  # exact bytes
    about: PositiveInt | None = None  # rough bytes where the exact ones are not known
    digests: dict[Literal["md5", "sha1", "sha256"], Digest] = {}
    """Hex digests, or at least the first eight digits where only those are known."""

    @property
    def expected_size(self) -> int:
        """Exact or rough bytes; 0 if neither is known."""
        return self.size or self.about or 0


class Entry(Frozen):
    """Something that can be fetched: its files, their terms, and the preparation that makes a tree from them."""

    title: str
    licence: str  # a key of ``licences``
    files: dict[str, FileSource] = Field(min_length=1)  # by role in the preparation
    prepare: str  # kind of preparation: see vpd.download
    prepared: PositiveInt  # rough bytes of the prepared tree
    by_hand: str | None = None  # what to get from where when no mirror works, as half a sentence

    @model_validator(mode="after")
    def _obtainable(self) -> Self:
        if self.by_hand is None and not all(file.urls for file in self.files.values()):
            raise ValueError("an entry needs urls for every file, or by_hand")
        return self


class Catalogue(Frozen):
    """The whole of sources.yaml."""

    licences: dict[str, Licence]
    entries: dict[str, Entry] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_licences(self) -> Self:
        for name, entry in self.entries.items():
            if entry.licence not in self.licences:
                raise ValueError(f"entries.{name}.licence '{entry.licence}' is none of {', '.join(self.licences)}")
        return self


def load_sources(path: Path | None = None) -> Catalogue:
    """Read and validate a catalogue; by default that of the variable VPD_SOURCES, else the one that comes with vpd."""
    path = path or Path(os.environ.get("VPD_SOURCES") or SOURCES)
    return checked(Catalogue, read_yaml(path, "name an existing file of sources"), str(path))


def acceptance(licence: str, archives: Path) -> str | None:
    """Return the date on which the licence with this key was accepted, or None."""
    accepted = _accepted(archives).get(licence)
    return accepted["accepted"] if accepted else None


def _accepted(archives: Path) -> dict[str, Acceptance]:
    """Read which terms were accepted, by licence."""
    record = archives / ACCEPTED
    cure = "delete it and accept the terms again"
    return read_as(dict[str, Acceptance], record, cure) if record.exists() else {}


def require_acceptance(name: str, key: str, licence: Licence, archives: Path, accept: bool) -> None:
    """Record that the user accepts the terms of entry ``name``; else UserError with them and the command that accepts."""
    if acceptance(key, archives):
        return
    terms = " ".join(licence.terms.split())
    if not accept:
        raise UserError(
            f"{name} comes under terms that you have to accept first: {licence.name} ({terms} Text: {licence.text}); "
            f"if you accept them, run: vpd fetch {name} --accept-licence"
        )
    with locked(archives / ".locks" / "licences"):
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        accepted: Acceptance = {"name": licence.name, "text": licence.text, "accepted": date}
        write_json(archives / ACCEPTED, _accepted(archives) | {key: accepted})
