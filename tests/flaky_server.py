"""A real HTTP server on this machine that misbehaves as a test tells it to."""

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """How one request is answered."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    """Whether Range is understood."""
    drop: int | None = None
    """Close the connection after so many bytes of the body."""
    length: int | None = None
    """A Content-Length that lies."""
    chunked: bool = False
    """Say no length at all."""
    hold: threading.Event | None = None
    """Wait for this, after ``drop`` bytes, instead of closing."""


@dataclass
class Request:
    """What a client asked for."""

    path: str
    headers: dict[str, str]


class FlakyServer:
    """``server.says("/a.zip", Answer(...), Answer(...))``: one answer after the other, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[Request] = []
        self.started = threading.Event()
        """Set when an answer that holds has sent its bytes."""
        handler = type("Handler", (_Handler,), {"flaky": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True

    def says(self, path: str, *answers: Answer) -> str:
        """Set the answers to ``path`` and return its address."""
        self.answers[path] = list(answers)
        return self.url(path)

    def url(self, path: str) -> str:
        """Address of ``path``."""
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def asked(self, path: str) -> list[dict[str, str]]:
        """Headers of the requests for ``path``, in order."""
        return [request.headers for request in self.requests if request.path == path]

    def next(self, path: str) -> Answer:
        """The answer to the next request for ``path``."""
        left = self.answers.get(path, [Answer(status=404)])
        return left.pop(0) if len(left) > 1 else left[0]


@contextlib.contextmanager
def running() -> Iterator[FlakyServer]:
    """Run a server for the block."""
    flaky = FlakyServer()
    thread = threading.Thread(target=flaky.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield flaky
    finally:
        flaky.server.shutdown()
        flaky.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    flaky: FlakyServer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.flaky.requests.append(Request(self.path, headers))
        answer = self.flaky.next(self.path)
        start = self._start(answer, headers)
        if start is not None and start >= len(answer.body) > 0:
            self._send(Answer(status=416, headers={"Content-Range": f"bytes */{len(answer.body)}"}), b"", None)
        elif start is None:
            self._send(answer, answer.body, None)
        else:
            self._send(answer, answer.body[start:], f"bytes {start}-{len(answer.body) - 1}/{len(answer.body)}")

    def _start(self, answer: Answer, headers: dict[str, str]) -> int | None:
        """First byte asked for, or None if the whole file has to be sent."""
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        current = (answer.headers.get("ETag"), answer.headers.get("Last-Modified"))
        if not asked or not answer.ranges or answer.status != 200 or headers.get("if-range", current[0]) not in current:
            return None
        return int(asked[1])

    def _send(self, answer: Answer, body: bytes, content_range: str | None) -> None:
        self.send_response(206 if content_range else answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if content_range:
            self.send_header("Content-Range", content_range)
        if not answer.chunked:
            self.send_header("Content-Length", str(len(body) if answer.length is None else answer.length))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body if answer.drop is None else body[: answer.drop])
            self.wfile.flush()
            if answer.hold:
                self.flaky.started.set()
                answer.hold.wait(60)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""
