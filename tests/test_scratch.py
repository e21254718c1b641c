"""Data copied to a machine's own disk: the same samples, copied once, whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vpd.config.params import load_params
from vpd.datasets import build_dataset
from vpd.datasets.manifest import located
from vpd.stages.data import prepare_dataset
from vpd.stages.scratch import VARIABLE, staged
from vpd.utils.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A dataset that lies where it was prepared."""
    data = tmp_path_factory.mktemp("drawn") / "data" / "nyuv2"
    prepare_dataset("nyuv2", load_params(ROOT / "params.yaml", "smoke").dataset("nyuv2"), data, data.parent)
    return data


@pytest.fixture(scope="module")
def elsewhere(drawn, tmp_path_factory) -> Path:
    """The same files as a dataset of the user's, which lie two folders away from what was prepared."""
    home = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(
        drawn,
        home / "downloads" / "nyuv2",
        ignore=shutil.ignore_patterns("manifest.json", "fingerprint.json", "preview.png"),
    )
    spec = load_params(ROOT / "params.yaml", "smoke").dataset("nyuv2")
    spec = spec.model_copy(update={"source": "folder", "images": {}, "path": str(home / "downloads" / "nyuv2")})
    prepare_dataset("nyuv2", spec, home / "data" / "nyuv2", home)
    return home / "data" / "nyuv2"


@pytest.fixture(params=["drawn", "elsewhere"])
def data(request) -> Path:
    return request.getfixturevalue(request.param)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_the_variable_nothing_is_copied(data):
    assert staged(data, {}) == data


def test_the_copy_has_the_manifest_and_every_file_of_the_dataset(data, tmp_path):
    copy = staged(data, {VARIABLE: str(tmp_path)})
    assert (copy / "manifest.json").read_bytes() == (data / "manifest.json").read_bytes()
    checksums = json.loads((data / "manifest.json").read_text())["files"]
    assert checksums
    found = listing(located(copy))
    assert {name: found[name] for name in checksums} == {name: listing(located(data))[name] for name in checksums}
    assert tmp_path in located(copy).resolve().parents


def test_samples_from_the_copy_are_those_of_the_original(data, tmp_path):
    spec = load_params(ROOT / "params.yaml", "smoke").resolve("depth-full")
    here, there = (
        build_dataset(spec, place, "train", 0).sample(1, 0) for place in (data, staged(data, {VARIABLE: str(tmp_path)}))
    )
    assert (here["image"] == there["image"]).all()
    assert (here["depth"] == there["depth"]).all()


def test_a_second_job_copies_nothing(data, tmp_path):
    copy = staged(data, {VARIABLE: str(tmp_path)})
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert staged(data, {VARIABLE: str(tmp_path)}) == copy
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_other_data_gets_another_copy(drawn, elsewhere, tmp_path):
    assert staged(drawn, {VARIABLE: str(tmp_path)}) != staged(elsewhere, {VARIABLE: str(tmp_path)})


def copier(data: Path, scratch: Path) -> subprocess.Popen:
    """Another job on the same machine."""
    code = (
        "import sys; from pathlib import Path; from vpd.stages.scratch import staged; print(staged(Path(sys.argv[1])))"
    )
    environment = os.environ | {VARIABLE: str(scratch)}
    return subprocess.Popen([sys.executable, "-c", code, data], env=environment, stdout=subprocess.PIPE, text=True)


def test_jobs_that_start_at_once_share_one_copy(data, tmp_path):
    jobs = [copier(data, tmp_path) for _ in range(3)]
    told = {job.communicate(timeout=120)[0].strip() for job in jobs}
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert told == {str(staged(data, {VARIABLE: str(tmp_path)}))}
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_a_copy_that_was_killed_is_completed(data, tmp_path):
    whole = listing(staged(data, {VARIABLE: str(tmp_path / "..")}))
    job = copier(data, tmp_path)
    while job.poll() is None and not any(tmp_path.rglob("*.png")):
        time.sleep(0.001)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert listing(staged(data, {VARIABLE: str(tmp_path)})) == whole


def test_a_changed_file_is_named_and_no_copy_counts_as_whole(drawn, tmp_path):
    damaged, scratch = tmp_path / "nyuv2", tmp_path / "scratch"
    scratch.mkdir()
    shutil.copytree(drawn, damaged)
    name = sorted(json.loads((damaged / "manifest.json").read_text())["files"])[3]
    (damaged / name).write_bytes((damaged / name).read_bytes() + b"x")
    with pytest.raises(UserError, match=f"{name} was changed after manifest.json was written; run"):
        staged(damaged, {VARIABLE: str(scratch)})
    (damaged / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing, but manifest.json lists it"):
        staged(damaged, {VARIABLE: str(scratch)})
    assert not list(scratch.rglob("manifest.json"))


def test_a_scratch_folder_that_does_not_exist_is_named(drawn, tmp_path):
    with pytest.raises(UserError, match=f"VPD_SCRATCH={tmp_path}/none is not a folder; name one on this machine"):
        staged(drawn, {VARIABLE: str(tmp_path / "none")})


def test_a_disk_that_is_too_small_is_named(drawn, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"of disk space are needed .* and 10 bytes are free"):
        staged(drawn, {VARIABLE: str(tmp_path)})
