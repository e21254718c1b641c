"""`smoke`, run whole by Snakemake, and by DVC, from clean copies of the project, as a user would run it.

DVC runs VPD on every task and one baseline here; all experiments in the slow test (`make test-slow`).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from vpd.config.params import load_params

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CELLS = Path("results/smoke/tables/cells.csv")
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MLFLOW_TRACKING_URI")},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def copy_of_project(folder: Path) -> Path:
    """The tracked files (and new ones git does not ignore) in a git repository of their own, at the smoke scale."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith("results/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    params = folder / "params.yaml"
    params.write_text(re.sub(r"(?m)^scale: \w+", "scale: smoke", params.read_text()))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")  # `make setup` was run by whoever runs this test
    return folder


def run(command: str, folder: Path, succeed: bool = True) -> str:
    """Run a shell command in ``folder``; its whole output."""
    done = subprocess.run(command, shell=True, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode == 0) == succeed, done.stdout + done.stderr
    return done.stdout + done.stderr


def few_of_all() -> list[str]:
    """The first experiment of VPD on every task, and the first of a baseline."""
    first = {}
    for name, line in load_params(ROOT / "params.yaml").experiments.items():
        first.setdefault(line.task if line.method == "vpd" else "baseline", name)
    return list(first.values())


FEW = few_of_all()
STAGES = " ".join(f"evaluate@{name}" for name in FEW)


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """Two clean projects: all of it by Snakemake, killed with SIGKILL and started again; FEW by DVC, at the same time."""
    whole, few = (copy_of_project(tmp_path_factory.mktemp(name)) for name in ("snakemake", "dvc"))
    with (few / "dvc.log").open("w") as log:
        dvc = subprocess.Popen(
            ["dvc", "repro", *STAGES.split()], cwd=few, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            killed_and_restarted(whole)
            assert dvc.wait() == 0, (few / "dvc.log").read_text()
        finally:
            dvc.kill()
    return whole, few


@pytest.fixture(scope="session")
def whole(both):
    """The project that Snakemake made, as a newcomer's `snakemake --cores 2` would."""
    return both[0]


@pytest.fixture(scope="session")
def few(both):
    """The project in which DVC made FEW and what they need."""
    return both[1]


@pytest.fixture(scope="session")
def recorded(whole):
    """The project that Snakemake made, after DVC was told of it."""
    run("make record", whole)
    return whole


def killed_and_restarted(folder: Path) -> None:
    """Run Snakemake to the end in ``folder``, after it was killed once with SIGKILL."""
    engine = subprocess.Popen(
        ["snakemake", "--cores", "2"],
        cwd=folder,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 900
    while len(list(folder.glob("results/smoke/metrics/*.json"))) < 3 and time.monotonic() < deadline:
        assert engine.poll() is None, "snakemake ended by itself"
        time.sleep(0.5)
    os.killpg(engine.pid, signal.SIGKILL)
    engine.wait()
    run("snakemake --unlock", folder)
    run("snakemake --cores 2", folder)


def cells(folder):
    """The tidy table of a project."""
    return pd.read_csv(folder / CELLS)


def test_every_experiment_is_measured(whole):
    frame = cells(whole)
    measured = frame[frame.provenance == "measured"]
    shown = {name for value in measured.experiment for name in str(value).split()}
    assert shown == set(load_params(ROOT / "params.yaml").experiments)
    assert measured.value.notna().all()
    assert "missing" not in set(frame[frame.experiment.notna()].provenance)


@pytest.mark.parametrize("name", FEW)
def test_snakemake_interrupted_gives_the_same_metrics_as_dvc(whole, few, name):
    """Equal to the bit, the digests of data, checkpoint and weights included: threads are fixed in both."""
    path = f"results/smoke/metrics/{name}.json"
    assert (few / path).read_bytes() == (whole / path).read_bytes()


@pytest.mark.slow
def test_the_whole_by_dvc_gives_the_same_cells_as_snakemake(whole, tmp_path):
    folder = copy_of_project(tmp_path)
    (folder / ".venv").unlink()
    run("make reproduce", folder)
    assert_frame_equal(cells(whole), cells(folder), check_exact=True)
    assert "up to date" in run("dvc repro", folder)


def test_second_dvc_repro_does_nothing(few):
    assert "up to date" in run(f"dvc repro {STAGES}", few)


def test_second_snakemake_does_nothing(whole):
    assert "Nothing to be done" in run("snakemake -n", whole)


def test_dvc_takes_over_what_snakemake_made(recorded):
    assert "up to date" in run("make reproduce", recorded)
    assert "Nothing to be done" in run("snakemake -n", recorded)


def test_snakemake_takes_over_what_dvc_made(few):
    targets = " ".join(f"results/smoke/metrics/{name}.json" for name in FEW)
    run(f"snakemake --touch --cores 1 {targets}", few)
    assert "Nothing to be done" in run(f"snakemake -n {targets}", few)
    assert "up to date" in run(f"dvc repro {STAGES}", few)


EDITS = {
    "an ablation": ("seg-full:", "seeds: single", "seeds: single, model: {attention: {limit: 1.0}}", {"seg-full"}),
    "a baseline": ("seg-clip:", "seeds: single", "seeds: single, model: {drop_path: 0.2}", {"seg-clip"}),
    "a backbone": ("clip-vit-b:", "quickgelu_224}", "quickgelu_224, options: {mlp_ratio: 2.0}}", {"seg-clip"}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_line_reruns_what_it_is_about_and_nothing_else(recorded, edit):
    start, old, new, wanted = EDITS[edit]
    params = recorded / "params.yaml"
    for command in ("dvc repro --dry", "snakemake -n"):
        text = params.read_text()
        line = next(line for line in text.splitlines() if line.strip().startswith(start))
        assert old in line
        try:
            params.write_text(text.replace(line, line.replace(old, new)))
            changed = run(command, recorded)
        finally:
            params.write_text(text)
        names = set(re.findall(r"vpd (?:train|evaluate) (\S+)", changed)) or set(re.findall(r"\bname=(\S+)", changed))
        # A dry DVC run cannot know that an experiment will see another backbone before that is made.
        assert names == wanted or (edit == "a backbone" and command.startswith("dvc") and names <= wanted), changed
        stages = set(re.findall(r"^(?:local)?(?:rule |Running stage ')(\w+)", changed, flags=re.M))
        assert stages & {"data", "pretrain", "checkpoint"} == set(), changed
        backbones = set(re.findall(r"vpd backbone (\S+)", changed)) or set(re.findall(r"backbone=(\S+)", changed))
        assert backbones == ({"clip-vit-b"} if edit == "a backbone" else set()), changed


@pytest.mark.parametrize("seconds", [1.5, 2.5, 3.5])
def test_report_killed_in_the_middle_is_whole_after_the_next(whole, tmp_path, seconds):
    results = shutil.copytree(whole / "results/smoke", tmp_path / "results", ignore=shutil.ignore_patterns("runs"))
    files = ["REPORT.md", "report.html", "tables/cells.csv", "figures/figure3.svg"]
    before = {name: (results / name).read_bytes() for name in files}
    command = (
        f"vpd report --results {results} --pretraining checkpoints/smoke/pretraining --previews data/smoke --out {results}"
        " --costs workflow/costs.json --costs-scale paper"
    )
    killed = subprocess.Popen(command.split(), cwd=whole, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    killed.kill()
    killed.wait()
    run(command, whole)
    assert {name: (results / name).read_bytes() for name in files} == before
    assert not list(results.glob("**/.*partial*"))


def test_all_runs_are_in_mlflow(whole):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{whole / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vpd-smoke")
    names = [found.info.run_name for found in client.search_runs([experiment.experiment_id], max_results=1000)]
    params = load_params(ROOT / "params.yaml", "smoke")
    wanted = {f"{name}/seed{seed}" for name in params.experiments for seed in params.resolve(name).seeds}
    assert wanted <= set(names)
    assert len(names) == len(set(names))


def test_a_failed_job_fails_the_whole_and_leaves_no_output(whole, tmp_path):
    """A truncated image ends `vpd train` with code 2 and one sentence; neither weights nor a manifest appear."""
    data = shutil.copytree(whole / "data/smoke/ade20k", tmp_path / "ade20k")
    for image in sorted((data / "ADEChallengeData2016/images/training").iterdir()):
        content = image.read_bytes()
        image.unlink()
        image.write_bytes(content[: len(content) // 2])
    done = subprocess.run(
        f"vpd train seg-fast --data {data} --checkpoint checkpoints/smoke/sd-1-5 --runs {tmp_path}/runs"
        f" --spec {tmp_path}/spec.json --history {tmp_path}/history.csv --state {tmp_path}/state --timing {tmp_path}/timing.json",
        shell=True,
        cwd=whole,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("vpd: ")
    assert "ADE_train_" in sentence
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/**/*.safetensors"))
    assert not (tmp_path / "runs" / "manifest.json").exists()


# --------------------------------------------------------------------------------------------------------------- README
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
RUN_BY_FIXTURES = {"make reproduce", "snakemake --cores 2"}
THIS_VERY_RUN = {"make test", "make test-cluster"}
SERVERS = {"make ui"}  # started for real in test_mlflow_ui.py
ELSEWHERE = RUN_BY_FIXTURES | THIS_VERY_RUN | SERVERS


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ELSEWHERE])
def test_command_of_the_readme_works(command, recorded):
    run(command.replace("mini", "smoke"), recorded)


@pytest.mark.parametrize("command", sorted(ELSEWHERE))
def test_command_run_elsewhere_is_in_the_readme(command):
    assert command in COMMANDS


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
