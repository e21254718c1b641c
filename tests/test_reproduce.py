"""`smoke`, run whole by Snakemake, and by DVC, from clean copies of the project, as a user would run it.

DVC runs VPD on every task and one baseline here; all experiments in the slow test (`make test-slow`).
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from PIL import Image

from browser_world import chromium
from pictures import dvc_plots, snakemake_report
from vpd.config.params import load_params
from vpd.evaluation.results import Provenance, read_provenance
from vpd.utils.digests import digests, sha256, tree
from vpd.utils.files import read_json

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


def environment(folder: Path) -> dict[str, str]:
    """The environment in which a copy of the project runs its own code."""
    return {**ENVIRONMENT, "PYTHONPATH": str(folder / "src")}


def run(command: str, folder: Path, succeed: bool = True) -> str:
    """Run a shell command in ``folder``; its whole output."""
    done = subprocess.run(command, shell=True, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert (done.returncode == 0) == succeed, done.stdout + done.stderr
    return done.stdout + done.stderr


def stages_run(output: str) -> set[str]:
    """Stages that DVC ran; without ``outside``, which it always runs."""
    return set(re.findall(r"^Running stage '([^']+)'", output, flags=re.M)) - {"outside"}


def changed(folder: Path) -> set[str]:
    """Stages that `dvc status` lists; without ``outside``, which it always lists."""
    return set(re.findall(r"^(\S+):$", run("dvc status", folder), flags=re.M)) - {"outside"}


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
            ["vpd", "preload", "dvc", "repro", *STAGES.split()],
            cwd=few,
            env=environment(few),
            stdout=log,
            stderr=subprocess.STDOUT,
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
        env=environment(folder),
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
    for kind in ("metrics", "headlines"):
        path = f"results/smoke/{kind}/{name}.json"
        assert (few / path).read_bytes() == (whole / path).read_bytes()
    made, other = (read_provenance(folder / f"results/smoke/provenance/{name}.json") for folder in (few, whole))
    assert without_times(made) == without_times(other)


def without_times(made: Provenance) -> dict:
    content = made.model_dump()
    return content | {"runs": {seed: run | {"timing": None} for seed, run in content["runs"].items()}}


@pytest.mark.slow
def test_a_stage_that_runs_by_itself_writes_the_same_bits_as_one_that_shares_its_imports(whole, tmp_path):
    folder = beside(whole, tmp_path)
    (folder / "results").unlink()
    run("vpd train depth-fast && vpd evaluate depth-fast", folder)
    for name in ("runs/depth-fast/manifest.json", "metrics/depth-fast.json"):
        assert (folder / "results/smoke" / name).read_bytes() == (whole / "results/smoke" / name).read_bytes()


@pytest.mark.slow
def test_the_whole_by_dvc_gives_the_same_cells_as_snakemake(whole, tmp_path):
    folder = copy_of_project(tmp_path)
    (folder / ".venv").unlink()
    run("make reproduce", folder)
    assert_frame_equal(cells(whole), cells(folder), check_exact=True)
    manifests = [(project / "results/smoke/measures/manifest.json").read_bytes() for project in (whole, folder)]
    assert manifests[0] == manifests[1]
    assert stages_run(run("dvc repro", folder)) == set()


# Files that appear in the middle of `make pretrain`: of the text encoder, of the U-Net, of a baseline.
MOMENTS = ("pretrain/*/text.pt", "pretrain/*/sd-1-2", "backbone/mae-vit-l")


def killed_at_first_of(moments: list[str], command: str, folder: Path) -> str:
    """Start ``command`` in ``folder`` and kill it, with all that it started, at the first of ``moments``; which it was."""
    log = folder / "killed.log"
    with log.open("w") as output:
        engine = subprocess.Popen(
            command.split(),
            cwd=folder,
            env=environment(folder),
            start_new_session=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    while not (seen := [moment for moment in moments if list(folder.glob(f".vpd/smoke/{moment}"))]):
        assert engine.poll() is None, f"{command} ended before any of {moments}: {log.read_text()[-5000:]}"
        time.sleep(0.02)
    os.killpg(engine.pid, signal.SIGKILL)
    engine.wait()
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["make pretrain SCALE=smoke", "vpd preload dvc repro ship"])
def test_weights_made_anew_are_the_same_bytes_after_kills(whole, tmp_path, command):
    """`make pretrain` and its like by DVC, killed in three places, and the smoke scale that ran through."""
    run("vpd ship", whole)
    folder = copy_of_project(tmp_path)
    moments = list(MOMENTS)  # in another order with every engine
    while moments:
        moments.remove(killed_at_first_of(moments, command, folder))
    run(command, folder)
    weights, others = folder / "weights/smoke", whole / "weights/smoke"
    assert tree(weights)
    assert digests(weights, tree(weights)) == digests(others, tree(others))


def test_second_dvc_repro_does_nothing(few):
    assert stages_run(run(f"dvc repro {STAGES}", few)) == set()


def test_second_snakemake_does_nothing(whole):
    assert "Nothing to be done" in run("snakemake -n", whole)


def test_dvc_takes_over_what_snakemake_made(recorded):
    assert stages_run(run("make reproduce", recorded)) == set()
    assert "Nothing to be done" in run("snakemake -n", recorded)


def test_snakemake_takes_over_what_dvc_made(few):
    targets = " ".join(f"results/smoke/metrics/{name}.json" for name in FEW)
    assert "Nothing to be done" in run(f"snakemake -n {targets}", few)
    assert stages_run(run(f"dvc repro {STAGES}", few)) == set()


@pytest.mark.slow
def test_pictures_for_the_docs_can_be_taken_of_the_results(recorded, tmp_path, monkeypatch):
    """Of Snakemake's report and DVC's plots; that of MLflow's page is in test_mlflow_ui."""
    monkeypatch.chdir(recorded)
    monkeypatch.setenv("PYTHONPATH", str(recorded / "src"))
    monkeypatch.setenv("PATH", ENVIRONMENT["PATH"])
    params = load_params()
    with chromium(tmp_path / "browser") as driver:
        snakemake_report(driver, params, tmp_path)
        shown = driver.find_element("tag name", "body").text
        assert set(shown.split()) >= {name for name, line in params.experiments.items() if line.task == "segmentation"}
        dvc_plots(driver, params, tmp_path)
        count = "return document.querySelectorAll('canvas, svg.marks').length"
        assert driver.execute_script(count) >= len(params.experiments)
        assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []


