"""What is trained and evaluated ahead of DVC: in which order, what is left alone, and that nothing outlives DVC.

`make reproduce` as a whole, which works ahead, is in test_reproduce.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forked import alive, wait_for
from test_forkserver import ENVIRONMENT
from vpd.config.params import Params, load_params
from vpd.config.paths import Paths
from vpd.stages import ahead
from vpd.stages.ahead import jobs, work
from vpd.stages.run import output
from vpd.utils.files import exclusive, is_locked

ROOT = Path(__file__).parent.parent
FEW = ("seg-full", "seg-fast", "seg-fast-dino", "refcoco-full", "depth-full", "depth-sam")


def few_of(scale: str) -> Params:
    params = load_params(ROOT / "params.yaml", scale)
    params.experiments = {name: params.experiments[name] for name in FEW}
    return params


PARAMS = few_of("smoke")
STAND_IN = """#!/bin/sh
echo "$$ $1 $2" >> begun
{work}
touch "made/$1@$2"
"""
ORDER = [(stage, name) for name in reversed(PARAMS.experiments) for stage in ("train", "evaluate")]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with a `vpd` that makes a file of each stage's name; what has such a file counts as current."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ahead, "PAUSE", 0.01)
    monkeypatch.setattr(ahead, "is_current", lambda stage, name, *_: Path(f"made/{stage}@{name}").exists())
    Path("made").mkdir()
    inputs = {"data": PARAMS.datasets, "checkpoint": PARAMS.checkpoints, "backbone": PARAMS.backbones}
    for stage, names in inputs.items():
        for name in names:
            Path(f"made/{stage}@{name}").touch()
    stand_in("")
    return tmp_path


def stand_in(work: str) -> None:
    Path("vpd").write_text(STAND_IN.format(work=work))
    Path("vpd").chmod(0o755)


def ahead_of_dvc(count: int = 1) -> Iterator[tuple[str, str]]:
    return work(PARAMS, Paths("smoke"), count)


def test_experiments_are_made_from_the_last_to_the_first(project):
    assert list(ahead_of_dvc()) == ORDER == list(jobs(PARAMS))
    assert all((project / f"made/{stage}@{name}").exists() for stage, name in ORDER)


def test_experiments_whose_threads_the_scale_leaves_open_are_not_made(project):
    assert jobs(few_of("paper")) == {}


def test_what_is_current_or_made_by_another_process_is_left_alone(project):
    current, taken = ORDER[2], ORDER[6]
    (project / f"made/{current[0]}@{current[1]}").touch()
    begun = []
    with exclusive(output(*taken, Paths("smoke"))):
        for job in ahead_of_dvc():
            begun.append(job)
            if len(begun) == 5:
                # The other process ends, and its evaluation can follow.
                (project / f"made/{taken[0]}@{taken[1]}").touch()
    assert sorted(begun) == sorted(set(ORDER) - {current, taken})
    assert begun[:2] == ORDER[:2]
    assert begun.index(ORDER[7]) >= 5


@pytest.mark.parametrize("stage", ["data", "checkpoint"])
def test_a_job_waits_until_all_that_it_needs_is_current(project, stage):
    """Of the first job in the order that needs it; those of other inputs come before it."""
    job = next(job for job in ORDER if needs(job, stage))
    missing = project / "made" / needs(job, stage)
    missing.unlink()
    begun = []
    for one in ahead_of_dvc():
        begun.append(one)
        if len(begun) == 3:
            missing.touch()
    assert sorted(begun) == sorted(ORDER)
    assert begun.index(job) >= 3


def needs(job: tuple[str, str], stage: str) -> str:
    """Name of what a job needs of a stage's output, empty if nothing."""
    line = PARAMS.experiments[job[1]]
    if stage == "data":
        return f"data@{PARAMS.resolve(job[1]).dataset}"
    return f"checkpoint@{line.checkpoint}" if line.checkpoint in PARAMS.checkpoints else ""


def test_as_many_run_at_once_as_cores_are_idle(project):
    stand_in("while [ ! -e go ]; do sleep 0.01; done")
    begun = ahead_of_dvc(2)
    first = [next(begun), next(begun)]
    (project / "go").touch()
    assert first == [ORDER[0], ORDER[2]]  # an evaluation waits for its training
    assert len([*first, *begun]) == len(ORDER)


@pytest.mark.parametrize(("cores", "gibibytes", "idle"), [(1, 64, 0), (2, 24, 1), (64, 24, 7), (2, 2, 0), (8, 5, 0)])
def test_cores_are_idle_only_where_there_is_memory_for_their_jobs(monkeypatch, cores, gibibytes, idle):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": gibibytes << 18, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert ahead.idle_cores() == idle


def test_a_lock_is_seen_and_left_as_it_was(tmp_path):
    out = tmp_path / "out"
    assert not is_locked(out)
    with exclusive(out):
        assert is_locked(out)
    assert not is_locked(out)


WORKER = """\
import sys
from vpd.stages import ahead
ahead.is_current = lambda stage, *_: stage not in ahead.STAGES
ahead.main(int(sys.argv[1]))
"""
OWNER = """\
import os, subprocess, sys
print(subprocess.Popen([sys.executable, "worker.py", str(os.getpid())]).pid, flush=True)
sys.stdin.read()
"""


def test_a_mistake_in_the_settings_is_left_for_dvc_to_tell(project):
    text = (ROOT / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub("^scale: .*", "scale: nonsense", text, flags=re.M))
    environment = ENVIRONMENT | {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "vpd.stages.ahead", str(os.getpid())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_outlives_a_killed_workflow(project):
    stand_in("exec sleep 600")
    (project / "worker.py").write_text(WORKER)
    (project / "params.yaml").symlink_to(ROOT / "params.yaml")
    environment = ENVIRONMENT | {"PATH": os.environ["PATH"]}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], env=environment, text=True, **pipes)
    assert owner.stdout is not None
    worker = int(owner.stdout.readline())
    begun = project / "begun"
    wait_for(begun.exists)
    job = int(begun.read_text().split()[0])
    assert alive(worker)
    assert alive(job)
    owner.kill()
    wait_for(lambda: not alive(worker) and not alive(job))
