"""One experiment through the workflow with two processes (gloo): its curve, its metrics, and the death of a process.

The networks are the real ones of the smoke scale; tests/test_launch.py does the same with a tiny one, and much faster.
"""

import csv
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from test_reproduce import ENVIRONMENT, copy_of_project, run
from vpd.evaluation.results import read_metrics

pytestmark = pytest.mark.cluster

BOTH = ENVIRONMENT | {"VPD_PROCESSES": "2"}
SEGMENTATION, DEPTH = "seg-full", "depth-full"
STEPS = 20


def edited(folder: Path, name: str, **blocks: str) -> None:
    """Give an experiment of the project's params.yaml further settings."""
    path = folder / "params.yaml"
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{name}:"))
    added = "".join(f", {key}: {value}" for key, value in blocks.items())
    path.write_text(text.replace(line, re.sub(r"\}\s*(#.*)?$", f"{added}}}", line)))


def training(accumulate: int = 1) -> str:
    return f"{{epochs: null, steps: {STEPS}, log_every: 1, save_every: 2, accumulate: {accumulate}}}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Data and checkpoints, made once."""
    folder = copy_of_project(tmp_path_factory.mktemp("prepared"))
    # Dropout draws per process, so that only without it two processes can equal one.
    edited(folder, SEGMENTATION, model="{head: {dropout: 0.0}}", training=training())
    made = ["data/smoke/ade20k", "data/smoke/nyuv2", "checkpoints/smoke/sd-1-5"]
    run("snakemake --cores 2 " + " ".join(f"{folder}/manifest.json" for folder in made), folder)
    return folder


def copied(prepared: Path, where: Path) -> Path:
    subprocess.run(["cp", "-a", f"{prepared}/.", str(where)], check=True)
    return where


def measured(folder: Path, name: str, environment: dict[str, str]) -> Path:
    """Train and evaluate an experiment with Snakemake."""
    command = ["snakemake", "--cores", "2", f"results/smoke/metrics/{name}.json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def both(prepared, tmp_path_factory) -> Path:
    """SEGMENTATION by two processes."""
    return measured(copied(prepared, tmp_path_factory.mktemp("both")), SEGMENTATION, BOTH)


def losses(folder: Path, name: str) -> list[float]:
    with (folder / f"results/smoke/history/{name}.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def scores(folder: Path, name: str) -> dict:
    """The numbers of its one seed at its one milestone."""
    (result,) = read_metrics(folder / f"results/smoke/metrics/{name}.json")
    return result["metrics"]


def test_two_processes_have_the_curve_and_the_metrics_of_one(prepared, both, tmp_path):
    one = measured(copied(prepared, tmp_path), SEGMENTATION, ENVIRONMENT)
    assert len(losses(both, SEGMENTATION)) == STEPS
    assert losses(both, SEGMENTATION) == pytest.approx(losses(one, SEGMENTATION), rel=1e-4)
    assert scores(both, SEGMENTATION) == pytest.approx(scores(one, SEGMENTATION), abs=0.05)  # of 100
    assert scores(one, SEGMENTATION)


def test_where_the_loss_is_of_parts_two_processes_equal_one_that_accumulates(prepared, tmp_path):
    """SiLog and depth's own batch norms: each process computes one of the two parts (D16)."""
    for name, accumulate, environment in (("one", 2, ENVIRONMENT), ("both", 1, BOTH)):
        folder = copied(prepared, tmp_path / name)
        edited(folder, DEPTH, training=training(accumulate))
        measured(folder, DEPTH, environment)
    assert losses(tmp_path / "both", DEPTH) == pytest.approx(losses(tmp_path / "one", DEPTH), rel=1e-3)


def test_a_killed_process_is_started_again_and_the_metrics_stay(prepared, both, tmp_path):
    folder = copied(prepared, tmp_path)
    command = ["snakemake", "--cores", "2", f"results/smoke/metrics/{SEGMENTATION}.json"]
    engine = subprocess.Popen(
        command, cwd=folder, env=BOTH, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    killed = worker(folder, engine)
    os.kill(killed, signal.SIGKILL)
    said, _ = engine.communicate(timeout=600)
    assert engine.returncode == 0, said
    wanted = f"results/smoke/metrics/{SEGMENTATION}.json"
    assert (folder / wanted).read_bytes() == (both / wanted).read_bytes()
    assert losses(folder, SEGMENTATION) == losses(both, SEGMENTATION)


def worker(folder: Path, engine: subprocess.Popen) -> int:
    """A process of the training that has saved a state."""
    deadline = time.monotonic() + 240
    while not any((folder / f".vpd/smoke/train/{SEGMENTATION}").rglob("step-*.pt")):
        assert engine.poll() is None, engine.stdout.read()
        assert time.monotonic() < deadline, "no state was ever saved"
        time.sleep(0.1)
    found = subprocess.run(
        ["pgrep", "-f", "python.* -m vpd.utils.launch"], capture_output=True, text=True
    ).stdout.split()
    here = [int(number) for number in found if os.path.realpath(f"/proc/{number}/cwd") == str(folder.resolve())]
    assert len(here) == 2, found
    return here[-1]
