"""``vpd plan``: the graph against DVC's own, estimates against the files they read."""

import cProfile
import json
import pstats
import re
import runpy
import shutil
from pathlib import Path

import pytest

from vpd.cli import main
from vpd.config.params import load_params
from vpd.utils.disk import amount
from vpd.planning.costs import read_entries
from vpd.planning.graph import Job, ancestors, read_graph
from vpd.planning.plan import SD1_BYTES, Computed, Estimate, describe, duration, estimates, select
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

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
    assert {name: set(job.outs) for name, job in jobs.items()} == outs
    assert {name: set(job.needs) for name, job in jobs.items()} == needs


def test_jobs_come_after_what_they_need(paper):
    seen = set()
    for name, job in read_graph(paper, ROOT / "dvc.yaml").items():
        assert set(job.needs) <= seen
        seen.add(name)


def test_ancestors_are_the_chain_to_an_experiment_and_nothing_else(paper):
    jobs = read_graph(paper, ROOT / "dvc.yaml")
    wanted = ["data@captions", "data@nyuv2", "data@objects", "backbone@sam", "train@depth-sam", "evaluate@depth-sam"]
    assert set(ancestors(jobs, ["evaluate@depth-sam"])) == set(wanted)


def test_a_placeholder_that_names_nothing_is_reported(paper, tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: {all: {foreach: '${experimens}', do: {cmd: x, outs: ['${key}']}}}")
    with pytest.raises(UserError, match=r"\$\{experimens\} names nothing .* did you mean 'experiments'"):
        read_graph(paper, tmp_path / "dvc.yaml")
    with pytest.raises(UserError, match=r"none/dvc\.yaml does not exist"):
        read_graph(paper, tmp_path / "none/dvc.yaml")


# ------------------------------------------------------------------------------------------------------------ many
MANY = 250


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder with the workflow and MANY experiments, as the benchmark makes them."""
    folder = tmp_path_factory.mktemp("many")
    enlarged = runpy.run_path(str(ROOT / "benchmarks/many_experiments.py"))["enlarged"]
    (folder / "params.yaml").write_text(enlarged((ROOT / "params.yaml").read_text(), MANY))
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    return folder


def test_hundreds_of_experiments_have_the_graph_that_dvc_has(many):
    from dvc.repo import Repo

    params = load_params(many / "params.yaml")
    jobs = read_graph(params, many / "dvc.yaml")
    with Repo.init(str(many), no_scm=True) as repo:
        graph = repo.index.graph
        needs = {stage.name: {needed.name for needed in graph.successors(stage)} for stage in graph}
    assert {name: set(job.needs) for name, job in jobs.items()} == needs
    for stage in ("train", "evaluate"):
        assert {job.key for job in jobs.values() if job.stage == stage} == set(params.experiments)
    assert len(params.experiments) == MANY


def calls(profile: cProfile.Profile, file: str, function: str) -> int:
    """How often a function was called."""
    found = pstats.Stats(profile).stats.items()
    return sum(count for (path, _, name), (_, count, *_) in found if path.endswith(file) and name == function)


@pytest.mark.parametrize("command", [["plan"], ["plan", "--jobs"], ["show"]])
def test_a_command_reads_params_once_and_resolves_each_experiment_once(command, many, monkeypatch, capsys):
    monkeypatch.chdir(many)
    with cProfile.Profile() as profile:
        assert main(command) == 0
    assert calls(profile, "vpd/config/params.py", "load_params") == 1
    assert calls(profile, "vpd/config/params.py", "_resolve") == MANY
    assert calls(profile, "yaml/__init__.py", "load") <= 4  # params.yaml, dvc.yaml and the report's own tables
    assert "250" in capsys.readouterr().out or command == ["show"]


# ------------------------------------------------------------------------------------------------------------ selection
def test_words_mean_experiments_tasks_tables_and_figures(paper):
    assert select(paper, []) == list(paper.experiments)
    matrix = list(paper.experiments)
    assert select(paper, ["seg-up", "seg-mid"]) == sorted(["seg-up", "seg-mid"], key=matrix.index)
    assert set(select(paper, ["depth"])) == {n for n, line in paper.experiments.items() if line.task == "depth"}
    assert set(select(paper, ["table6"])) == {"depth-full", "depth-sam", "depth-blip"}
    assert "seg-sd-1-3" in select(paper, ["figure3"])
    with pytest.raises(UserError, match="unknown experiment, task, table or figure 'tabel6'; did you mean 'table6'"):
        select(paper, ["tabel6"])


# ------------------------------------------------------------------------------------------------------------ estimates
def test_hours_and_disk_at_paper_scale_are_those_of_vpd_cost(paper, tmp_path):
    jobs, costs = read_graph(paper, ROOT / "dvc.yaml"), json.loads(COSTS.read_text())
    found = estimates(paper, jobs, read_entries(COSTS, Computed), tmp_path)
    assert not any(estimate.done for estimate in found.values())
    for name, entry in costs.items():
        assert found[f"train@{name}"].hours == pytest.approx(entry["hours"]["train"] / 8)
        assert found[f"evaluate@{name}"].hours == entry["hours"]["evaluate"]
        assert (found[f"train@{name}"].gpus, found[f"evaluate@{name}"].gpus) == (8, 1)
    seeds, milestones = len(paper.resolve("seg-fast").seeds), 2
    assert found["train@seg-fast"].written == 4 * costs["seg-fast"]["trainable"] * seeds * milestones
    assert found["checkpoint@sd-1-4"].written == SD1_BYTES
    assert found["data@nyuv2"].written > 10e9


def test_what_was_recorded_here_comes_before_what_was_computed(paper, tmp_path):
    timing = tmp_path / "results/paper/timing/train/seg-full.json"
    timing.parent.mkdir(parents=True)
    timing.write_text('{"seconds": 7200}')
    jobs = read_graph(paper, ROOT / "dvc.yaml")
    assert estimates(paper, jobs, read_entries(COSTS, Computed), tmp_path)["train@seg-full"].hours == 2


def test_another_scales_costs_are_not_used(smoke, tmp_path):
    jobs = read_graph(smoke, ROOT / "dvc.yaml")
    found = estimates(smoke, jobs, read_entries(COSTS, Computed), tmp_path)
    assert found["train@seg-full"] == Estimate(False, None, gpus=0, cores=1)


@pytest.fixture
def finished(smoke, tmp_path):
    """A folder in which everything that depth-full needs has been made, at the smoke scale."""
    for job in ancestors(read_graph(smoke, ROOT / "dvc.yaml"), ["evaluate@depth-full"]).values():
        for out in job.outs:
            path = tmp_path / out
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text("{}")
    manifest = tmp_path / "results/smoke/runs/depth-full/manifest.json"
    manifest.write_text(json.dumps({"spec": smoke.resolve("depth-full").training_digest()}))
    return tmp_path


def present(params, root: Path) -> set[str]:
    jobs = ancestors(read_graph(params, ROOT / "dvc.yaml"), ["evaluate@depth-full"])
    return {name for name, estimate in estimates(params, jobs, {}, root).items() if estimate.done}


def test_done_is_what_is_there_with_all_that_it_needs(smoke, finished):
    made = present(smoke, finished)
    assert {"evaluate@depth-full", "train@depth-full", "checkpoint@sd-1-5", "data@nyuv2"} <= made
    shutil.rmtree(finished / "checkpoints/smoke/sd-1-5")
    assert made - present(smoke, finished) == {"checkpoint@sd-1-5", "train@depth-full", "evaluate@depth-full"}


def test_a_run_of_other_settings_is_not_done(smoke, finished):
    manifest = finished / "results/smoke/runs/depth-full/manifest.json"
    before = present(smoke, finished)
    manifest.write_text(json.dumps({**read_json(manifest), "spec": "of another learning rate"}))
    assert before - present(smoke, finished) == {"train@depth-full", "evaluate@depth-full"}


def test_a_file_that_holds_no_costs_is_named(tmp_path):
    (tmp_path / "costs.json").write_text('{"seg-full": {"hours": {}}}')
    with pytest.raises(UserError, match=r"costs\.json is not a file of costs \(seg-full\.resources\)"):
        read_entries(tmp_path / "costs.json", Computed)


# ----------------------------------------------------------------------------------------------------------------- text
def test_the_table_adds_up():
    hours = {"data": 1.0, "long": 5.0, "short": None, "report": 2.0}
    jobs = {name: Job(name, "", (name,)) for name in hours}
    found = {name: Estimate(name == "data", value, gpus=1) for name, value in hours.items()}
    found["short"] = Estimate(False, None, gpus=1, written=2_000_000_000)
    lines = describe("title", jobs, found, gpus=2).splitlines()
    assert lines[0] == "title"
    assert lines[-4].split() == ["all", "4", "1", "3", "7.0", "0.0", "2.0", "GB"]
    assert lines[-2] == "At least 3.5 h on 2 GPUs, if all are busy all the time."
    assert lines[-1].endswith("the time of short.")


@pytest.mark.parametrize(("hours", "text"), [(0.4, "24 min"), (30, "30.0 h"), (240, "10.0 days")])
def test_durations_in_words(hours, text):
    assert duration(hours) == text


def test_the_command_plans_one_table(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "table6", "--scale", "paper", "--gpus", "2"]) == 0
    printed, costs = capsys.readouterr().out, json.loads(COSTS.read_text())
    assert "scale paper, protocol official: 3 of 47 experiments" in printed
    hours = sum(costs[name]["hours"]["train"] for name in ("depth-full", "depth-sam", "depth-blip"))
    assert next(line.split()[4] for line in printed.splitlines() if line.startswith("train")) == f"{hours:.1f}"


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


def test_the_documentations_total_is_that_of_the_costs():
    page, costs = (ROOT / "docs/paper-scale.md").read_text(), json.loads(COSTS.read_text())
    total = sum(hours for entry in costs.values() for hours in entry["hours"].values())
    assert f"needs {total:,.0f} of them" in page


@pytest.mark.parametrize("arguments", [["--gpus", "0"], ["--gpus", "some"]])
def test_numbers_of_machines_are_checked(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert ended.value.code == 2
    assert "no number of 1 or more" in capsys.readouterr().err
