"""Fetching: whatever servers, archives, disks and users do, the tree is right or one sentence says why not."""

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import re
import socketserver
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from flaky_server import Answer, running
from forked import impatient, wait_for
from vpd import download
from vpd.cli import main
from vpd.download import fetch, http, listing, nyuv2, shared_out
from vpd.download.archives import choose, extract, staged
from vpd.download.sources import FileSource, load_sources
from vpd.utils.errors import UserError
from vpd.utils.files import locked
from vpd.utils.fingerprint import fingerprint

BODY = hashlib.shake_256(b"a file").digest(3_000_000)
OTHER = hashlib.shake_256(b"another file").digest(3_000_000)
DIGESTS = {"sha256": hashlib.sha256(BODY).hexdigest()}
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>no</body></html>"
TAGGED = {"ETag": '"one"'}


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with running() as flaky:
        yield flaky


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that downloads would have paused, without pausing."""
    seconds: list[float] = []
    monkeypatch.setattr(http, "ATTEMPTS", 4)
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


def get(urls, target, *, size=None, digests=DIGESTS) -> http.Archive:
    return http.download(FileSource(name="a", urls=urls, size=size, digests=digests), target)


# ------------------------------------------------------------------------------------------------------------ transfer
def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, tmp_path, waits):
    url = server.says("/a", Answer(BODY))
    archive = get([url], tmp_path / "deep" / "a", size=len(BODY))
    assert (archive.origin, archive.sha256) == (url, DIGESTS["sha256"])
    assert (tmp_path / "deep" / "a").read_bytes() == BODY
    assert os.listdir(tmp_path / "deep") == ["a"]
    assert waits == []


def test_dropped_connections_are_continued_from_the_last_byte(server, tmp_path, waits):
    drops = [Answer(BODY, drop=drop, headers=TAGGED) for drop in (1_000_000, 9)]
    get([server.says("/a", *drops, Answer(BODY, headers=TAGGED))], tmp_path / "a", digests={})
    assert (tmp_path / "a").read_bytes() == BODY
    assert [request.get("range") for request in server.asked("/a")] == [None, "bytes=1000000-", "bytes=1000009-"]
    assert [request.get("if-range") for request in server.asked("/a")] == [None, '"one"', '"one"']
    assert waits == [1.0, 1.0]  # new bytes make the next failure a first one again


@pytest.mark.parametrize(
    ("first", "others", "digests", "body", "ranges"),
    [
        ((BODY, TAGGED), [(OTHER, {"ETag": '"two"'})], {}, OTHER, [None, "bytes=1000000-"]),  # it changed meanwhile
        # Without an ETag a digest decides whether the pieces fit; with neither nothing is pieced together.
        ((OTHER, {}), [(BODY, {}), (BODY, {})], DIGESTS, BODY, [None, "bytes=1000000-", None]),
        ((OTHER, {"ETag": 'W/"weak"'}), [(BODY, {})], {}, BODY, [None, None]),
    ],
)
def test_pieces_of_two_files_are_never_joined(server, tmp_path, waits, first, others, digests, body, ranges):
    dropped = Answer(first[0], drop=1_000_000, headers=first[1])
    url = server.says("/a", dropped, *(Answer(content, headers=headers) for content, headers in others))
    get([url], tmp_path / "a", digests=digests)
    assert (tmp_path / "a").read_bytes() == body
    assert [request.get("range") for request in server.asked("/a")] == ranges


def test_a_part_that_the_server_does_not_continue_is_discarded(server, tmp_path, waits):
    (tmp_path / "a.part").write_bytes(OTHER + b"longer than the file")
    get([server.says("/a", Answer(BODY))], tmp_path / "a")
    assert [request.get("range") for request in server.asked("/a")] == ["bytes=3000020-", None]
    (tmp_path / "b.part").write_bytes(OTHER[:1000])
    wrong = Answer(BODY, status=206, headers={"Content-Range": "bytes 7-2999999/3000000"})
    get([server.says("/b", wrong, Answer(BODY))], tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == BODY


def test_a_connection_that_falls_silent_is_continued(server, tmp_path, waits, monkeypatch):
    hold = threading.Event()
    monkeypatch.setattr(http, "STALL", 0.3)
    url = server.says("/a", Answer(BODY, drop=1_000_000, hold=hold, headers=TAGGED), Answer(BODY, headers=TAGGED))
    get([url], tmp_path / "a", digests={})
    hold.set()
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.asked("/a")[1]["range"] == "bytes=1000000-"


def test_a_server_without_ranges_starts_over_and_is_given_up_if_it_always_drops_at_the_same_byte(
    server, tmp_path, waits
):
    url = server.says("/a", Answer(BODY, drop=2_000_000, ranges=False), Answer(BODY, ranges=False))
    get([url], tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    waits.clear()
    with pytest.raises(UserError, match=r"broke after 1000 bytes: .*\(tried 4 times\)"):
        get([server.says("/b", Answer(BODY, drop=1000, ranges=False))], tmp_path / "b")
    assert waits == [1.0, 2.0, 4.0]
    assert not (tmp_path / "b").exists()


def test_another_mirror_continues_what_the_first_began(server, tmp_path, waits):
    first = server.says("/a", Answer(BODY, drop=1_000_000), Answer(status=404))
    second = server.says("/b", Answer(BODY))
    get([first, second], tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.asked("/b")[0]["range"] == "bytes=1000000-"


@pytest.mark.parametrize("lie", [5000, 4_000_000])
def test_a_length_other_than_the_known_size_is_refused_before_the_body(server, tmp_path, waits, lie):
    url = server.says("/a", Answer(BODY, length=lie))
    with pytest.raises(UserError, match=f"offers a file of {lie} bytes, expected 3000000"):
        get([url], tmp_path / "a", size=len(BODY), digests={})


def test_a_body_without_length_stops_at_the_known_size(server, tmp_path, waits):
    url = server.says("/a", Answer(BODY + b"more", chunked=True))
    get([url, server.says("/b", Answer(BODY, chunked=True))], tmp_path / "a", size=len(BODY))
    assert (tmp_path / "a").read_bytes() == BODY
    assert waits == []


def test_wrong_bytes_are_deleted_and_the_next_mirror_asked(server, tmp_path, waits, capfd):
    (tmp_path / "a").write_bytes(OTHER[::-1])
    wrong, good = server.says("/a", Answer(OTHER)), server.says("/b", Answer(BODY))
    get([wrong, good], tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    said = capfd.readouterr().err
    assert hashlib.sha256(OTHER).hexdigest() in said
    assert DIGESTS["sha256"] in said
    assert f"{tmp_path / 'a'} is not the expected file: its sha256" in said


def test_the_first_digits_of_a_digest_are_enough_to_refuse(server, tmp_path, waits):
    url = server.says("/a", Answer(BODY))
    get([url], tmp_path / "a", digests={"sha256": DIGESTS["sha256"][:8], "md5": hashlib.md5(BODY).hexdigest()})
    with pytest.raises(UserError, match="expected 00000000"):
        get([url], tmp_path / "b", digests={"sha256": "00000000"})


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_lasting_refusal_is_not_asked_again(server, tmp_path, waits, status):
    url, good = server.says("/a", Answer(status=status)), server.says("/b", Answer(BODY))
    get([url, good], tmp_path / "a")
    assert len(server.asked("/a")) == 1
    assert waits == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_refusal_is_asked_again_a_few_times(server, tmp_path, waits, status):
    get([server.says("/a", Answer(status=status), Answer(status=status), Answer(BODY))], tmp_path / "a")
    assert len(server.asked("/a")) == 3
    with pytest.raises(UserError, match=f"too many {status} error responses"):
        get([server.says("/b", Answer(status=status))], tmp_path / "b")
    assert len(server.asked("/b")) == 4


def test_retry_after_is_obeyed_up_to_the_longest_wait(server, tmp_path, waits):
    busy = [Answer(status=503, headers={"Retry-After": value}) for value in ("7", "99999")]
    get([server.says("/a", *busy, Answer(BODY))], tmp_path / "a")
    assert waits == [7.0, 60.0]


def test_no_server_a_login_or_quota_page_and_an_empty_file_are_one_sentence(server, tmp_path, waits):
    with pytest.raises(UserError, match=r"^a could not be downloaded \(127\.0\.0\.1:9: Connection refused\)$"):
        get(["http://127.0.0.1:9/a"], tmp_path / "a")
    for body, what in ((PAGE, "it is a web page, usually a login form"), (b"", "its size is 0 bytes")):
        with pytest.raises(UserError, match=what):
            get([server.says("/a", Answer(body))], tmp_path / "a", digests={})
        assert os.listdir(tmp_path) == []


def test_redirects_lead_to_http_only_and_not_round_in_circles(server, tmp_path, waits):
    (tmp_path / "secret").write_text("secret")
    good = server.says("/a", Answer(status=302, headers={"Location": server.says("/b", Answer(BODY))}))
    get([good], tmp_path / "a")
    for place in ((tmp_path / "secret").as_uri(), "ftp://127.0.0.1/x", server.url("/c")):
        bad = server.says("/c", Answer(status=302, headers={"Location": place}))
        with pytest.raises(UserError, match=r"No connection adapters|Exceeded 5 redirects"):
            get([bad], tmp_path / "c", digests={})


def test_no_login_is_sent(server, tmp_path, waits, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get([server.says("/a", Answer(status=302, headers={"Location": server.says("/b", Answer(BODY))}))], tmp_path / "a")
    assert len(server.requests) == 2
    assert not any("authorization" in request.headers or "hf_secret" in str(request) for request in server.requests)


def test_a_disk_too_small_is_told_before_the_body(server, tmp_path, waits):
    url = server.says("/a", Answer(b"x", length=10**12))
    with pytest.raises(UserError, match=r"1\.0 TB of disk space are needed \(1\.0 TB for a\)"):
        get([url], tmp_path / "a", digests={})
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_is_one_sentence_and_the_rest_can_follow(server, tmp_path, waits, monkeypatch):
    url = server.says("/a", Answer(BODY, headers=TAGGED))
    with (
        monkeypatch.context() as full,
        pytest.raises(UserError, match=r"cannot write .*a\.part: No space.*; free some"),
    ):
        full.setattr(http.Meter, "add", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        get([url], tmp_path / "a")
    get([url], tmp_path / "a")
    assert "range" in server.asked("/a")[-1]
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_job_killed_before_the_renaming_asks_for_nothing_more(server, tmp_path, waits):
    (tmp_path / "a.part").write_bytes(BODY)
    get([server.says("/a", Answer(BODY))], tmp_path / "a", size=len(BODY))
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests == []


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


# ------------------------------------------------------------------------------------------------------------- hostility
class RawServer(socketserver.ThreadingTCPServer):
    """Answers every request with the same bytes, piece by piece, and then, if told so, for ever with the last of them."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *pieces: bytes, pause: float = 0.0, endless: bool = False) -> None:
        self.pieces, self.pause, self.endless, self.sent = pieces, pause, endless, 0
        super().__init__(("127.0.0.1", 0), RawAnswer)

    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/a"