# ----------------------------------------------------------------------------------------------------------------- edits
def planned(command: str, folder: Path) -> set[str]:
    """Stages that a dry run lists, named as DVC names them."""
    listed = run(command, folder)
    if command.startswith("dvc"):
        return stages_run(listed)
    jobs = re.findall(
        r"^(?:rule|checkpoint|localrule|localcheckpoint) (\w+):(.*?)(?=^\S|\Z)", listed, flags=re.M | re.S
    )
    wildcards = [re.search(r"^    wildcards: \w+=(\S+)", body, flags=re.M) for _, body in jobs]
    names = [f"{rule}@{found[1]}" if found else rule for (rule, _), found in zip(jobs, wildcards, strict=True)]
    return {*names, *re.findall(r"^Job \d+: (\w+):", listed, flags=re.M)} - {"all"}


EDITS = {
    "an ablation": ("seg-full:", "seeds: single", "seeds: single, model: {attention: {limit: 1.0}}", {"seg-full"}),
    "a baseline": ("seg-clip:", "seeds: single", "seeds: single, model: {drop_path: 0.2}", {"seg-clip"}),
    "a backbone": ("clip-vit-b:", "quickgelu_224}", "quickgelu_224, options: {mlp_ratio: 2.0}}", {"seg-clip"}),
}


