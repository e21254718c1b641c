"""Seeds run side by side where cores allow; their errors reach the caller and no orphan outlives it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forked import alive, wait_for
from vpd.config.params import load_params
from vpd.config.paths import Paths
from vpd.stages.data import prepare_dataset
from vpd.stages.training import evaluate_experiment, train_experiment, workers
from vpd.training.runs import gather_history
from vpd.utils.errors import UserError
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
    spec = load_params(ROOT / "params.yaml", "mini").resolve("seg-fast")
    assert (len(spec.seeds), spec.training.threads) == (3, 1)
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


def test_data_that_is_changed_in_place_is_neither_trained_nor_scored_on(tmp_path):
    params, paths = load_params(ROOT / "params.yaml", "smoke"), Paths("smoke", tmp_path)
    spec = params.resolve("seg-fast")
    data = paths.dataset(spec.dataset)
    prepare_dataset(spec.dataset, params.dataset(spec.dataset), data)
    labels = next(data.rglob("ADE_train*.png"))
    labels.write_bytes(labels.read_bytes() + b"x")
    for stage in (train_experiment, evaluate_experiment):
        with pytest.raises(UserError, match=rf"{labels.name} was changed after .*; run `vpd data ade20k` again"):
            stage(spec, paths)
    assert not [path for path in paths.runs(spec.name).rglob("*") if path.is_file()]