class RawAnswer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(65536)
        server: RawServer = self.server
        more = itertools.repeat(server.pieces[-1]) if server.endless else ()
        with contextlib.suppress(OSError):
            for piece in itertools.chain(server.pieces, more):
                self.request.sendall(piece)
                server.sent += len(piece)
                threading.Event().wait(server.pause)


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


FOUND, BUSY, CHUNKED = "302 Found", "503 Busy", "Transfer-Encoding: chunked"
HOSTILE = {
    **{f"Content-Length {n[:20]}": [head(f"Content-Length: {n}"), b"abcde"]
       for n in ("1e9", "²", "-5", "0x10", "5.0", "", "five", "9" * 5000, "9" * 25, "5, 6", "5, 5", "+5", " ")},
    **{f"Content-Range {n[:20]}": [head(f"Content-Range: {n}", "Content-Length: 5", status="206 Part"), b"abcde"]
       for n in ("bytes 0-4/²", "bytes 0-4/" + "9" * 5000, "bytes 7-8/9", "", "x", "bytes -1-4/5")},
    **{f"Retry-After {n[:20]}": [head(f"Retry-After: {n}", "Content-Length: 0", status=BUSY)]
       for n in ("soon", "9" * 5000, "9" * 400, "-1", "²", "1.5", "Fri, 31 Dec 99999 23:59:59 GMT", "0, 0", "")},
    **{f"Location {n[:20]}": [head(f"Location: {n}", "Content-Length: 0", status=FOUND)]
       for n in ("http://[::1", "http://", "//", "http://a:99999/x", "http://a:b/", "http://ex ample/", "http://\x7f/", "http://.../",
                 "http://" + "a" * 300 + ".org/", "http://a..b/", "\xff\xfe", "http://[v1.x]/", "mailto:me", "http://%zz/", "http://127.0.0.1:0/")},
    **{f"chunk {n[:20]}": [head(CHUNKED), n.encode(), b"\r\nabc"] for n in ("zz", "-1", "f" * 30, "", "5;" + "x" * 70_000)},
    "a chunk too short": [head(CHUNKED), b"50\r\nabc"],
    "no answer": [b""],
    "no status": [b"HTTP/1.1 abc\r\n\r\n"],
    "another protocol": [b"SSH-2.0-OpenSSH_9.6\r\n"],
    "zeros": [bytes(100_000)],
    "a long header": [head("X: " + "x" * 100_000)],
    "many headers": [head(*(f"X{n}: y" for n in range(10_000)))],
    "a header without colon": [b"HTTP/1.1 200 OK\r\nnothing\r\n\r\nabc"],
    "an ETag of two lines": [head('ETag: "a', ' b"', "Content-Length: 5000"), b"abc"],
    "a huge status": [head(status="9" * 5000 + " OK")],
    "an odd encoding": [head("Content-Encoding: gzip", "Content-Length: 5"), b"abcde"],
    "a redirect to nowhere": [head(status=FOUND)],
}  # fmt: skip
ENDLESS = {
    "body": [head(), bytes(65536)],
    "chunks": [head(CHUNKED), b"10000\r\n" + bytes(65536) + b"\r\n"],
    "redirect": [head("Location: /b", status=FOUND), bytes(65536)],
    "error": [head(status=BUSY), bytes(65536)],
    "refusal": [head(status="404 Not Found"), bytes(65536)],
    "headers": [b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000],
    "continuations": [b"HTTP/1.1 100 Continue\r\n\r\n"],
}
DRIPPING = {
    "body": [head(), b"x"],
    "body of known length": [head("Content-Length: 3000000"), b"x"],
    "chunks": [head(CHUNKED), b"1\r\nx\r\n"],
    "headers": [b"HTTP/1.1 200 OK\r\nX: ", b"x"],
    "status": [b"H", b"T"],
    "redirect": [head("Location: /b", status=FOUND), b"x"],
    "error": [head(status=BUSY), b"x"],
    "continuations": [b"HTTP/1.1 100 Continue\r\n\r\n"],
}
CASES = [(f"hostile {name}", pieces, {}) for name, pieces in HOSTILE.items()]
CASES += [(f"endless {name}", pieces, {"endless": True}) for name, pieces in ENDLESS.items()]
CASES += [(f"dripping {name}", pieces, {"endless": True, "pause": 0.02}) for name, pieces in DRIPPING.items()]


