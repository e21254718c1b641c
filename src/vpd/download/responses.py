"""One HTTP request for a file or the rest of one, with every failure sorted into lasting and passing ones."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from vpd import __version__
from vpd.download.verify import Mismatch, refuse_page

SCHEMES = ("http", "https", "file")
PASSING = (408, 425, 429, *range(500, 600))
"""HTTP statuses after which the same request may succeed later."""


class Refused(Exception):
    """A mirror cannot serve the file, and asking again would not help."""


class Interrupted(Exception):
    """A transfer failed in a way that may pass; ``wait`` is the server's own wish in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class StalePart(Interrupted):
    """The server does not continue what was received before; it has to be thrown away."""


@dataclass(frozen=True)
class Response:
    """An answer whose body is the file from byte ``start`` on."""

    stream: BinaryIO
    start: int
    total: int | None
    """Size of the whole file, if the server says it."""
    validator: str | None
    """Strong ETag or Last-Modified, by which a later request can ask whether the file is still the same."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, never to a local file."""

    def redirect_request(self, request, stream, code, message, headers, url):
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise Refused(f"it redirects to {url}, which is neither http nor https")
        return super().redirect_request(request, stream, code, message, headers, url)


@contextlib.contextmanager
def opened(url: str, start: int, validator: str | None, timeout: float) -> Iterator[Response]:
    """Ask for ``url`` from byte ``start`` on, provided that it still is what ``validator`` says; yield the answer.

    Raises Refused or Interrupted, also for errors while the body is read.
    """
    headers = {"User-Agent": f"vpd/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    with _sorted_errors():
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as stream:
            yield _response(stream, start)


def _response(stream, start: int) -> Response:
    headers = stream.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Refused(f"it sends the file encoded as {headers['Content-Encoding']}, which was not asked for")
    if headers.get_content_type() == "text/html":
        _refuse_html(stream)
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    validator = etag if etag and not etag.startswith("W/") else modified
    if start and stream.status == http.client.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if not found or int(found[1]) != start:
            raise StalePart(f"it answered with '{headers.get('Content-Range')}' to a request from byte {start} on")
        return Response(stream, start, None if found[2] == "*" else int(found[2]), validator)
    length = headers.get("Content-Length", "")
    return Response(stream, 0, int(length) if length.isdigit() else None, validator)


def _refuse_html(stream) -> None:
    try:
        refuse_page(stream.read(4096))
    except Mismatch as page:
        raise Refused(f"what it sends is not the file: {page}") from None
    raise Refused("it sends a web page instead of the file")


@contextlib.contextmanager
def _sorted_errors() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        raise _of_status(error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError | FileNotFoundError | IsADirectoryError | str):
            raise Refused(getattr(error.reason, "strerror", None) or str(error.reason)) from None
        raise Interrupted(f"no connection: {getattr(error.reason, 'strerror', None) or error.reason}") from None
    except http.client.InvalidURL as error:
        raise Refused(str(error)) from None
    except (http.client.HTTPException, OSError) as error:
        raise Interrupted(f"the connection broke: {error or type(error).__name__}") from None


def _of_status(error: urllib.error.HTTPError) -> Refused | Interrupted:
    error.close()
    said = f"it answered {error.code} {error.reason or ''}".rstrip()
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        return StalePart(said)
    if error.code in PASSING:
        return Interrupted(said, _retry_after(error.headers.get("Retry-After")))
    return Refused(said)


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds either them or a date; None if it makes no sense."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
