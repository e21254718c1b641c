"""``vpd plan``: the graph against DVC's own, estimates against the files they read."""

import json
import re
from pathlib import Path

import pytest

from vpd.cli import main
from vpd.config.params import load_params
from vpd.planning.costs import read_entries
from vpd.planning.plan import (
    CHECKPOINT_BYTES,
    Computed,
    Estimate,
    Job,
    ancestors,
    describe,
    duration,
    estimates,
    makespan,
    read_graph,
    select,
)
from vpd.pretrained.stable_diffusion import FAMILIES, configs, network_tensors
from vpd.utils.disk import amount
from vpd.utils.errors import UserError

ROOT = Path(__file__).parent.parent
COSTS = ROOT / "workflow/costs.json"


@pytest.fixture(scope="module")
def paper():
    return load_params(ROOT / "params.yaml", "paper")


@pytest.fixture(scope="module")
def smoke():
    return load_params(ROOT / "params.yaml", "smoke")


# ---------------------------------------------------------------------------------------------------------------- graph
def test_jobs_outputs_and_dependencies_are_those_of_dvc():
    from dvc.repo import Repo

    jobs = read_graph(load_params(ROOT / "params.yaml"), ROOT / "dvc.yaml")
    with Repo(str(ROOT)) as repo:
        outs = {stage.addressing: {out.def_path for out in stage.outs} for stage in repo.index.stages}
        graph = repo.index.graph
        needs = {stage.addressing: {needed.addressing for needed in graph.successors(stage)} for stage in graph}
    assert outs.pop("outside")  # which only makes DVC look at folders outside the project
    needs = {name: stages - {"outside"} for name, stages in needs.items() if name != "outside"}
    assert {name: set(job.outs) for name, job in jobs.items()} == outs
    assert {name: set(job.needs) for name, job in jobs.items()} == needs


def test_jobs_come_after_what_they_need_and_ancestors_are_the_chain_to_an_experiment(paper):
    jobs, seen = read_graph(paper, ROOT / "dvc.yaml"), set()
    for name, job in jobs.items():
        assert set(job.needs) <= seen
        seen.add(name)
    wanted = ["data@captions", "data@nyuv2", "data@objects", "backbone@sam", "train@depth-sam", "evaluate@depth-sam"]
    assert set(ancestors(jobs, ["evaluate@depth-sam"])) == set(wanted)


