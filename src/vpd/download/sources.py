"""The catalogue of what can be fetched: ``sources.yaml`` as frozen, checked models."""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from vpd.config.params import checked
from vpd.config.schema import Frozen
from vpd.download.responses import SCHEMES
from vpd.download.verify import LENGTHS
from vpd.utils.errors import UserError, pick

SOURCES = Path(__file__).with_name("sources.yaml")
SHORTEST_DIGEST = 8


def _address(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.path):
        raise ValueError(f"an address begins with one of {', '.join(SCHEMES)}")
    return url


def _plain_name(name: str) -> str:
    if name != Path(name).name or name.startswith("."):
        raise ValueError("a file name has no folders and no leading dot")
    return name


Address = Annotated[str, AfterValidator(_address)]
FileName = Annotated[str, AfterValidator(_plain_name)]


class Licence(Frozen):
    """Terms under which something may be used."""

    name: str
    terms: str = Field(min_length=1)
    """What they ask for, in one paragraph of this project's own words."""
    text: Address
    """Where the words that count are."""


class FileSource(Frozen):
    """One file: its mirrors in the order in which they are tried, and how to recognise it."""

    name: FileName
    """Its name in the archives folder."""
    aliases: tuple[FileName, ...] = ()
    """Other names under which a user may have got it."""
    urls: tuple[Address, ...] = ()
    size: PositiveInt | None = None
    """Exact size in bytes."""
    about: PositiveInt | None = None
    """Rough size in bytes where the exact one is not known."""
    digests: dict[str, str] = {}
    """md5, sha1, sha256 -> hex digest, or its first digits where only those are known."""

    @model_validator(mode="after")
    def _real_digests(self):
        for algorithm, value in self.digests.items():
            longest = LENGTHS.get(algorithm)
            if longest is None:
                raise ValueError(f"digests are {', '.join(LENGTHS)}, not {algorithm}")
            if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_DIGEST},{longest}}}", value):
                raise ValueError(f"a {algorithm} has {SHORTEST_DIGEST} to {longest} of the digits 0-9a-f, not {value}")
        return self

    @property
    def expected_size(self) -> int:
        """Exact or rough bytes; 0 if nothing is known."""
        return self.size or self.about or 0


class Entry(Frozen):
    """Something that can be fetched: its files, their terms, and what is made of them."""

    title: str
    licence: str
    """A key of ``licences``."""
    files: dict[str, FileSource] = Field(min_length=1)
    """Role in the preparation -> file."""
    prepare: str
    """Kind of preparation: ``extract``, ``keep``, or one of vpd.download.layouts."""
    prepared: PositiveInt
    """Rough bytes of what the preparation makes."""
    by_hand: str | None = None
    """What to get from where when no mirror works, as half a sentence."""

    @model_validator(mode="after")
    def _obtainable(self):
        if self.by_hand is None and not all(file.urls for file in self.files.values()):
            raise ValueError("an entry needs urls for every file, or by_hand")
        return self


class Catalogue(Frozen):
    """The whole of sources.yaml."""

    licences: dict[str, Licence]
    entries: dict[str, Entry] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_licences(self):
        for name, entry in self.entries.items():
            if entry.licence not in self.licences:
                raise ValueError(f"entries.{name}.licence '{entry.licence}' is none of {', '.join(self.licences)}")
        return self

    def licence_of(self, entry: Entry) -> Licence:
        """The terms of ``entry``."""
        return self.licences[entry.licence]


def load_sources(path: Path | None = None) -> Catalogue:
    """Read and check a catalogue, by default that of the variable VPD_SOURCES, else the one that comes with vpd."""
    path = path or Path(os.environ.get("VPD_SOURCES") or SOURCES)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name an existing file of sources") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct that line") from None
    return checked(Catalogue, raw, str(path))


def entry_of(catalogue: Catalogue, name: str, path: Path | None) -> Entry:
    """The entry ``name``; UserError with the nearest names."""
    return pick(name, catalogue.entries, "download", str(path) if path else "vpd fetch")
