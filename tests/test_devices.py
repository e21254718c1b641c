"""GPUs are given out once each: with a stand-in for nvidia-smi that lists two, on a machine that has none."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vpd.utils.devices import claimed_gpus, device_type, machine
from vpd.utils.errors import UserError

WORKER = """
import json, sys, time
from vpd.utils.devices import claimed_gpus
with claimed_gpus(int(sys.argv[1])) as names:
    started = time.time()
    time.sleep(float(sys.argv[2]))
    print(json.dumps([names, started, time.time()]))
"""


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '0, GPU-aaaa'\necho '1, GPU-bbbb'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)


def worker(count: int, seconds: float) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", WORKER, str(count), str(seconds)], **pipes)


@pytest.mark.usefixtures("two_gpus")
def test_jobs_side_by_side_never_share_a_gpu():
    found = [json.loads(job.communicate()[0]) for job in [worker(count, 0.4) for count in (1, 2, 1, 1, 2)]]
    assert sorted(len(names) for names, _, _ in found) == [1, 1, 1, 2, 2]
    for name in ("GPU-aaaa", "GPU-bbbb"):
        times = sorted((start, end) for names, start, end in found if name in names)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times)), times


@pytest.mark.usefixtures("two_gpus")
def test_who_waits_says_so():
    first = worker(2, 3)
    time.sleep(1)
    said = worker(1, 0).communicate()[1]
    assert said == "waiting for 1 of 2 GPUs, which other jobs hold\n"
    assert first.communicate()[1] == ""


@pytest.mark.usefixtures("two_gpus")
def test_a_killed_jobs_gpu_is_free_at_once():
    first = worker(2, 60)
    time.sleep(1)
    first.kill()
    assert json.loads(worker(2, 0).communicate(timeout=20)[0])[0] == ["GPU-aaaa", "GPU-bbbb"]
    first.wait()


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("allowed", "count", "claimed"), [(None, 1, "GPU-aaaa"), ("1", 8, "GPU-bbbb"), ("GPU-bbbb", 8, "GPU-bbbb")]
)
def test_cuda_sees_what_was_claimed_of_the_users_choice_and_only_meanwhile(allowed, count, claimed, monkeypatch):
    if allowed:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    with claimed_gpus(count) as names:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == names[0] == claimed
        assert len(names) == 1
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == allowed


@pytest.mark.usefixtures("two_gpus")
def test_who_assigns_gpus_is_left_alone(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with claimed_gpus(1) as names:
        assert names == []
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_without_gpus_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with claimed_gpus(1) as names:
        assert names == []
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.usefixtures("two_gpus")
def test_the_machine_is_named_with_its_cores_and_gpus(tmp_path):
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\n[ $1 = --query-gpu=name ] && yes 'NVIDIA H100' | head -2\n")
    model, cores, gpus = machine().rsplit(", ", 2)
    assert (cores, gpus) == (f"{len(os.sched_getaffinity(0))} cores", "2 x NVIDIA H100")
    assert f": {model}\n" in Path("/proc/cpuinfo").read_text()


@pytest.mark.usefixtures("two_gpus")
def test_gpus_that_torch_cannot_use_are_no_reason_to_compute_on_the_cores_silently(monkeypatch):
    with pytest.raises(UserError, match=r"PyTorch .* can use none of 2 GPUs here \(.*driver.*\); update the driver"):
        device_type()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_type() == "cpu"


def test_a_machine_without_gpus_computes_on_its_cores(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert device_type() == "cpu"
