"""Checks that a file is the one that was asked for: no web page, the right size, then the right digests."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from vpd.utils.disk import Meter, amount

LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64}
"""Hex digits of each digest that a source may give."""
CHUNK = 1 << 20


class Mismatch(Exception):
    """A file is not the expected one; the text says what was expected and what was found."""


@dataclass(frozen=True)
class Wanted:
    """What is known beforehand about a file."""

    size: int | None
    digests: dict[str, str]
    """Algorithm -> hex digest, or the first digits of one."""
    label: str
    """What the progress display calls it."""


def verify(path: Path, wanted: Wanted) -> str:
    """The SHA-256 digest of ``path``, if it is the wanted file; Mismatch otherwise."""
    size = path.stat().st_size
    with path.open("rb") as file:
        refuse_page(file.read(4096))
    if size == 0:
        raise Mismatch("it is empty")
    if wanted.size is not None and size != wanted.size:
        raise Mismatch(f"its size is {size} bytes, expected {wanted.size}")
    seen = digests(path, {"sha256", *wanted.digests}, f"checking {wanted.label}")
    for algorithm, expected in wanted.digests.items():
        if not seen[algorithm].startswith(expected.lower()):
            shown = "starting with " if len(expected) < LENGTHS[algorithm] else ""
            raise Mismatch(f"its {algorithm} is {seen[algorithm]}, expected {shown}{expected}")
    return seen["sha256"]


def digests(path: Path, algorithms: set[str], label: str) -> dict[str, str]:
    """Hex digests of a file by algorithm, read once."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in sorted(algorithms)}
    with path.open("rb") as file, Meter(path.stat().st_size, label) as meter:
        while chunk := file.read(CHUNK):
            for each in hashes.values():
                each.update(chunk)
            meter.add(len(chunk))
    return {name: each.hexdigest() for name, each in hashes.items()}


def refuse_page(head: bytes) -> None:
    """Mismatch if ``head``, the first bytes of a file, begins a web page, such as one that asks for a login."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:15].lower()
    if not start.startswith((b"<!doctype html", b"<html")):
        return
    title = re.search(rb"<title[^>]*>(.*?)</title>", head, re.IGNORECASE | re.DOTALL)
    named = f" titled '{' '.join(title[1].decode(errors='replace').split())[:80]}'" if title else ""
    raise Mismatch(f"it is a web page{named}, which usually asks for a login or says that a download quota is used up")


def described(wanted: Wanted) -> str:
    """``54.0 MB, sha256 7f92...``: what is known of a file."""
    known = [amount(wanted.size)] if wanted.size is not None else []
    known += [f"{algorithm} {value}" for algorithm, value in wanted.digests.items()]
    return ", ".join(known)