def one_by_one_or_together(edits, marks=()) -> list:
    """One dry run of Snakemake per edit, and one of DVC, which takes longer, for all."""
    together = pytest.param("dvc repro --dry", list(edits), marks=marks)
    return [*(("snakemake -n", [edit]) for edit in edits), together]


@contextlib.contextmanager
def edited(file: Path, old: str, new: str):
    """``file`` with one place changed, for the block."""
    text = file.read_text()
    assert text.count(old) == 1, (old, text.count(old))
    try:
        file.write_text(text.replace(old, new))
        yield
    finally:
        file.write_text(text)


def edited_line(folder: Path, edit: str):
    """params.yaml with one of the edits."""
    start, old, new, _ = EDITS[edit]
    file = folder / "params.yaml"
    line = next(line for line in file.read_text().splitlines() if line.strip().startswith(start))
    return edited(file, line, line.replace(old, new))


@pytest.mark.parametrize(("command", "edits"), one_by_one_or_together(EDITS))
def test_edited_lines_rerun_what_they_are_about_and_nothing_else(recorded, command, edits):
    wanted = {f"{stage}@{name}" for edit in edits for stage in ("train", "evaluate") for name in EDITS[edit][3]}
    # DVC cannot tell which experiments' settings the released weights use; `vpd released` then finds nothing to do.
    after = {"report", "track", "released"} if command.startswith("dvc") else {"report", "track"}
    if "a backbone" in edits:
        # Neither engine knows before the backbone is made whether its weights will be other ones.
        made = {"backbone@clip-vit-b"}
        wanted, after = (made if edits == ["a backbone"] else wanted | made), after | made | {"ship"}
    with contextlib.ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edited_line(recorded, edit))
        stages = planned(command, recorded)
    missing = wanted - stages
    # A dry run of DVC does not look beyond what it would make: an evaluation may follow from its training.
    assert not missing or (command.startswith("dvc") and all(name.startswith("evaluate@") for name in missing))
    assert stages <= wanted | after


def test_snakemake_sees_an_edit_of_what_dvc_made(few):
    """The other way round, too: content decides, not what an engine remembers."""
    target = "results/smoke/metrics/seg-full.json"
    with edited_line(few, "an ablation"):
        assert planned(f"snakemake -n {target}", few) == {"train@seg-full", "evaluate@seg-full"}
    assert planned(f"snakemake -n {target}", few) == set()


def test_results_of_other_settings_are_never_recorded(recorded):
    """`make record` tells DVC that results and settings belong together, so it checks that they do."""
    with edited_line(recorded, "an ablation"):
        refusal = run("make record", recorded, succeed=False)
    assert re.findall(r"^(?:train|evaluate)@\S+", refusal, flags=re.M) == ["train@seg-full"]


def test_outputs_that_were_damaged_are_listed_as_stale(recorded):
    results = recorded / "results/smoke"
    files = (results / "history/seg-full.csv", results / "panels/depth-full/predictions.png")
    kept = {path: path.read_bytes() for path in files}
    try:
        for path in files:
            path.write_bytes(b"")
        listed = re.findall(r"^(?:train|evaluate)@\S+", run("vpd stale", recorded, succeed=False), flags=re.M)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert set(listed) - {"evaluate@seg-full"} == {"train@seg-full", "evaluate@depth-full"}


FUNCTION = "\n\ndef _nothing() -> None:\n    return None\n"
"""Code that changes no output."""
CODE_EDITS = {
    "the generator": (["world/furniture.py"], {"data", "measure"}),
    "the measures": (["measures/oracle.py", "measures/results.py"], {"measure", "ship"}),
    "the report": (["report/write.py"], {"report", "track"}),
    "what trains nothing": (
        ["planning/plan.py", "predict/run.py", "cli.py", "stages/predict.py", "utils/progress.py"],
        set(),
    ),
    "the training": (["training/losses.py"], {"train", "evaluate", "report", "track"}),
}


