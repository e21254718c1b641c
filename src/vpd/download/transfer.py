"""Downloads that survive broken connections, lying servers and killed jobs."""

from __future__ import annotations

import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpd.download.partial import Partial
from vpd.download.responses import SCHEMES, Interrupted, Refused, Response, StalePart, opened
from vpd.download.verify import Mismatch, Wanted, verify
from vpd.utils.disk import Meter, require_space
from vpd.utils.errors import UserError

CHUNK = 1 << 18


@dataclass(frozen=True)
class Patience:
    """How long a failing mirror is tried: waits double from ``pause`` to ``longest`` seconds."""

    attempts: int = 6
    """Failures in a row, without any new byte, after which the next mirror is tried."""
    pause: float = 1.0
    longest: float = 60.0
    timeout: float = 60.0
    """Seconds without a byte after which a connection counts as broken."""
    sleep: Callable[[float], None] = time.sleep

    def seconds(self, failures: int, wish: float | None) -> float:
        """How long to wait after so many failures, given what the server asked for."""
        own = self.pause * 2 ** (failures - 1)
        return min(self.longest, own if wish is None else max(own, wish))


PATIENCE = Patience()


class NoMirror(UserError):
    """No mirror could serve a file."""


@dataclass(frozen=True)
class Obtained:
    """A verified file, and where it came from."""

    url: str | None
    """None: it was there already."""
    sha256: str


def download(
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None,
    digests: dict[str, str],
    label: str,
    patience: Patience = PATIENCE,
) -> None:
    """Make ``target`` hold the file that the mirrors ``urls`` serve: verified, or UserError and no ``target``.

    ``digests`` maps md5, sha1 or sha256 to a hex digest or its first digits. A partial file of an earlier call is
    continued. Nothing but the request itself is sent: no token, no cookie.
    """
    obtain(urls, target, Wanted(size, digests, label), patience)


def obtain(urls: Sequence[str], target: Path, wanted: Wanted, patience: Patience = PATIENCE) -> Obtained:
    """As ``download``; tells where the file came from and its SHA-256."""
    _check_schemes(urls, wanted)
    if target.is_file():
        try:
            return Obtained(None, verify(target, wanted))
        except Mismatch as wrong:
            _say(f"{target} is not the file expected: {wrong}; it is downloaded again")
    partial, failures = Partial(target), []
    for url in urls:
        try:
            digest = _from_mirror(url, partial, wanted, patience)
        except Refused as reason:
            failures.append(f"{_mirror(url)}: {reason}")
            _say(f"{wanted.label}: {failures[-1]}")
            continue
        partial.complete()
        return Obtained(url, digest)
    raise NoMirror(f"{target.name} could not be downloaded ({'; '.join(failures) or 'no mirrors'})")


def _from_mirror(url: str, partial: Partial, wanted: Wanted, patience: Patience) -> str:
    """Transfer and verify; gives up after ``patience.attempts`` failures in a row that brought no new byte."""
    longest, failures = partial.length(), 0
    while True:
        try:
            resumed = _transfer(url, partial, wanted, patience.timeout)
            return _verified(partial, wanted, resumed)
        except Interrupted as trouble:
            if isinstance(trouble, StalePart):
                partial.discard()
            if partial.length() > longest:
                longest, failures = partial.length(), 0
            failures += 1
            if failures >= patience.attempts:
                raise Refused(f"{trouble} (tried {failures} times)") from None
            wait = patience.seconds(failures, trouble.wait)
            _say(f"{wanted.label}: {trouble}; trying again in {wait:.0f} s")
            patience.sleep(wait)


def _transfer(url: str, partial: Partial, wanted: Wanted, timeout: float) -> bool:
    """Complete the partial file; True if part of it came from an earlier request."""
    start = partial.resumable(url, wanted)
    if start and start == (wanted.size or partial.total):
        return True  # killed between the last byte and the renaming
    with opened(url, start, partial.validator_for(url), timeout) as response:
        _check_total(response, partial, wanted)
        total = wanted.size or response.total
        require_space([(partial.path.parent, max((total or 0) - response.start, 0), wanted.label)])
        if response.start == 0:
            partial.begin(url, response.validator, response.total)
        _receive(response, partial, wanted, total)
    length = partial.length()
    if total is not None and length < total:
        raise Interrupted(f"the connection ended after {length} of {total} bytes")
    return response.start > 0


def _check_total(response: Response, partial: Partial, wanted: Wanted) -> None:
    """Refuse a file of another size before its bytes are paid for."""
    if response.total is None:
        return
    if wanted.size is not None and response.total != wanted.size:
        raise Refused(f"it offers a file of {response.total} bytes, expected {wanted.size}")
    if response.start and partial.total not in (None, response.total):
        raise StalePart(f"the file changed from {partial.total} to {response.total} bytes")


def _receive(response: Response, partial: Partial, wanted: Wanted, total: int | None) -> None:
    with Meter(total or 0, wanted.label, response.start) as meter, partial.appending() as write:
        while chunk := response.stream.read1(CHUNK):
            write(chunk)
            meter.add(len(chunk))
            if total is not None and meter.bytes > total:
                break
    if total is not None and meter.bytes > total:
        partial.discard()
        raise Refused(f"it sends more than the expected {total} bytes")


def _verified(partial: Partial, wanted: Wanted, resumed: bool) -> str:
    """The digest of the completed partial file; a wrong one is thrown away, and asked for whole if it was pieced."""
    try:
        return verify(partial.path, wanted)
    except Mismatch as wrong:
        partial.discard()
        if resumed:
            raise StalePart(f"the continued file is wrong: {wrong}") from None
        raise Refused(f"what it sends is not the file expected: {wrong}") from None


def _check_schemes(urls: Sequence[str], wanted: Wanted) -> None:
    for url in urls:
        if urllib.parse.urlsplit(url).scheme not in SCHEMES:
            raise UserError(f"{wanted.label}: {url} is none of {', '.join(SCHEMES)}; correct the address")


def _mirror(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc or url


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
