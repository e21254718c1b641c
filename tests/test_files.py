"""Outputs are complete or absent, and one process at a time works in a folder."""

import json
import os
import subprocess
import sys
import time

import pytest

from vpd.utils.digests import sha256, tree
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import atomic_folder, atomic_path, exclusive, files_in, locked, read_json, write_json

MAKER = """
import sys, time
from pathlib import Path
from vpd.utils.files import atomic_folder, exclusive
out = Path(sys.argv[1])
with exclusive(out):
    if (out / "maker").is_file():
        print("found", flush=True)
    else:
        with atomic_folder(out) as folder:
            (folder / "maker").write_text(sys.argv[2])
            print("begun", flush=True)
            sys.stdin.readline()
        print("made", flush=True)
"""


def maker(out, name):
    code = [sys.executable, "-c", MAKER, str(out), name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(code, text=True, **pipes)


def test_a_failure_leaves_the_old_file_and_the_old_folder(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "x").write_text("half")
        1 / 0  # noqa: B018
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_folder_replaces_the_old_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").write_text("")
    (tmp_path / "out" / "fingerprint.json").write_text("{}")
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "fresh").write_text("")
    assert os.listdir(tmp_path / "out") == ["fresh"]


@pytest.mark.parametrize(
    ("names", "own"),
    [
        ([], True),
        ([".DS_Store", "Thumbs.db"], True),
        (["manifest.json", "a"], True),
        (["fingerprint.json", "a"], True),
        (["a"], False),
        (["photos/a"], False),
        (["empty/"], False),
        (["manifest.json-old", "a"], False),
        (["deep/manifest.json"], False),
    ],
)
def test_only_an_empty_folder_or_one_of_this_project_is_replaced(tmp_path, names, own):
    for path in (tmp_path / "out" / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"schema": 1}') if path.suffix else path.mkdir() if path.name == "empty" else path.write_text(
            "mine"
        )
    (tmp_path / "out").mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    if not own:
        with pytest.raises(UserError, match="out holds files that vpd did not make"), atomic_folder(tmp_path / "out"):
            raise AssertionError
        assert sorted(tmp_path.rglob("*")) == before
        return
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "new").write_text("")
    assert os.listdir(tmp_path / "out") == ["new"]


def test_a_manifest_of_another_program_a_file_and_where_a_link_leads_are_not_ours(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "my app"}')
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for path in ("out", "link", "out/manifest.json"):
        with pytest.raises(UserError, match="did not make"), atomic_folder(tmp_path / path):
            raise AssertionError
    (tmp_path / "out" / "manifest.json").unlink()
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "new").write_text("")
    assert os.listdir(tmp_path / "out") == ["new"]
    assert (tmp_path / "link").is_symlink()


def test_files_that_file_managers_add_are_not_listed(tmp_path):
    names = ["a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "deep/b.jpg", "deep/._b.jpg", ".hidden"]
    for path in (tmp_path / name for name in names):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert tree(tmp_path) == ["a.jpg", "deep/b.jpg"]
    assert files_in(tmp_path, "*.jpg") == [tmp_path / "a.jpg"]


def test_full_disk_is_one_sentence(tmp_path):
    code = (
        "import resource, sys; from vpd.utils.files import write_text; from vpd.utils.errors import UserError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_text(sys.argv[1], 'x' * 5000)\n"
        "except UserError as error: print(error)"
    )
    target = tmp_path / "big.txt"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {target}: File too large")
    assert os.listdir(tmp_path) == []


def test_json_refuses_nan_and_reports_damage(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    (tmp_path / "b.json").write_text('{"x": 1')
    with pytest.raises(UserError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "c.json")
    write_json(tmp_path / "d.json", {"x": 0.1})
    assert json.loads((tmp_path / "d.json").read_text()) == {"x": 0.1}


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_text("abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_second_process_is_told_about_the_lock_and_a_killed_one_frees_it(tmp_path):
    code = (
        "import sys, time; from vpd.utils.files import locked\n"
        "with locked(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"in\n"
    with pytest.raises(UserError, match="another process is already working in"), locked(tmp_path, wait=0.2):
        pass
    holder.kill()
    holder.wait()
    started = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - started < 10


def test_one_makes_and_the_others_wait_and_find_it(tmp_path):
    out = tmp_path / "shared" / "out"
    first = maker(out, "first")
    assert first.stdout.readline() == "begun\n"
    others = [maker(out, "other") for _ in range(3)]
    for other in others:
        assert other.stderr.readline() == f"{out}: waiting for another process that is making it\n"
    assert not out.exists()
    assert first.communicate("go\n")[0] == "made\n"
    assert [other.communicate()[0] for other in others] == ["found\n"] * 3
    assert (out / "maker").read_text() == "first"


def test_after_a_killed_maker_the_next_makes_it(tmp_path):
    first = maker(tmp_path / "out", "first")
    assert first.stdout.readline() == "begun\n"
    second = maker(tmp_path / "out", "second")
    assert "waiting for another process" in second.stderr.readline()
    first.kill()
    first.wait()
    assert second.communicate("go\n")[0] == "begun\nmade\n"
    assert (tmp_path / "out" / "maker").read_text() == "second"
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "out"]


@pytest.mark.parametrize(("before", "kept"), [("same", True), ("other", False)])
def test_a_folder_made_again_alike_stays_under_its_readers(tmp_path, before, kept):
    old = tmp_path / "out" / "deep"
    old.mkdir(parents=True)
    (old / "file").write_text(before)
    (tmp_path / "out" / "fingerprint.json").write_text("{}")
    os.utime(old / "file", (1, 1))
    inode = old.stat().st_ino
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "fingerprint.json").write_text("{}")
        (temporary / "deep" / "file").write_text("same")
    assert (old.stat().st_ino == inode) == kept
    assert (old / "file").read_text() == "same"
    assert (old / "file").stat().st_mtime > 1
    assert os.listdir(tmp_path) == ["out"]


def test_who_may_not_write_beside_a_folder_does_not_wait_for_it(tmp_path):
    """As root everything may be written; so the folder beside is one in which nobody may."""
    with exclusive("/proc/self/made"):
        pass
    (tmp_path / ".out.lock").mkdir()
    with pytest.raises(UserError, match=r"cannot lock .*out: .*is not a file"), exclusive(tmp_path / "out"):
        pass


def test_a_lock_may_be_taken_by_whoever_may_write_beside(tmp_path):
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o770)
    with exclusive(tmp_path / "group" / "out"):
        assert (tmp_path / "group" / ".out.lock").stat().st_mode & 0o777 == 0o660


def test_nearest_names_the_likely_one():
    assert nearest("sd-1-6", ["sd-1-5", "swin"]).startswith("did you mean 'sd-1-5'?")
    with pytest.raises(UserError, match=r"a\.yaml: unknown task 'dept'; did you mean 'depth'"):
        pick("dept", {"depth": 1, "referring": 2}, "task", "a.yaml")