@pytest.mark.parametrize(("pieces", "options"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_whatever_a_mirror_does_the_next_one_is_asked(server, tmp_path, waits, monkeypatch, pieces, options):
    monkeypatch.setattr(http, "STALL", 0.3)
    monkeypatch.setattr(http, "LARGEST", 5_000_000)
    monkeypatch.setattr(http, "ATTEMPTS", 2)
    good = server.says("/b", Answer(BODY))
    with RawServer(*pieces, **options) as bad:
        threading.Thread(target=bad.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with impatient():
            get([bad.url(), good], tmp_path / "a")
        bad.shutdown()
    assert (tmp_path / "a").read_bytes() == BODY
    assert os.listdir(tmp_path) == ["a"]
    assert all(0 <= pause <= http.PAUSE for pause in waits)
    assert bad.sent < 100_000_000


def test_an_endless_body_fills_the_disk_only_up_to_the_limit(server, tmp_path, waits, monkeypatch):
    monkeypatch.setattr(http, "LARGEST", 1_000_000)
    with RawServer(head(), bytes(65536), endless=True) as bad:
        threading.Thread(target=bad.serve_forever, daemon=True).start()
        with impatient(), pytest.raises(UserError, match="it sends more than the expected 1000000 bytes"):
            get([bad.url()], tmp_path / "a", digests={})
        bad.shutdown()
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------ archives
def zip_bytes(content: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in content.items():
            file.writestr(name, data)
    return buffer.getvalue()


def make_zip(path: Path, content: dict) -> Path:
    path.write_bytes(zip_bytes(content))
    return path


def unpack(archive: Path, out: Path, pattern: str = "(.+)", path: str = r"\1") -> None:
    chosen = choose(archive, re.compile(pattern), path, "files expected")
    with staged(out, "test", sorted({name.split("/")[0] for name in chosen.values()})) as stage:
        extract(archive, stage, chosen)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def real_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if not name.startswith(".fetched")}


def nothing_in(folder: Path) -> bool:
    return not folder.exists() or not os.listdir(folder)


CONTENT = {"top/a.txt": b"one", "top/deep/b.txt": BODY, "./c.txt": b""}
UNPACKED = {"top/a.txt": b"one", "top/deep/b.txt": BODY, "c.txt": b""}


def test_an_archive_is_unpacked_as_it_was_packed(tmp_path):
    (tmp_path / "out" / ".test.new" / "left by a kill").mkdir(parents=True)
    unpack(make_zip(tmp_path / "a.zip", CONTENT), tmp_path / "out", r"(?:\./)?(.+)")
    assert real_files(tmp_path / "out") == UNPACKED
    assert sorted(os.listdir(tmp_path / "out")) == [".fetched", "c.txt", "top"]


def test_members_can_be_renamed_and_left_out_and_join_what_is_there(tmp_path):
    archive = make_zip(tmp_path / "a.zip", CONTENT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    unpack(archive, tmp_path / "out", "top/a.txt", "other/new.txt")
    assert real_files(tmp_path / "out") == {"old": b"old", "other/new.txt": b"one"}
    with pytest.raises(UserError, match=r"a\.zip holds no files expected; found c\.txt, top/a\.txt, top/deep"):
        unpack(archive, tmp_path / "out", "absent")


@pytest.mark.parametrize(
    ("own", "refused"),
    [
        ({"a": b"mine"}, True),
        ({"deep/b": b"mine"}, True),
        ({"other": b"mine"}, False),
        ({"a": b"old", ".fetched/toy/manifest.json": b"{}"}, False),
        ({"a": b"old", ".fetched/.test.begun": b""}, False),  # a kill before the receipt was written
    ],
)
def test_only_what_was_fetched_is_replaced(tmp_path, own, refused):
    archive, out = make_zip(tmp_path / "a.zip", {"a": b"new", "deep/b": b"new"}), tmp_path / "out"
    for name, content in own.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    if refused:
        with pytest.raises(UserError, match=r"was not fetched by vpd, .*source: folder"):
            unpack(archive, out)
        assert tree(out) == own
    else:
        unpack(archive, out)
        assert (out / "a").read_bytes() == (out / "deep/b").read_bytes() == b"new"
        assert tree(out).items() >= {name: content for name, content in own.items() if name != "a"}.items()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "C:\\evil", "..\\evil"])
def test_names_that_lead_outside_are_refused(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", {"fine": b"x", name: b"x"})
    with pytest.raises(UserError, match=r"a\.zip: the member .*evil' could write outside the tree"):
        unpack(archive, tmp_path / "out")
    assert nothing_in(tmp_path / "out")


def test_links_and_passwords_in_a_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("evil")
    link.external_attr = 0o120777 << 16
    make_zip(tmp_path / "a.zip", {link: "/etc/passwd"})
    data = bytearray(make_zip(tmp_path / "b.zip", {"evil": b"x"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(data)
    for name in ("a.zip", "b.zip"):
        with pytest.raises(UserError, match=f"{name}: 'evil' is a link, a device or encrypted"):
            unpack(tmp_path / name, tmp_path / "out")


def test_bombs_are_refused_before_a_byte_is_written(tmp_path):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(150_000_000))
    with pytest.raises(UserError, match=r"would unpack to 150\.0 MB, like a decompression bomb"):
        unpack(archive, tmp_path / "out")
    assert nothing_in(tmp_path / "out")


@pytest.mark.parametrize("damage", [0.1, 0.6, 0.95, "flipped bit", "no archive"])
def test_damaged_archives_are_told(tmp_path, damage):
    data = bytearray(zip_bytes({"a": BODY[:400_000], "b": BODY}))
    if damage == "flipped bit":
        data[1000] ^= 1
    cut = data[: int(len(data) * damage)] if isinstance(damage, float) else data
    (tmp_path / "a.zip").write_bytes(b"hello" if damage == "no archive" else cut)
    with pytest.raises(UserError, match=r"a\.zip is truncated or no intact zip" + ".*CRC" * (damage == "flipped bit")):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert nothing_in(tmp_path / "out")


# --------------------------------------------------------------------------------------------------------------- fetch
ZIP = zip_bytes({zipfile.ZipInfo(name): data for name, data in UNPACKED.items()})


class World:
    """A catalogue with one entry ``toy`` and the folders around it."""

    def __init__(self, folder: Path, urls: list[str], **entry) -> None:
        self.out, self.archives, self.sources = folder / "out", folder / "archives", folder / "sources.yaml"
        file = {"name": "toy.zip", "urls": urls, "size": len(ZIP), "digests": {"md5": hashlib.md5(ZIP).hexdigest()}}
        toy = {
            "title": "a toy",
            "licence": "toy",
            "prepare": "keep",
            "prepared": 3_000_000,
            "files": {"archive": file},
        }
        licence = {"name": "Toy licence 2", "terms": "Play  fair.", "text": "https://example.org/toy"}
        self.write({"licences": {"toy": licence}, "entries": {"toy": toy | entry}})

    def write(self, catalogue: dict) -> None:
        self.catalogue = catalogue
        self.sources.write_text(yaml.safe_dump(catalogue))

    def fetch(self, name: str = "toy", **options) -> None:
        fetch(name, self.out, self.archives, sources=self.sources, **{"accept": True} | options)

    def command(self, *more: str) -> list[str]:
        code = (
            "import sys; from pathlib import Path; from vpd.download import fetch; from vpd.utils.errors import UserError\n"
            "out, archives, sources = map(Path, sys.argv[1:4])\n"
            "try: fetch('toy', out, archives, sources=sources, accept='accept' in sys.argv)\n"
            "except UserError as error: print(error); sys.exit(2)"
        )
        return [sys.executable, "-c", code, str(self.out), str(self.archives), str(self.sources), *more]

    @property
    def receipt(self) -> dict:
        return json.loads((self.out / ".fetched" / "toy" / "manifest.json").read_text())


def test_an_entry_is_fetched_once_and_its_receipt_tells_how(server, tmp_path, waits):
    world = World(tmp_path, [server.says("/none", Answer(status=404)), server.says("/toy", Answer(ZIP))])
    world.fetch()
    assert real_files(world.out) == {"toy.zip": ZIP}
    receipt = world.receipt
    assert receipt["licence"] == "toy"
    used = {"origin": server.url("/toy"), "sha256": hashlib.sha256(ZIP).hexdigest()}
    assert receipt["archives"] == {"archive": used}
    asked = len(server.requests)
    (world.archives / "toy.zip").unlink()
    world.fetch(accept=False)
    assert len(server.requests) == asked


def test_what_was_deleted_is_fetched_again(server, tmp_path):
    world = World(tmp_path, [server.says("/toy", Answer(ZIP))])
    world.fetch()
    (world.out / "toy.zip").unlink()
    world.fetch(accept=False)
    assert real_files(world.out) == {"toy.zip": ZIP}
    assert len(server.requests) == 1, "the archive is still there"


def test_an_entry_that_the_catalogue_lacks_is_told_before_anything_is_shared_out(tmp_path):
    world = World(tmp_path, ["http://127.0.0.1:9/"])
    with pytest.raises(UserError, match="unknown download 'toi'; did you mean 'toy'"):
        shared_out(["toy", "toi"], [], world.sources)


def test_a_changed_entry_is_made_again_from_the_same_archive(server, tmp_path):
    world = World(tmp_path, [server.says("/toy", Answer(ZIP))])
    world.fetch()
    (world.out / "toy.zip").unlink()
    world.catalogue["entries"]["toy"]["files"]["archive"]["digests"] = {}
    world.write(world.catalogue)
    world.fetch()
    assert real_files(world.out) == {"toy.zip": ZIP}
    assert world.receipt["archives"]["archive"]["origin"] == "already in the archives folder"
    assert len(server.requests) == 1


def test_a_correction_of_a_preparation_makes_its_tree_anew(server, tmp_path, monkeypatch):
    urls = {role: [server.says(f"/{role}", Answer(BODY))] for role in ("labeled", "splits")}
    files = {role: {"name": f"{role}.bin", "urls": url} for role, url in urls.items()}
    world, made = World(tmp_path, [], prepare="nyuv2-labeled", files=files), []
    monkeypatch.setattr(nyuv2, "prepare_labeled", lambda files, out: made.append(sorted(files)) or [])
    world.fetch()
    code = Mock(side_effect=lambda settings, code: fingerprint([settings, code, "corrected"], code))
    monkeypatch.setattr(download, "fingerprint", code)
    world.fetch()
    world.fetch()
    assert made == [["labeled", "splits"]] * 2
    assert {call.args[1] for call in code.call_args_list} == {("download/nyuv2",)}
    assert len(server.requests) == 2  # the archives are there and are not downloaded again


def test_a_missing_role_is_told(tmp_path):
    world = World(tmp_path, ["http://127.0.0.1:9/"], prepare="nyuv2-sync")
    with pytest.raises(UserError, match=r"prepare: 'nyuv2-sync' needs a file with the role 'list'; .*known: archive"):
        world.fetch()


def test_an_unknown_name_or_kind_is_told_with_the_nearest(server, tmp_path):
    world = World(tmp_path, ["http://127.0.0.1:9/"])
    with pytest.raises(UserError, match="unknown download 'toi'; did you mean 'toy'"):
        world.fetch("toi")
    world = World(tmp_path, ["http://127.0.0.1:9/"], prepare="kepe")
    with pytest.raises(UserError, match="unknown kind of preparation 'kepe'; did you mean 'keep'"):
        world.fetch()
    with pytest.raises(UserError, match="did you mean 'ade20k'"):
        fetch("ade20", tmp_path / "out", tmp_path / "archives")


def test_terms_are_shown_and_once_accepted_not_asked_for_again(server, tmp_path, waits):
    world = World(tmp_path, [server.says("/toy", Answer(status=404), Answer(ZIP))])
    assert "Toy licence 2, not accepted yet" in listing(world.sources, world.archives)
    with pytest.raises(
        UserError, match=r"Toy licence 2 \(Play fair\. Text: .*toy\); .* vpd fetch toy --accept-licence$"
    ):
        world.fetch(accept=False)
    assert server.requests == []
    with pytest.raises(UserError, match="404"):
        world.fetch(accept=True)
    record = json.loads((world.archives / "licences.json").read_text())
    assert record["toy"]["name"] == "Toy licence 2"
    assert time.strptime(record["toy"]["accepted"], "%Y-%m-%d")
    assert f"Toy licence 2, accepted {record['toy']['accepted']}" in listing(world.sources, world.archives)
    world.fetch(accept=False)
    assert real_files(world.out) == {"toy.zip": ZIP}


def test_the_disk_is_checked_for_archive_and_tree_together(server, tmp_path):
    world = World(tmp_path, [server.says("/toy", Answer(ZIP))], prepare="ade20k", prepared=10**18)
    with pytest.raises(UserError, match=r"3\.0 MB for downloading toy\.zip, 1000000\.0 TB for preparing toy"):
        world.fetch()
    assert server.requests == []


def test_a_file_the_user_has_is_taken(server, tmp_path):
    world, mine = World(tmp_path, [server.says("/toy", Answer(status=404))]), tmp_path / "toy.zip"
    mine.write_bytes(ZIP)
    world.fetch(given=[mine])
    assert real_files(world.out) == {"toy.zip": ZIP}
    assert world.receipt["archives"]["archive"]["origin"] == "given"
    assert (world.archives / "toy.zip").samefile(mine)
    assert server.requests == []


def test_files_of_several_entries_go_to_their_own(tmp_path):
    world = World(tmp_path, ["http://localhost/toy.zip"])
    toy = world.catalogue["entries"]["toy"]
    files = toy["files"]["archive"] | {"name": "ball.zip", "aliases": ["ball-1.zip"]}
    world.write(world.catalogue | {"entries": {"toy": toy, "ball": toy | {"files": {"archive": files}}}})
    given = [Path("x/toy.zip"), Path("ball-1.zip"), Path("holiday.zip")]
    assert shared_out(["toy", "ball"], given, world.sources) == {"toy": [given[0], given[2]], "ball": [given[1]]}


def test_a_wrong_file_of_the_user_is_told_and_left_alone(server, tmp_path):
    world = World(tmp_path, [server.says("/toy", Answer(ZIP))])
    wrong = tmp_path / "toy.zip"
    wrong.write_bytes(ZIP[:-1] + b"!")
    with pytest.raises(UserError, match=f"{wrong} is not toy.zip: its md5 is .*, expected"):
        world.fetch(given=[wrong])
    wrong.write_bytes(ZIP[:-5])
    with pytest.raises(UserError, match=f"its size is {len(ZIP) - 5} bytes, expected {len(ZIP)}"):
        world.fetch(given=[wrong])
    unknown = tmp_path / "holiday.zip"
    unknown.write_bytes(b"sun")
    with pytest.raises(UserError, match=r"holiday\.zip is no file of toy, which needs toy\.zip; rename it"):
        world.fetch(given=[unknown])
    with pytest.raises(UserError, match=r"absent\.zip does not exist"):
        world.fetch(given=[tmp_path / "absent.zip"])
    assert server.requests == []
    assert unknown.read_bytes() == b"sun"


def test_an_entry_without_mirrors_says_what_to_get_and_how_to_give_it(tmp_path):
    file = {"name": "toy.zip", "aliases": ["sync.zip"]}
    world = World(tmp_path, [], files={"archive": file}, by_hand="log in to example.org and get sync.zip")
    with pytest.raises(UserError) as error:
        world.fetch()
    assert str(error.value) == (
        "toy.zip could not be downloaded (no mirror is known); log in to example.org and get sync.zip, "
        "then run: vpd fetch toy --from-archive FOLDER/sync.zip"
    )
    (tmp_path / "sync.zip").write_bytes(PAGE)
    with pytest.raises(UserError, match="it is a web page"):
        world.fetch(given=[tmp_path / "sync.zip"])
    (tmp_path / "sync.zip").write_bytes(ZIP)
    world.fetch(given=[tmp_path / "sync.zip"])
    assert real_files(world.out) == {"toy.zip": ZIP}


def test_a_link_left_by_a_killed_job_does_not_harm_the_users_file(server, tmp_path):
    world = World(tmp_path, ["http://127.0.0.1:9/"])
    mine = tmp_path / "toy.zip"
    mine.write_bytes(ZIP)
    world.archives.mkdir()
    os.link(mine, world.archives / ".toy.partial.zip")
    world.fetch(given=[mine])
    assert mine.read_bytes() == ZIP


def test_two_jobs_fetch_once(server, tmp_path):
    hold = threading.Event()
    world = World(tmp_path, [server.says("/toy", Answer(ZIP, drop=1_000_000, hold=hold, headers=TAGGED), Answer(ZIP))])
    first = subprocess.Popen(world.command("accept"))
    assert server.started.wait(60)
    second = subprocess.Popen(world.command("accept"), stderr=subprocess.PIPE, text=True)
    assert "toy: waiting for another process" in second.stderr.readline()
    hold.set()
    assert first.wait() == 0
    assert second.wait() == 0
    second.stderr.close()
    assert real_files(world.out) == {"toy.zip": ZIP}
    assert len(server.requests) == 2  # both of the first job, whose connection was dropped


def test_a_killed_fetch_is_finished_by_the_next(server, tmp_path):
    hold = threading.Event()
    slow = Answer(ZIP, drop=2_000_000, hold=hold, headers=TAGGED)
    world = World(tmp_path, [server.says("/toy", slow, Answer(ZIP, headers=TAGGED))])
    job = subprocess.Popen(world.command("accept"))
    wait_for(lambda: size_of(world.archives / "toy.zip.part") == 2_000_000)
    job.kill()
    job.wait()
    hold.set()
    assert not world.out.exists()
    assert subprocess.run(world.command(), check=False).returncode == 0
    assert server.asked("/toy")[-1]["range"] == "bytes=2000000-"
    assert real_files(world.out) == {"toy.zip": ZIP}
    with locked(world.archives / ".locks" / "toy", wait=0):
        assert sorted(os.listdir(world.archives)) == [".locks", "licences.json", "toy.zip"]


# ------------------------------------------------------------------------------------------------------------- sources
NAMES = ["ade20k", "nyuv2-labeled", "nyuv2-sync", "coco", "refcoco", "refcoco+", "refcocog"]
WEIGHTS = ["vpd-seg", "vpd-refcoco", "vpd-refcoco+", "vpd-refcocog", "vpd-depth", "dpt-nyu"]


def test_every_shipped_entry_has_terms_and_a_way_to_get_it():
    from vpd.download import _preparation

    catalogue = load_sources()
    assert list(catalogue.entries) == NAMES + WEIGHTS
    for name, entry in catalogue.entries.items():
        assert catalogue.licences[entry.licence].terms
        assert entry.by_hand, name
        assert all(file.urls for file in entry.files.values()), name
        assert callable(_preparation(entry.prepare, entry.files, name).run)
    files = [file.name for entry in catalogue.entries.values() for file in entry.files.values()]
    assert len(files) == len(set(files))


def test_the_listing_names_everything(tmp_path):
    lines = listing(None, tmp_path).splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == NAMES + WEIGHTS
    assert "13.5 GB" in lines[1 + NAMES.index("coco")]


def test_shipped_digests_are_whole_but_for_the_one_known_by_its_first_digits():
    digests = {file.name: file.digests for entry in load_sources().entries.values() for file in entry.files.values()}
    lengths = {"md5": 32, "sha1": 40, "sha256": 64}
    short = [name for name, known in digests.items() for kind, value in known.items() if len(value) < lengths[kind]]
    assert short == ["nyuv2_train_list.txt"]
    without = {name for name, known in digests.items() if not known}
    assert without == {"nyu_depth_v2.zip"} | {load_sources().entries[name].files["weights"].name for name in WEIGHTS}


def archive_of(**more) -> dict:
    return {"files": {"archive": {"name": "a", "urls": ["http://x/a"]} | more}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"licens": "toy"}, "entries.toy.licens is not a known key; did you mean 'licence'"),
        ({"licence": "none"}, "entries.toy.licence 'none' is none of toy"),
        (archive_of(name="../a"), "files.archive.name: string should match pattern"),
        (archive_of(urls=[]), "needs urls for every file, or by_hand"),
        (archive_of(urls=["ftp://x/a"]), "files.archive.urls.0: string should match pattern .* found 'ftp://x/a'"),
        (archive_of(digests={"crc": "0" * 8}), "should be 'md5', 'sha1' or 'sha256'"),
    ],
)
def test_mistakes_in_a_catalogue_are_told_with_their_place(tmp_path, change, match):
    world = World(tmp_path, ["http://x/a"], **change)
    with pytest.raises(UserError, match=match):
        load_sources(world.sources)
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        load_sources(tmp_path / "none.yaml")


@pytest.mark.parametrize("options", [["--accept-licence"], ["--from-archive", "x.zip"], ["--out", "x"]])
def test_options_without_a_name_are_refused(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", *options]) == 2
    assert "fetch needs a name for what is downloaded" in capsys.readouterr().err


def test_fetching_loads_no_heavy_package():
    code = "import sys, vpd.download; print({'torch', 'numpy', 'PIL', 'h5py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