def test_a_placeholder_that_names_nothing_is_reported(paper, tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: {all: {foreach: '${experimens}', do: {cmd: x, outs: ['${key}']}}}")
    with pytest.raises(UserError, match=r"\$\{experimens\} names nothing in params"):
        read_graph(paper, tmp_path / "dvc.yaml")
    with pytest.raises(UserError, match=r"none/dvc\.yaml does not exist"):
        read_graph(paper, tmp_path / "none/dvc.yaml")


# ------------------------------------------------------------------------------------------------------------ selection
def test_words_mean_experiments_tasks_tables_and_figures(paper):
    assert select(paper, []) == list(paper.experiments)
    matrix = list(paper.experiments)
    assert select(paper, ["seg-up", "seg-mid"]) == sorted(["seg-up", "seg-mid"], key=matrix.index)
    assert set(select(paper, ["depth"])) == {n for n, line in paper.experiments.items() if line.task == "depth"}
    assert set(select(paper, ["table6"])) == {"depth-full", "depth-sam", "depth-blip"}
    assert "seg-sd-1-3" in select(paper, ["figure3"])
    assert set(select(paper, ["table5"])) == {
        f"seg-{n}" for n in ("empty", "prompt", "adapter", "mid", "down", "up", "fast")
    }
    beyond = select(paper, ["beyond"])
    assert {"seg-t0", "seg-fast-sd-2-1", "depth-fast-pixart"} < set(beyond)
    assert not set(beyond) & set(select(paper, ["figure3", *paper.tables]))
    with pytest.raises(UserError, match="unknown experiment, task, table or figure 'tabel6'; did you mean 'table6'"):
        select(paper, ["tabel6"])


# ------------------------------------------------------------------------------------------------------------ estimates
def nothing_done(stage: str, key: str) -> bool:
    return False


def test_hours_and_disk_at_paper_scale_are_those_of_vpd_cost(paper, tmp_path):
    jobs, costs = read_graph(paper, ROOT / "dvc.yaml"), json.loads(COSTS.read_text())
    timing = tmp_path / "results/paper/timing/train/seg-full.json"
    timing.parent.mkdir(parents=True)
    timing.write_text('{"stage": "train", "name": "seg-full", "seconds": 7200}')
    found = estimates(paper, jobs, read_entries(COSTS, Computed), nothing_done, tmp_path)
    assert found["train@seg-full"].hours == 2  # what was recorded here comes before what was computed
    assert not any(estimate.done for estimate in found.values())
    for name, entry in costs.items():
        assert name == "seg-full" or found[f"train@{name}"].hours == pytest.approx(entry["hours"]["train"] / 8)
        assert found[f"evaluate@{name}"].hours == entry["hours"]["evaluate"]
        assert (found[f"train@{name}"].gpus, found[f"evaluate@{name}"].gpus) == (8, 1)
    seeds, milestones = len(paper.resolve("seg-fast").seeds), 2
    assert found["train@seg-fast"].written == 4 * costs["seg-fast"]["trainable"] * seeds * milestones
    assert found["checkpoint@sd-1-4"].written == CHECKPOINT_BYTES["stable-diffusion-1"]
    assert found["data@nyuv2"].written > found["data@nyuv2"].downloaded > 7.9e9
    released = found["released"]
    assert released.downloaded == released.written == 3.9e9 + 3 * 4.3e9 + 3.9e9 + 0.49e9  # kept as they are


def test_another_scales_costs_are_not_used(smoke, tmp_path):
    jobs = read_graph(smoke, ROOT / "dvc.yaml")
    found = estimates(smoke, jobs, read_entries(COSTS, Computed), nothing_done, tmp_path)
    assert found["train@seg-full"] == Estimate(False, None, gpus=0, cores=1)


@pytest.mark.parametrize(
    ("stale", "lost"),
    [
        (("checkpoint", "sd-1-5"), {"checkpoint@sd-1-5", "train@depth-full", "evaluate@depth-full"}),
        (("train", "depth-full"), {"train@depth-full", "evaluate@depth-full"}),
    ],
)
def test_done_is_what_is_current_with_all_that_it_needs(smoke, tmp_path, stale, lost):
    jobs = ancestors(read_graph(smoke, ROOT / "dvc.yaml"), ["evaluate@depth-full"])
    found = estimates(smoke, jobs, {}, lambda stage, key: (stage, key) != stale, tmp_path)
    assert {name for name, estimate in found.items() if not estimate.done} == lost


# ----------------------------------------------------------------------------------------------------------------- text
def test_the_table_adds_up():
    hours = {"data": 1.0, "long": 5.0, "short": None, "report": 2.0}
    jobs = {name: Job(name, "", (name,)) for name in hours}
    found = {name: Estimate(name == "data", value, gpus=1) for name, value in hours.items()}
    found["short"] = Estimate(False, None, gpus=1, written=2_000_000_000)
    lines = describe("title", jobs, found, gpus=2).splitlines()
    assert lines[0] == "title"
    short = describe("title", {"data": jobs["data"]}, {"data": Estimate(False, 0.004, cores=2)}, gpus=1).splitlines()
    assert short[-1].split() == ["all", "1", "0", "1", "-", "<", "0.1", "-", "-"]
    assert lines[-4].split() == ["all", "4", "1", "3", "7.0", "-", "-", "2.0", "GB"]
    assert lines[-2] == "About 5.0 h on 2 GPUs, trainings before evaluations."
    assert lines[-1].endswith("the time of short.")


@pytest.mark.parametrize(("gpus", "hours"), [(1, 64 + 9 + 5 + 2), (2, 32 + 9), (8, 8 + 9), (16, 4 + 9)])
def test_trainings_share_gpus_before_evaluations_take_one_each(gpus, hours):
    """Two trainings of four hours on eight GPUs, and their evaluations; one of a third training, which is done."""
    evaluations = {"a": 9.0, "b": 5.0, "c": 2.0}
    jobs = {name: Job(name, "", ()) for name in ("train-a", "train-b", "train-c")}
    found = {name: Estimate(name == "train-c", 4.0, gpus=8) for name in jobs}
    jobs |= {name: Job(name, "", (), needs=(f"train-{name}",)) for name in evaluations}
    found |= {name: Estimate(False, length, gpus=1) for name, length in evaluations.items()}
    assert makespan(jobs, found, gpus) == hours


def test_durations_in_words():
    assert [duration(hours) for hours in (0.004, 0.4, 30, 240)] == ["14 s", "24 min", "30.0 h", "10.0 days"]


def test_the_command_plans_one_table(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "table6", "--scale", "paper", "--gpus", "2"]) == 0
    printed, costs = capsys.readouterr().out, json.loads(COSTS.read_text())
    assert "scale paper, protocol official: 3 of 55 experiments" in printed
    hours = sum(costs[name]["hours"]["train"] for name in ("depth-full", "depth-sam", "depth-blip"))
    assert next(line.split()[4] for line in printed.splitlines() if line.startswith("train")) == f"{hours:.1f}"


def test_the_targets_of_a_table_are_jobs_of_dvc(capsys, monkeypatch, paper):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "table6", "--targets"]) == 0
    targets = capsys.readouterr().out.split()
    assert targets == ["evaluate@depth-full", "evaluate@depth-sam", "evaluate@depth-blip"]
    assert read_graph(paper, ROOT / "dvc.yaml").keys() >= set(targets)


def test_every_job_is_listed_with_what_it_needs(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--jobs", "--scale", "paper"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name, entry in json.loads(COSTS.read_text()).items():
        for stage in ("train", "evaluate"):
            needs = entry["resources"][stage]
            shown = re.split(r"  +", lines[f"{stage}@{name}"])
            assert shown[3:] == [
                str(needs["gpus"]), amount(needs["gpu_mem_mb"] * 2**20), amount(needs["mem_mb"] * 2**20), str(needs["cpus"])
            ]  # fmt: skip


def test_bytes_of_checkpoints_are_those_of_their_parameters():
    for name, family in FAMILIES.items():
        tensors = (network_tensors(part, configs(name)[part]).values() for part in family.networks)
        size = 4 * sum(tensor.numel() for own in tensors for tensor in own)
        assert CHECKPOINT_BYTES[name] == pytest.approx(size, rel=1e-3)