@pytest.mark.parametrize(("command", "edits"), one_by_one_or_together(CODE_EDITS, pytest.mark.slow))
def test_changed_code_reruns_only_what_it_may_change(recorded, edits, command):
    names = [name for edit in edits for name in CODE_EDITS[edit][0]]
    allowed = set().union(*(CODE_EDITS[edit][1] for edit in edits))
    with contextlib.ExitStack() as stack:
        for name in names:
            file = recorded / "src/vpd" / name
            stack.enter_context(edited(file, text := file.read_text(), text + FUNCTION))
        stages = {stage.split("@")[0] for stage in planned(command, recorded)}
    assert stages <= allowed
    assert (not allowed) or stages


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        pytest.param("dvc repro --dry", "a kitchen with a red ball", "a kitchen", marks=pytest.mark.slow),
        ("snakemake -n", "a kitchen with a red ball", "a kitchen"),
        ("snakemake -n", "{scenes: 16, width: 16", "{scenes: 16, width: 8"),
    ],
)
def test_an_edited_measure_pretrains_nothing(recorded, command, old, new):
    with edited(recorded / "params.yaml", old, new):
        stages = planned(command, recorded)
    assert stages - {"ship"} == {"measure"}  # shipping copies the measures


def twin(project: Path, folder: Path) -> Path:
    """A copy of a finished project, to be changed."""
    return shutil.copytree(project, folder / "project", symlinks=True)


def drawn_anew(recorded: Path, folder: Path) -> Path:
    """A finished project with a generator that is another one by its code, and draws the same."""
    project = twin(recorded, folder)
    file = project / "src/vpd/world/furniture.py"
    file.write_text(file.read_text() + FUNCTION)
    return project


DRAWING = {"data", "measure"}  # which draws scenes, too


@pytest.mark.slow
def test_data_drawn_again_with_equal_bytes_retrain_nothing(recorded, tmp_path):
    """The jobs are really run: a new generator, the same pixels, and nothing is left to do."""
    folder = drawn_anew(recorded, tmp_path)
    assert {stage.split("@")[0] for stage in planned("snakemake -n", folder)} - {"ship"} <= DRAWING
    done = run("snakemake --cores 2", folder)
    assert set(re.findall(r"^local(?:rule|checkpoint) (\w+)", done, flags=re.M)) - {"all"} == DRAWING
    assert planned("snakemake -n", folder) == set()


@pytest.mark.slow
def test_data_drawn_again_with_equal_bytes_retrain_nothing_by_dvc(recorded, tmp_path):
    folder = drawn_anew(recorded, tmp_path)
    assert {stage.split("@")[0] for stage in planned("dvc repro --dry", folder)} == DRAWING
    run("dvc repro data measure", folder)
    assert planned("dvc repro --dry", folder) == set()


@pytest.mark.slow
def test_data_with_other_bytes_retrain_what_saw_them(recorded, tmp_path):
    """In one run: Snakemake draws the data anew and, since their bytes are others, goes on to the training."""
    folder = twin(recorded, tmp_path)
    target = "results/smoke/metrics/depth-fast.json"
    file = folder / "params.yaml"
    line = next(line for line in file.read_text().splitlines() if line.strip().startswith("nyuv2:"))
    with edited(file, line, line.replace("seed: 1", "seed: 2")):
        assert planned(f"snakemake -n {target}", folder) == {"data@nyuv2"}
        run(f"snakemake --cores 2 {target}", folder)
        assert planned(f"snakemake -n {target}", folder) == set()
    before, after = (read_json(place / target) for place in (recorded, folder))
    assert before["final"]["rmse"] != after["final"]["rmse"]


