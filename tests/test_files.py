"""Outputs are complete or absent, and one process at a time works in a folder."""

import json
import os
import subprocess
import sys
import time

import pytest

from vpd.errors import UserError, nearest, pick
from vpd.files import atomic_folder, atomic_path, locked, read_json, sha256, write_json


def test_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "x").write_text("half")
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == []


def test_folder_replaces_the_old_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").write_text("")
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "fresh").write_text("")
    assert os.listdir(tmp_path / "out") == ["fresh"]


def test_full_disk_is_one_sentence(tmp_path):
    code = (
        "import resource, sys; from vpd.files import write_text; from vpd.errors import UserError\n"
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
    code = "import sys, time; from vpd.files import locked\nwith locked(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"in\n"
    with pytest.raises(UserError, match="another process is already working in"), locked(tmp_path, wait=0.2):
        pass
    holder.kill()
    holder.wait()
    started = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - started < 10


def test_nearest_names_the_likely_one():
    assert nearest("sd-1-6", ["sd-1-5", "swin"]).startswith("did you mean 'sd-1-5'?")
    with pytest.raises(UserError, match=r"a\.yaml: unknown task 'dept'; did you mean 'depth'"):
        pick("dept", {"depth": 1, "referring": 2}, "task", "a.yaml")
