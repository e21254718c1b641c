"""Seeds run side by side where cores allow; their errors reach the caller and no orphan outlives it."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from forked import alive, wait_for
from vpd.config.params import Params, load_params
from vpd.config.paths import Paths
from vpd.stages.data import prepare_dataset
from vpd.stages.keys import forget_changed, keep_note
from vpd.stages.run import STAGES, WHOLE, Stopwatch, output, run_stage
from vpd.stages.training import evaluate_experiment, train_experiment, workers
from vpd.training.runs import TIMING, gather_history, seed_folder
from vpd.utils.devices import machine
from vpd.utils.errors import UserError
from vpd.utils.files import exclusive, read_json, write_json
from vpd.utils.fingerprint import Fingerprint, write_manifest
from vpd.utils.processes import side_by_side

ROOT = Path(__file__).parent.parent


def whoami(number):
    return number * number, os.getpid()


def stumble(number):
    if number == 1:
        raise UserError("seed 1 stumbled; pick it up")
    return number


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order(count):
    results = side_by_side(whoami, [(3,), (1,), (2,)], count)
    assert [square for square, _ in results] == [9, 1, 4]
    assert (os.getpid() in {pid for _, pid in results}) == (count == 1)


@pytest.mark.parametrize("count", [1, 2])
def test_a_seeds_mistake_reaches_the_caller(count):
    with pytest.raises(UserError, match="seed 1 stumbled"):
        side_by_side(stumble, [(0,), (1,)], count)


def test_no_orphan_outlives_a_killed_job(tmp_path):
    (tmp_path / "main.py").write_text(
        "import os, pathlib, sys, time\n"
        "from vpd.utils.processes import side_by_side\n"
        "def sleep(k):\n"
        "    pathlib.Path(sys.argv[1], f'pid{k}').write_text(str(os.getpid()))\n"
        "    time.sleep(120)\n"
        "if __name__ == '__main__': side_by_side(sleep, [(0,), (1,)], 2)\n"
    )
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path])
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    children = [int(file.read_text()) for file in files]
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(map(alive, children)))


def test_workers_follow_the_cores_given(monkeypatch):
    spec = load_params(ROOT / "params.yaml", "mini").resolve("seg-fast").model_copy(update={"seeds": (0, 1, 2)})
    assert spec.training.threads == 1
    for given, wanted in (("1", 1), ("2", 2), ("8", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert workers(spec, 3) == wanted
    assert workers(load_params(ROOT / "params.yaml", "paper").resolve("seg-fast"), 3) == 1


def test_histories_are_joined_with_the_seed_in_front(tmp_path):
    for seed, loss in ((0, 1.5), (7, 2.5)):
        (tmp_path / f"seed{seed}").mkdir()
        (tmp_path / f"seed{seed}" / "history.csv").write_text(f"step,loss\n1,{loss}\n")
    gather_history(tmp_path, (0, 7), tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_text() == "seed,step,loss\n0,1,1.5\n7,1,2.5\n"


def killed_attempt(paths, key, seconds, started, saved):
    """Leave what an attempt at an evaluation leaves that is killed after it saved a state."""
    write_json(paths.state("attempts", "evaluate") / "x.json", {"key": key, "seconds": seconds, "started": started})
    for name, moment in saved.items():
        state = paths.state("evaluate", "x") / name
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text("")
        for path in (state, state.parent, paths.state("evaluate", "x")):
            os.utime(path, (moment, moment))


@pytest.mark.parametrize(
    ("note", "earlier"),
    [
        (None, 0),
        (("k", 0, 1000, {}), 0),  # nothing was saved
        (("k", 0, 1000, {"key/one.json": 1060}), 60),
        (("k", 40, 1000, {"key/one.json": 1060}), 100),  # killed twice
        (("k", 40, 1000, {"key/one.json": 900}), 40),  # a state of the attempt before
        (("other", 40, 1000, {"key/one.json": 1060}), 0),  # of other settings
    ],
)
def test_times_of_attempts_add_up(tmp_path, note, earlier):
    paths = Paths("smoke", tmp_path)
    if note:
        killed_attempt(paths, *note)
    Stopwatch("evaluate", "x", paths, "k").write(seeds=1)
    written = read_json(paths.timing("evaluate", "x"))
    assert earlier <= written["seconds"] < earlier + 30
    assert (written["stage"], written["name"], written["seeds"]) == ("evaluate", "x", 1)
    assert not list(paths.state("attempts").rglob("*.json"))


@pytest.mark.parametrize(("ended", "named"), [(1e9, True), (-1e9, False)])
def test_a_training_names_its_machine_unless_it_was_finished_before(tmp_path, monkeypatch, ended, named):
    """``ended``: seconds after the start of the job."""
    paths, params = Paths("smoke", tmp_path), load_params(ROOT / "params.yaml", scale="smoke")
    for seed in params.resolve("seg-fast").seeds:
        times = {"started": 0.0, "ended": time.time() + ended, "seconds": 1.5, "commit": ""}
        write_json(seed_folder(paths.runs("seg-fast"), seed) / TIMING, times)
    monkeypatch.setattr("vpd.stages.run.train_experiment", lambda *_: 2)
    facts = STAGES["train"]("seg-fast", params, paths)
    assert facts.pop("machine", None) == (machine() if named else None)
    assert facts == {"steps": 2, "seeds": 1, "seconds": 1.5}


def test_an_interrupt_after_the_work_is_done_changes_nothing():
    code = (
        "import atexit, sys, time; from vpd.cli import main; sys.argv = ['vpd', 'show']\n"
        "atexit.register(lambda: (print('ending', file=sys.stderr, flush=True), time.sleep(1)))\n"
        "sys.exit(main())"
    )
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # the background jobs of a shell ignore it
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, preexec_fn=heed, **pipes)
    assert command.stderr.readline() == "ending\n"
    command.send_signal(signal.SIGINT)
    assert (command.communicate()[1], command.returncode) == ("", 0)


@pytest.mark.parametrize("stage", list(STAGES))
def test_who_comes_second_waits_and_finds_the_stage_done(tmp_path, monkeypatch, capsys, stage):
    """The first holds the lock, and has finished when the second gets it."""
    names = {"pretrain": "", "measure": "", "data": "ade20k", "checkpoint": "sd-1-5", "backbone": "sam"}
    params, paths, name = (
        load_params(ROOT / "params.yaml", "smoke"),
        Paths("smoke", tmp_path),
        names.get(stage, "seg-fast"),
    )
    write_json(paths.timing(stage, name or WHOLE[stage]), {})
    monkeypatch.setattr("vpd.stages.run.is_current", lambda *_: True)
    with ThreadPoolExecutor() as pool:
        with exclusive(output(stage, name, paths)):
            second = pool.submit(run_stage, stage, name, params, paths)
            waits = f"{stage} {name}".rstrip() + ": waiting for another process that is making it"
            wait_for(lambda: waits in capsys.readouterr().err)
        assert second.result().endswith("is up to date")


@pytest.mark.parametrize("stage", ["data", "checkpoint", "backbone", "train", "evaluate"])
@pytest.mark.parametrize("name", ["typo", "../../../escape"])
def test_an_unknown_name_is_refused_and_leaves_nothing(tmp_path, stage, name):
    params, paths = load_params(ROOT / "params.yaml", "smoke"), Paths("smoke", tmp_path / "a/b/c")
    with pytest.raises(UserError, match=re.escape(f"'{name}'")):
        run_stage(stage, name, params, paths)
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_changed_in_place_is_neither_trained_nor_scored_on(tmp_path):
    params, paths = load_params(ROOT / "params.yaml", "smoke"), Paths("smoke", tmp_path)
    spec = params.resolve("seg-fast")
    data = paths.dataset(spec.dataset)
    prepare_dataset(spec.dataset, params.dataset(spec.dataset), data)
    labels = next(data.rglob("ADE_train*.png"))
    labels.write_bytes(labels.read_bytes() + b"x")
    for stage in (train_experiment, evaluate_experiment):
        with pytest.raises(
            UserError, match=rf"{labels.name} was changed after .*; run `vpd data ade20k --scale smoke` again"
        ):
            stage(spec, paths)
    assert not [path for path in paths.runs(spec.name).rglob("*") if path.is_file()]


def test_weights_that_are_changed_in_place_are_neither_trained_nor_scored_on(tmp_path):
    params, paths = load_params(ROOT / "params.yaml", "smoke"), Paths("smoke", tmp_path)
    for name, stage in (("seg-fast", "checkpoint"), ("seg-clip", "backbone")):
        spec = params.resolve(name)
        prepare_dataset(spec.dataset, params.dataset(spec.dataset), paths.dataset(spec.dataset))
        (weights := paths.checkpoint(spec.checkpoint) / "model.safetensors").parent.mkdir(parents=True)
        weights.write_text("weights")
        write_manifest(weights.parent, Fingerprint("settings", "code"), {})
        weights.write_text("WEIGHTS")
        for run in (train_experiment, evaluate_experiment):
            with pytest.raises(UserError, match=rf"was changed after .*; run `vpd {stage} {spec.checkpoint} --scale"):
                run(spec, paths)
        assert not [path for path in paths.runs(name).rglob("*") if path.is_file()]


def test_dvc_is_told_of_files_outside_the_project_that_changed(tmp_path, monkeypatch):
    """DVC looks at outputs alone, so what was made of other bytes loses the fingerprint among them."""
    monkeypatch.chdir(tmp_path)
    params, paths = load_params(ROOT / "params.yaml", "smoke"), Paths("smoke")
    drawn = params.dataset("ade20k")
    prepare_dataset("ade20k", drawn, tmp_path / "mine")
    given = drawn.model_copy(update={"source": "folder", "path": str(tmp_path / "mine")})
    block = params.block.model_copy(update={"datasets": {**params.datasets, "ade20k": given}})
    document = params.document.model_copy(update={"scales": {**params.document.scales, "smoke": block}})
    params, note = Params(document, params.source), paths.dataset("ade20k") / "fingerprint.json"
    prepare_dataset("ade20k", given, paths.dataset("ade20k"))
    assert forget_changed(params, paths) == []
    assert note.is_file()
    labels = next((tmp_path / "mine").rglob("ADE_train*.png"))
    labels.write_bytes(labels.read_bytes() + b"x")
    assert forget_changed(params, paths) == ["data@ade20k"]
    assert not note.exists()
    assert forget_changed(params, paths) == []


@pytest.mark.parametrize(("output", "kept"), [("the same", True), ("another", False)])
def test_a_note_of_an_output_stays_with_equal_bytes_alone(tmp_path, monkeypatch, output, kept):
    monkeypatch.chdir(tmp_path)
    paths = Paths("smoke")
    note, made = paths.results / "tables" / "fingerprint.json", paths.results / "REPORT.md"
    write_json(note, {"code": "recorded"})
    made.write_text("the same")
    with keep_note("report", made, paths):
        note.unlink()  # as a new report does, whose folder of tables is new
        made.write_text(output)
    assert note.exists() is kept
