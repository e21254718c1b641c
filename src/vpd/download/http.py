"""Downloads over HTTP: mirrors in order, resumed after a broken connection or a kill, verified before they appear."""

import hashlib
import os
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from requests.adapters import HTTPAdapter
from typing_extensions import TypedDict

from vpd import __version__
from vpd.download.sources import FileSource
from vpd.utils.disk import Meter, require_space
from vpd.utils.errors import UserError
from vpd.utils.files import write_json
from vpd.utils.validation import read_as

ATTEMPTS = 6
"""Failures in a row, without a single new byte, after which the next mirror is tried."""
PAUSE = 60
"""Seconds between two attempts at most; pauses double from 1 s, or are what a server's Retry-After asks for."""
STALL = 60.0  # seconds without a byte after which a connection counts as broken
TRANSIENT = (408, 425, 429, *range(500, 600))  # statuses after which the same request may succeed later
WEB_PAGE = "it is a web page, usually a login form or a notice that a download quota is used up"
CHUNK = 1 << 20


SLOWEST = 1000
"""Bytes a second, over STALL seconds, below which a connection counts as broken."""
LARGEST = 2 * 10**12
"""Bytes that a server may send of a file whose size nobody stated."""


class Rejected(Exception):
    """A file, or what a mirror answers, is not what was asked for."""


class Interrupted(Exception):
    """A transfer broke off; another request may complete it."""


@dataclass(frozen=True)
class Archive:
    """A verified file."""

    path: Path
    origin: str  # URL that it came from, or what else brought it
    sha256: str


class Origin(TypedDict, total=False):
    """Where the bytes of a part came from."""

    url: str
    validator: str | None
    total: int | None