def beside(whole: Path, folder: Path, *copied: str) -> Path:
    """A project folder that shares everything with ``whole`` but what is ``copied``."""
    for name in ("params.yaml", "workflow", "src", "data", "checkpoints", "results"):
        if name in copied:
            shutil.copytree(whole / name, folder / name, ignore=shutil.ignore_patterns("runs"))
        else:
            (folder / name).symlink_to(whole / name)
    return folder


@pytest.mark.slow
def test_report_killed_in_the_middle_is_whole_after_the_next(whole, tmp_path):
    folder = beside(whole, tmp_path, "results")
    results = folder / "results/smoke"
    files = ["REPORT.md", "report.html", "tables/cells.csv", "figures/figure3.svg"]
    before = {name: (results / name).read_bytes() for name in files}
    killed = subprocess.Popen(["vpd", "report"], cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL)
    time.sleep(3.5)
    killed.kill()
    killed.wait()
    run("vpd report", folder)
    assert {name: (results / name).read_bytes() for name in files} == before
    assert not list(results.glob("**/.*partial*"))


@pytest.fixture(scope="module")
def clone(whole, tmp_path_factory):
    """A new clone as git would have it if `smoke` shipped its weights: with the specs of results, without data or runs."""
    run("vpd ship && vpd ship seg-full refcoco-full depth-full", whole)
    folder = copy_of_project(tmp_path_factory.mktemp("clone"))
    shutil.copytree(whole / "weights/smoke", folder / "weights/smoke")
    shutil.copytree(whole / "results/smoke/specs", folder / "results/smoke/specs")
    return folder


FIVE_LINES = """
import vpd
assert vpd.__file__.startswith({target!r}), vpd.__file__
depth = vpd.load("depth-full").predict("photo.png", scene="kitchen").depth
mask = vpd.load("refcoco-full").predict("photo.png", text="the red chair").mask
found = vpd.load("seg-full").predict("photo.png")
print(depth.shape, mask.shape, found.labels.shape, "wall" in found.names, found.panel().format)
maps = vpd.features(vpd.pipeline("sd-1-5"), "photo.png", "a red ball")
print(maps.maps[0].shape, maps.attention_of("ball").shape)
try:
    vpd.load("seg-fast")
except vpd.UserError as error:
    print(error)
"""
SAID = """(50, 70) (50, 70) (50, 70) True PNG
torch.Size([1, 32, 12, 17]) torch.Size([1, 50, 70])
seg-fast did not come with what was installed, which has depth-full, refcoco-full, seg-full; name its project
"""


def test_an_installed_wheel_predicts_with_the_shipped_weights_anywhere(clone, tmp_path):
    target, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    Image.new("RGB", (70, 50), "red").save(empty / "photo.png")
    pip = f"{sys.executable} -m pip --quiet --disable-pip-version-check"
    run(f"{pip} wheel --no-deps --no-build-isolation --no-index --wheel-dir {tmp_path} .", clone)
    run(f"{pip} install --no-deps --no-index --target {target} {tmp_path}/*.whl", clone)
    program = FIVE_LINES.format(target=str(target))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=empty,
        env={**ENVIRONMENT, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == SAID, done.stderr


def test_demo_in_a_new_clone_uses_the_weights_in_git(clone):
    picture = Path("predictions/demo.png")
    assert f"the picture is {picture}" in run("make demo", clone)
    with Image.open(clone / picture) as image:
        assert image.size == (1203, 660)
    assert {path.name for path in (clone / picture).parent.iterdir()} == {picture.name}


@pytest.mark.slow
def test_a_seed_decides_the_demo_and_its_prompt_has_to_fit(clone):
    run("vpd demo --out first.png && vpd demo --out again.png && vpd demo --seed 1 --out other.png", clone)
    first, again, other = (sha256(clone / f"{name}.png") for name in ("first", "again", "other"))
    assert first == again
    assert first != other
    refused = run(f"vpd demo --prompt '{20 * 'a red ball '}'", clone, succeed=False)
    assert re.search(r"vpd: --prompt: '.*' has \d+ words, but \S+ reads 38; shorten it\n$", refused)


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
    folder = beside(whole, tmp_path, "data")
    (folder / "results").unlink()
    data = folder / "data/smoke/ade20k"
    for image in sorted((data / "ADEChallengeData2016/images/training").iterdir()):
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    names = [path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()]
    manifest = read_json(data / "manifest.json")
    digests = {name: sha256(data / name) for name in names if name in manifest["files"]}
    (data / "manifest.json").write_text(json.dumps({**manifest, "files": digests}))  # as if prepared from damaged files
    done = subprocess.run(
        ["vpd", "train", "seg-fast"], cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("vpd: ")
    assert "ADE_train_" in sentence
    assert "Traceback" not in done.stderr
    assert not list(folder.glob("results/smoke/runs/**/*.safetensors"))
    assert not (folder / "results/smoke/runs/seg-fast/manifest.json").exists()


# --------------------------------------------------------------------------------------------------------------- README
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
RUN_BY_FIXTURES = {"make reproduce", "snakemake --cores 2", "make demo"}
THIS_VERY_RUN = {"make test", "make test-cluster"}
SERVERS = {"make ui"}  # started for real in test_mlflow_ui.py
ELSEWHERE = RUN_BY_FIXTURES | THIS_VERY_RUN | SERVERS


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ELSEWHERE])
def test_command_of_the_readme_works(command, recorded):
    run(command.replace("mini", "smoke"), recorded)


