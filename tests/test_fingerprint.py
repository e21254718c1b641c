"""A stage has nothing to do exactly when settings, code, inputs and the bytes of its output are as they were."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vpd.utils import digests as remembered
from vpd.utils import fingerprint as module
from vpd.utils.digests import changed, digests, sha256
from vpd.utils.errors import UserError
from vpd.utils.fingerprint import (
    Fingerprint,
    code_digest,
    fingerprint,
    is_finished,
    meaning,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """An input, and an output folder made from it."""
    monkeypatch.chdir(tmp_path)
    source, out = tmp_path / "source", tmp_path / "out"
    for folder, text in ((source, "input"), (out, "output")):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "file.txt").write_text(text)
    write_manifest(source, Fingerprint("s", "c"), {})
    made_from = fingerprint({"lr": 0.1}, ["utils/errors"], {"data": source})
    write_manifest(out, made_from, {"steps": 3})
    return source, out, made_from


def test_a_finished_output_is_recognised_and_lists_its_files(finished):
    _, out, made_from = finished
    assert is_finished(out, made_from)
    assert read_manifest(out) == {"schema": 1, "steps": 3, "files": {"deep/file.txt": sha256(out / "deep/file.txt")}}


@pytest.mark.parametrize(
    ("change", "named"),
    [({"settings": "x"}, ["settings"]), ({"code": "x"}, ["code"]), ({"inputs": {"data": "x"}}, ["data"])],
)
def test_each_part_counts_and_is_named(finished, change, named):
    _, out, made_from = finished
    other = replace(made_from, **change)
    assert not is_finished(out, other)
    assert other.key != made_from.key
    assert other.differences(json.loads((out / "fingerprint.json").read_text())) == named


def _same_size_and_time(path, in_place):
    """Other bytes of the same length under the old modification time: only the inode, or the time of its change, tells."""
    stat = path.stat()
    other = path if in_place else path.with_name("other")
    other.write_text("OUTPUT")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, path)


DAMAGE = {
    "changed bytes": lambda out: (out / "deep/file.txt").write_text("else"),
    "same size": lambda out: (out / "deep/file.txt").write_text("OUTPUT"),
    "same size and time": lambda out: _same_size_and_time(out / "deep/file.txt", in_place=False),
    "same size, time and inode": lambda out: _same_size_and_time(out / "deep/file.txt", in_place=True),
    "missing file": lambda out: (out / "deep/file.txt").unlink(),
    "missing manifest": lambda out: (out / "manifest.json").unlink(),
    "damaged manifest": lambda out: (out / "manifest.json").write_text("{"),
    "manifest of a list": lambda out: (out / "manifest.json").write_text("[]"),
    "manifest without files": lambda out: (out / "manifest.json").write_text('{"schema": 1}'),
    "another schema": lambda out: (out / "manifest.json").write_text('{"schema": 2, "files": {}}'),
    "missing fingerprint": lambda out: (out / "fingerprint.json").unlink(),
    "damaged fingerprint": lambda out: (out / "fingerprint.json").write_text("nothing"),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_no_damage_passes_for_finished_work(finished, fault, monkeypatch):
    _, out, made_from = finished
    monkeypatch.setattr(remembered, "SETTLED", -1)  # so that its digest is remembered at once
    assert is_finished(out, made_from)
    DAMAGE[fault](out)
    assert not is_finished(out, made_from)


def test_the_same_bytes_made_again_leave_the_manifest_as_it_was(finished):
    source, out, made_from = finished
    before = (out / "manifest.json").read_bytes()
    write_manifest(out, replace(made_from, code="other"), {"steps": 3})
    assert (out / "manifest.json").read_bytes() == before
    write_manifest(source, Fingerprint("s", "other code"), {})
    assert fingerprint({"lr": 0.1}, ["utils/errors"], {"data": source}) == made_from


def test_a_missing_input_and_another_schema_are_said(finished):
    source, out, _ = finished
    (source / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json does not exist; run the stage"):
        fingerprint({}, [], {"data": source})
    (out / "manifest.json").write_text('{"schema": 7, "files": {}}')
    with pytest.raises(UserError, match="has schema 7, this version of vpd reads 1"):
        read_manifest(out)


def test_files_that_did_not_change_are_not_read_again(finished, monkeypatch):
    _, out, _ = finished
    path = out / "deep/file.txt"
    monkeypatch.setattr(remembered, "SETTLED", -1)
    digests(out, ["deep/file.txt"])
    assert not Path(".vpd").exists()  # nothing is left in a folder that is no project
    Path(".vpd").mkdir()
    expected = digests(out, ["deep/file.txt"])
    read = []
    monkeypatch.setattr(remembered, "sha256", lambda path: read.append(path) or "digest")
    assert digests(out, ["deep/file.txt", "absent"]) == expected
    assert read == []
    path.touch()
    assert changed(out, expected) == ["deep/file.txt"]
    assert read == [path]


def test_a_file_changed_a_moment_ago_is_read_every_time(finished, monkeypatch):
    _, out, _ = finished
    (out / "deep/file.txt").touch()
    digests(out, ["deep/file.txt"])
    read = []
    monkeypatch.setattr(remembered, "sha256", lambda path: read.append(path) or "digest")
    digests(out, ["deep/file.txt"])
    assert len(read) == 1


FUNCTION = 'def f(x):\n    """Double."""\n    return 2 * x  # twice\n'


@pytest.mark.parametrize(
    "same",
    [
        "def f(x):\n    return 2 * x\n",
        'def f(x):\n    """Another text."""\n\n    # why\n    return (\n        2 * x\n    )\n',
        '"""A module docstring."""\n\n\ndef f(x):\n    return 2 * x\n',
    ],
)
def test_comments_docstrings_and_layout_mean_nothing(same):
    assert meaning(FUNCTION) == meaning(same)


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return 3 * x\n",
        "def g(x):\n    return 2 * x\n",
        "def f(x, y=0):\n    return 2 * x\n",
        "def f(x):\n    return 2 * x\n\n\nf(1)\n",
    ],
)
def test_anything_else_does(other):
    assert meaning(FUNCTION) != meaning(other)


def test_a_function_of_only_a_docstring_is_an_empty_one():
    assert meaning('def f():\n    """Nothing."""\n') == meaning("def f():\n    pass\n")


def test_packages_have_digests_of_their_own():
    digests = {code_digest("datasets"), code_digest("models"), code_digest("datasets", "models")}
    assert len(digests) == 3
    assert all(len(digest) == 16 for digest in digests)


def test_code_is_parsed_again_only_after_an_edit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".vpd").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    parsed, path = [], tmp_path / "room.py"
    monkeypatch.setattr(module, "meaning", lambda source: parsed.append(source) or source)
    for source, settled in (("a = 1", -1), ("a = 2", -1), ("b = 2", 2.0), ("c = 2", 2.0)):
        path.write_text(source)
        monkeypatch.setattr(remembered, "SETTLED", settled)
        one, other = (code_digest.__wrapped__("room") for _ in range(2))
        assert one == other
    # One that was just edited is not remembered.
    assert " ".join(parsed) == "a = 1 a = 2 b = 2 b = 2 c = 2 c = 2"