class Part:
    """Bytes that have arrived (``<target>.part``) and a note of their origin (``<target>.part.json``)."""

    def __init__(self, target: Path) -> None:
        self.path, self.note = (target.with_name(f"{target.name}.part{suffix}") for suffix in ("", ".json"))

    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def origin(self) -> Origin:
        """URL, validator and total size; empty if a kill left the note missing or damaged."""
        try:
            return read_as(Origin, self.note)
        except UserError:
            return {}

    def restart(self, response: requests.Response, url: str, total: int | None) -> None:
        """Discard the bytes and note where the new ones come from."""
        self.discard()
        etag = response.headers.get("ETag", "W/")  # a weak ETag does not promise equal bytes
        validator = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
        write_json(self.note, {"url": url, "validator": validator, "total": total})

    def discard(self) -> None:
        """Delete bytes and note."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def download(file: FileSource, target: Path) -> Archive:
    """Make ``target`` hold ``file``; it appears only when it is complete and verified.

    Bytes that arrived before a failure or a SIGKILL stay in ``<target>.part``, and the next call continues from them.
    """
    if target.is_file():
        try:
            return Archive(target, "already in the archives folder", verify(target, file))
        except Rejected as reason:
            print(f"{target} is not the expected file: {reason}; downloading it again", file=sys.stderr, flush=True)
    part, failures = Part(target), []
    with _session() as session:
        for url in file.urls:
            try:
                digest = _from_mirror(session, url, part, file)
            except Rejected as reason:
                failures.append(f"{url.split('/')[2]}: {reason}")
                print(f"{file.name}: {failures[-1]}", file=sys.stderr, flush=True)
                continue
            os.replace(part.path, target)
            part.discard()
            return Archive(target, url, digest)
    raise UserError(f"{file.name} could not be downloaded ({'; '.join(failures) or 'no mirror is known'})")


def _session() -> requests.Session:
    """A session that repeats a request until a body arrives, and sends no login."""
    retry = urllib3.Retry(
        ATTEMPTS - 1, status_forcelist=TRANSIENT, backoff_factor=1.0, backoff_max=PAUSE, retry_after_max=PAUSE
    )
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter := HTTPAdapter(max_retries=retry))
        for kind, pool in (pools := dict(adapter.poolmanager.pool_classes_by_scheme)).items():
            prompt = type("Connection", (_Prompt, pool.ConnectionCls), {})
            pools[kind] = type("Pool", (pool,), {"ConnectionCls": prompt})
        adapter.poolmanager.pool_classes_by_scheme = pools
    session.max_redirects = 5
    session.headers.update({"User-Agent": f"vpd/{__version__}", "Accept-Encoding": "identity"})
    session.trust_env = False  # requests would send logins from ~/.netrc; proxies are set for each mirror
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    return session


class _Prompt:
    """A connection whose answer must begin, headers and all, within STALL seconds, a byte now and then or not."""

    def getresponse(self) -> urllib3.HTTPResponse:
        watch = threading.Timer(STALL, self.sock.shutdown, [socket.SHUT_RDWR])  # type: ignore[attr-defined]
        watch.start()
        try:
            response = super().getresponse()  # type: ignore[misc]
        finally:
            watch.cancel()
        if response.status >= 300:
            response.close()  # nobody needs the body of a redirect or an error, which may never end
        return response


def _from_mirror(session: requests.Session, url: str, part: Part, file: FileSource) -> str:
    """Transfer and verify; resume a broken transfer as long as new bytes arrive, and ATTEMPTS times without any."""
    longest, failures = part.size(), 0
    session.proxies = requests.utils.get_environ_proxies(url)
    while True:
        try:
            return _transfer(session, url, part, file)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError, OverflowError) as error:
            raise Rejected(_cause(error)) from None  # hostile headers and addresses raise whatever they overflow
        except Interrupted as reason:
            failures = 1 if part.size() > longest else failures + 1
            longest = max(longest, part.size())
            if failures == ATTEMPTS:
                raise Rejected(f"{reason} (tried {failures} times)") from None
            pause = min(PAUSE, 2 ** (failures - 1))
            print(f"{file.name}: {reason}; trying again in {pause} s", file=sys.stderr, flush=True)
            time.sleep(pause)


def _transfer(session: requests.Session, url: str, part: Part, file: FileSource) -> str:
    """Complete the part and return its SHA-256; a wrong part is discarded."""
    origin, start = part.origin(), part.size()
    validator = origin.get("validator") if origin.get("url") == url else None
    whole = file.size or origin.get("total")
    if start > (whole or start) or not (validator or file.digests):
        start = 0  # nothing could tell whether old and new bytes belong to the same file
    resumed = start > 0
    if not resumed or start != whole:  # else killed between the last byte and the verification
        headers = ({"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})) if resumed else {}
        with session.get(url, headers=headers, stream=True, timeout=STALL) as response:
            resumed = _receive(response, url, start, part, file)
    try:
        return verify(part.path, file)
    except Rejected as reason:
        part.discard()
        # The pieces of a resumed file may come from two versions of it; one request for all of it can still succeed.
        raise (Interrupted if resumed else Rejected)(f"what it sends is not the expected file: {reason}") from None


def _receive(response: requests.Response, url: str, start: int, part: Part, file: FileSource) -> bool:
    """Write the body to the part; return whether it continues the bytes that were there."""
    status, length = response.status_code, response.headers.get("Content-Length")
    if resumed := status == requests.codes.partial_content:
        continued = re.fullmatch(rf"bytes {start}-[0-9]+/(?:([0-9]+)|\*)", response.headers.get("Content-Range", ""))
        length = continued[1] if continued else None
    if status == requests.codes.requested_range_not_satisfiable or (resumed and not continued):
        part.discard()
        raise Interrupted(f"it answered {status} to a request from byte {start} on")
    if status >= 400:
        raise Rejected(f"it answered {status} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise Rejected(WEB_PAGE)
    if length and not (re.fullmatch("[0-9]{1,19}", length) and int(length) <= LARGEST):
        raise Rejected(f"it says that the file has {length[:50]!r} bytes")
    total = int(length) if length else None
    if file.size and total and total != file.size:
        raise Rejected(f"it offers a file of {total} bytes, expected {file.size}")
    require_space([(part.path.parent, max((total or 0) - start * resumed, 0), file.name)])
    if not resumed:
        part.restart(response, url, total)
    _append(response, part, file.size or total, file.name)
    return resumed


def _append(response: requests.Response, part: Part, total: int | None, name: str) -> None:
    """Write bytes as they arrive, so that a kill loses none; stop a server that sends too slowly, or more than ``total``."""
    begun, before = time.monotonic(), part.size()
    try:
        with part.path.open("ab") as output, Meter(total or 0, name, part.size()) as meter:
            # read1 returns what is there; iter_content waits for a whole chunk, and loses it if the connection breaks
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                if meter.bytes + len(chunk) > (total or LARGEST):
                    part.discard()
                    raise Rejected(f"it sends more than the expected {total or LARGEST} bytes")
                output.write(chunk)
                output.flush()
                meter.add(len(chunk))
                if (passed := time.monotonic() - begun) > STALL:
                    if meter.bytes - before < SLOWEST * passed:
                        raise Rejected(f"it sends less than {SLOWEST} bytes a second")
                    begun, before = time.monotonic(), meter.bytes
    except urllib3.exceptions.HTTPError as error:
        raise Interrupted(f"the connection broke after {part.size()} bytes: {_cause(error)}") from None
    except OSError as error:
        reason = f"cannot write {part.path}: {error.strerror}"
        raise UserError(f"{reason}; free some space, then run the same command to resume") from error
    if total and part.size() < total:  # without a Content-Length an early end looks like any other
        raise Interrupted(f"the connection ended after {part.size()} of {total} bytes")


def verify(path: Path, file: FileSource) -> str:
    """Return the SHA-256 of ``path``; raise Rejected unless it has the size and digests of ``file``."""
    size = path.stat().st_size
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in ("sha256", *file.digests)}
    with path.open("rb") as content, Meter(size, f"checking {file.name}") as meter:
        if re.match(rb"\s*<(!doctype html|html)", content.peek(100), re.IGNORECASE):
            raise Rejected(WEB_PAGE)
        if size != (file.size or size) or size == 0:
            raise Rejected(f"its size is {size} bytes, expected {file.size or 'more'}")
        while chunk := content.read(CHUNK):
            for each in hashes.values():
                each.update(chunk)
            meter.add(len(chunk))
    for name, expected in file.digests.items():
        if not hashes[name].hexdigest().startswith(expected):
            raise Rejected(f"its {name} is {hashes[name].hexdigest()}, expected {expected}")
    return hashes["sha256"].hexdigest()


def _cause(error: BaseException) -> str:
    """Message of the innermost of nested errors, such as ``Connection refused`` or ``too many 503 error responses``."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return getattr(error, "strerror", None) or str(error)