@pytest.mark.parametrize("command", sorted(ELSEWHERE))
def test_command_run_elsewhere_is_in_the_readme(command):
    assert command in COMMANDS


def test_predictions_of_several_networks_for_one_picture_stay_apart(recorded):
    """README's commands have made them, unless this test runs alone."""
    for command in (command for command in COMMANDS if command.startswith("vpd predict")):
        panel = recorded / "predictions" / command.split()[2] / "kitchen.panel.png"
        if not panel.exists():
            run(command, recorded)
        assert panel.is_file()
    assert {path.name for path in (recorded / "predictions").glob("*")} >= {"depth-full", "seg-full", "refcoco-full"}


def test_python_of_the_readme_and_of_the_librarys_page_works(recorded):
    pages = README + (ROOT / "docs/library.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", pages, flags=re.S)
    (recorded / "program.py").write_text("\n".join(programs).replace("mini", "smoke"))
    said = run("OMP_NUM_THREADS=1 python program.py", recorded)  # other tests use the other cores
    assert "torch.Size([1, " in said
    assert 0 < float(said.splitlines()[-1]) < 1  # the linear probe's loss


DRAWN = ["picture", "depth", "segments", "referred", "attention", "maps"]


def test_the_tutorial_runs_and_keeps_what_it_prints_and_draws(whole):
    """Features tell more about depth than colours do, even those of this scale, since they know where a pixel is."""
    notebook = whole / "docs/tutorial.ipynb"
    notebook.write_text(notebook.read_text(encoding="utf-8").replace("mini", "smoke"), encoding="utf-8")
    run("make tutorial", whole)
    made = nbformat.read(notebook, as_version=4)
    nbformat.validate(made)
    shown = {cell.id: cell.outputs for cell in made.cells if cell.cell_type == "code"}
    assert [
        name for name, outputs in shown.items() if any("image/png" in part.get("data", {}) for part in outputs)
    ] == DRAWN
    printed = {name: "".join(part.get("text", "") for part in outputs) for name, outputs in shown.items()}
    colours, features = map(float, re.fullmatch(r"colours: (.+) m\nfeatures: (.+) m\n", printed["compare"]).groups())
    assert features < colours - 0.03
    gradient, tuned = map(float, re.fullmatch(r"gradient .*: (.+)\nfine-tuned: (.+) m\n", printed["tune"]).groups())
    assert gradient > 0
    assert 0 < tuned < 2 * colours


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
