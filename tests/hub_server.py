"""A real HTTP server that speaks as much of the Hugging Face hub as ``snapshot_download`` asks for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

JSON = {"Content-Type": "application/json"}
LARGE = ".safetensors"
"""Files that the hub keeps outside git: their ETag is the SHA-256 digest, and requests are redirected."""


@dataclass
class Repository:
    """Files of one commit, and how the hub treats those who ask."""

    folder: Path
    token: str | None = None  # gated, and what the accepted user sends
    disabled: bool = False  # taken down
    corrupt: set[str] = field(default_factory=set)  # files sent with the first byte changed
    drops: dict[str, int] = field(default_factory=dict)  # how many requests for a file's content are cut off half way
    truncate: set[str] = field(default_factory=set)  # files sent by half

    @cached_property
    def files(self) -> dict[str, bytes]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    @cached_property
    def commit(self) -> str:
        text = "".join(f"{name} {etag(name, content)}\n" for name, content in self.files.items())
        return hashlib.sha1(text.encode()).hexdigest()


def etag(name: str, content: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The server, its repositories by name, and the requests it got; a context manager."""

    def __init__(self, **repositories: Repository) -> None:
        self.repositories = repositories
        self.requests: list[tuple[str, str]] = []
        self.failing: int | None = None  # status with which all requests fail
        self.told: set[str] = set()  # tokens that the second address heard
        # Large files come from a second address, which a token must not be told.
        handler = type("Handler", (Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def __enter__(self) -> Hub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def served(self) -> set[str]:
        """Names of the files whose content was asked for."""
        paths = [path for method, path in self.requests if method == "GET"]
        return {match[1] for path in paths if (match := re.match(r"(?:/cdn/.+?/.+?|.+/resolve/.+?)/(.+)", path))}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        if self.hub.failing:
            return self.fail(self.hub.failing)
        if parts[:2] == ["api", "models"]:
            return self.describe("/".join(parts[2:4]), *parts[4:6])
        if parts[0] == "cdn":
            self.hub.told |= {self.headers["Authorization"]} - {None}
            return self.content("/".join(parts[1:3]), "/".join(parts[3:]))
        if parts[2:3] == ["resolve"]:
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.fail(404)

    do_HEAD = do_GET

    def repository(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            # The hub hides whether a repository is private from those without a token.
            return self.fail(404 if "Authorization" in self.headers else 401, "RepoNotFound")
        if repository.disabled:
            return self.fail(403, message="Access to this resource is disabled.")
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            return self.fail(403 if "Authorization" in self.headers else 401, "GatedRepo")
        if revision not in ("main", repository.commit):
            return self.fail(404, "RevisionNotFound")
        return repository

    def describe(self, name: str, kind: str, revision: str) -> None:
        """Answer ``revision/<revision>`` and ``tree/<revision>``; both stay open to all in a gated repository."""
        repository = self.hub.repositories.get(name)
        if repository is None or repository.disabled or revision not in ("main", repository.commit):
            self.repository(name, revision)
        elif kind == "tree":
            self.send(json.dumps([entry(file, content) for file, content in repository.files.items()]).encode())
        else:
            siblings = [{"rfilename": file} for file in repository.files]
            self.send(json.dumps({"id": name, "sha": repository.commit, "siblings": siblings}).encode())

    def resolve(self, name: str, revision: str, file: str) -> None:
        if (repository := self.repository(name, revision)) is None:
            return None
        if file not in repository.files:
            return self.fail(404, "EntryNotFound")
        content = repository.files[file]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{etag(file, content)}"'}
        if not file.endswith(LARGE):
            return self.send(content, headers)
        linked = {"X-Linked-Etag": f'"{etag(file, content)}"', "X-Linked-Size": str(len(content))}
        return self.send(b"", headers | linked | {"Location": f"{self.hub.store}/cdn/{name}/{file}"}, status=302)

    def content(self, name: str, file: str) -> None:
        repository = self.hub.repositories[name]
        content = repository.files[file]
        if file in repository.corrupt:
            content = bytes([content[0] ^ 0xFF]) + content[1:]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        cut = None
        if repository.drops.get(file, 0) > 0:
            repository.drops[file] -= 1
            cut = (len(content) - start) // 2
        elif file in repository.truncate:
            content = content[: len(content) // 2]
        self.send(content[start:], part, 206 if start else 200, cut)

    def fail(self, status: int, code: str | None = None, message: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(b"{}", {name: value for name, value in headers.items() if value}, status)

    def send(self, body: bytes, headers: dict = JSON, status: int = 200, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True
            self.connection.close()


def entry(file: str, content: bytes) -> dict:
    value = {"type": "file", "path": file, "size": len(content), "oid": etag(file, content)}
    if file.endswith(LARGE):
        value |= {"lfs": {"oid": etag(file, content), "size": len(content), "pointerSize": 130}}
    return value


SCRIPT = """
import json, os, resource, sys
from pathlib import Path
from vpd.config.schema import BackboneSpec, CheckpointSpec
from vpd.pretrained import stable_diffusion
from vpd.pretrained.checkpoints import assemble
from vpd.utils.errors import UserError
limit, *jobs = json.loads(sys.argv[1])
if narrow := os.environ.get("SD1_CONFIGS"):
    stable_diffusion.configs = lambda _="": json.loads(Path(narrow).read_text())
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for name, spec, out in jobs:
    try:
        if "vision" in spec:
            from vpd.pretrained.backbones import fetch_backbone
            fetch_backbone(name, BackboneSpec.model_validate(spec), Path(out))
        else:
            assemble(name, CheckpointSpec.model_validate(spec), Path("none"), Path(out))
        print("made")
    except UserError as error:
        print("UserError:", error)
sys.stdout.flush()
os._exit(0)  # without the second that torch and diffusers take to be cleared up
"""


def settings(home: Path, **changes: str) -> dict[str, str]:
    """The environment of a process with its own hub cache; time-outs are for a busy machine."""
    given = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    given |= dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), "300")
    return {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | given | changes


def make(home: Path, jobs: list[tuple[str, dict, Path]], limit: int = 0, **environment: str) -> list[str]:
    """Make checkpoints of specs in a process; a line for each: ``made``, or what was refused. ``limit``: bytes of a file."""
    argument = json.dumps([limit, *((name, spec, str(out)) for name, spec, out in jobs)])
    command, given = [sys.executable, "-c", SCRIPT, argument], settings(home, **environment)
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
