"""The workflow on a real Slurm (one node, started here): whole, requeued, over its time limit, and through a dead node.

Needs root and Debian's slurm-wlm and munge: `make test-cluster` installs and runs them.
"""

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from slurm_lab import Lab, output, slurm
from test_reproduce import CELLS, ENVIRONMENT, ROOT, copy_of_project, run
from test_two_processes import edited

pytestmark = pytest.mark.cluster

PROFILE = "snakemake --profile profiles/slurm --slurm-init-seconds-before-status-checks 5 --latency-wait 10"
NAME = "depth-full"
TARGET = f"results/smoke/metrics/{NAME}.json"
STEPS, SAVE_EVERY = 400, 5


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found


# ---------------------------------------------------------------------------------------------------------------- whole
@pytest.fixture(scope="module")
def locally(tmp_path_factory):
    folder = copy_of_project(tmp_path_factory.mktemp("local"))
    run("snakemake --cores 2", folder)
    return folder


def page() -> str:
    return "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / "docs/slurm.md").read_text(), flags=re.S))


def test_the_page_word_for_word_makes_smoke_with_the_cells_of_a_local_run(lab, locally, tmp_path):
    folder = copy_of_project(tmp_path)
    shutil.copy(ROOT / "params.yaml", folder)  # as it is in a clone: the page names the scale
    said = run("set -e\n" + page(), folder)
    assert_frame_equal(pd.read_csv(folder / CELLS), pd.read_csv(locally / CELLS), check_exact=True)
    assert "Nothing to be done" in run("snakemake -n --config scale=smoke", folder)
    assert re.search(r"rule train:(?:.|\n)*? gpu=8", said)
    logs = {path.stem for path in (folder / "logs/smoke/train").glob("*.log")}
    assert logs == {path.stem for path in (folder / "results/smoke/metrics").glob("*.json")}


# --------------------------------------------------------------------------------------------------------- interruptions
def longer(folder: Path) -> Path:
    edited(folder, NAME, training=f"{{epochs: null, steps: {STEPS}, save_every: {SAVE_EVERY}}}")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = longer(copy_of_project(tmp_path_factory.mktemp("undisturbed")))
    run(f"snakemake --cores 2 {TARGET}", folder)
    return folder


@pytest.fixture
def prepared(undisturbed, tmp_path):
    """The same project before the training of NAME: data and checkpoints are there."""
    subprocess.run(["cp", "-a", f"{undisturbed}/.", str(tmp_path)], check=True)
    made = (f"results/smoke/runs/{NAME}", TARGET, f"results/smoke/specs/{NAME}.json", f".vpd/smoke/train/{NAME}")
    subprocess.run(["rm", "-rf", *made], cwd=tmp_path, check=True)
    return tmp_path


def job() -> str:
    return output("squeue", "-h", "-t", "R", "-o", "%A").strip()


def saved_steps(folder: Path) -> bool:
    return any((folder / f".vpd/smoke/train/{NAME}").rglob("step-*.pt"))


def disturbed(lab: Lab, folder: Path, disturb, extra: str = "") -> str:
    """Run NAME on the cluster, call ``disturb`` once a state is saved, and wait for the end; the training's log."""
    command, pipes = [*PROFILE.split(), *extra.split(), "--", TARGET], (subprocess.PIPE, subprocess.STDOUT)
    engine = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=pipes[0], stderr=pipes[1], text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(engine.stdout), daemon=True)
    reader.start()
    try:
        lab.wait_for(lambda: saved_steps(folder) or engine.poll() is not None, "no state was ever saved", 240)
        assert engine.poll() is None, "".join(said)
        disturb()
        assert engine.wait(900) == 0, "".join(said)
    finally:
        engine.kill()
    return "".join(said)


def assert_equal(folder: Path, undisturbed: Path) -> None:
    """The interrupted run went on from its state, and ended as if nothing had happened."""
    assert "continuing after step" in (folder / f"logs/smoke/train/{NAME}.log").read_text()
    assert (folder / TARGET).read_bytes() == (undisturbed / TARGET).read_bytes()


def test_a_requeued_job_goes_on_and_ends_with_the_same_metrics(lab, prepared, undisturbed):
    def requeue():
        number = job()
        subprocess.run(["scontrol", "requeue", number], check=True)
        lab.wait_for(lambda: output("squeue", "-h", "-j", number, "-o", "%t").strip() == "PD", "not requeued")
        # Slurm lets a requeued job wait two minutes.
        subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=True)

    disturbed(lab, prepared, requeue)
    assert_equal(prepared, undisturbed)


def test_a_job_over_its_time_limit_is_tried_again_and_goes_on(lab, prepared, undisturbed):
    def stall():
        # Until its minute is over, however fast the machine is: Slurm lets a stopped process go on when it ends a job.
        subprocess.run(["pkill", "-STOP", "-f", f"vpd train {NAME}"], check=True)

    said = disturbed(lab, prepared, stall, "--set-resources train:runtime=attempt")
    assert "Trying to restart job" in said
    assert_equal(prepared, undisturbed)


def test_a_job_goes_on_after_its_node_died(lab, prepared, undisturbed):
    def die():
        lab.kill_node()
        subprocess.run(["pkill", "-9", "-f", f"vpd train {NAME}"], check=False)
        time.sleep(1)
        lab.start_node()

    disturbed(lab, prepared, die)
    assert_equal(prepared, undisturbed)
