"""dvc.yaml and the Snakefile describe the same graph: the same commands, outputs and inputs."""

import contextlib
import io
import json
import os
import pstats
import re
import runpy
import signal
import subprocess
import sys
import time
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml

from vpd.config.params import load_params
from vpd.config.paths import Paths
from vpd.stages.engine import chosen, set_aside_damaged
from vpd.utils.errors import UserError

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"^(src/vpd/|weights$)")


@pytest.fixture(scope="module")
def dvc_stages():
    """Command -> (name, outputs, inputs) of every DVC stage, at the scale that params.yaml names.

    Only DVC, which does not see folders outside the project, has a stage that looks at them.
    """
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        return {
            " ".join(stage.cmd.split()): (
                stage.addressing,
                {out.def_path for out in stage.outs},
                {dep.def_path for dep in stage.deps} - {"params.yaml", ".vpd/mini/outside.txt"},
            )
            for stage in repo.index.stages
            if stage.addressing != "outside"
        }


@pytest.fixture(scope="module")
def snakemake_jobs():
    """Command -> (rule, outputs, inputs, priority) of every Snakemake job, without its log."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import DAGSettings, OutputSettings, Quietness, ResourceSettings

    with (
        contextlib.chdir(ROOT),
        SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        workflow = api.workflow(resource_settings=ResourceSettings(cores=1), snakefile=ROOT / "Snakefile")
        workflow.dag(dag_settings=DAGSettings(forceall=True)).printrulegraph()
        jobs = [job for job in workflow._workflow.dag.jobs if job.shellcmd]
        return {
            " ".join(job.shellcmd.split(" 2>&1 ")[0].split()): (
                job.rule.name,
                set(map(str, job.output)),
                declared(job.input),
                job.rule.expand_priority(job.wildcards, job.input, 1),
            )
            for job in jobs
        }


def declared(files):
    """All inputs of a job but its key, in whose place Snakemake puts what the key still waits for."""
    named = ((name, [value] if isinstance(value, str) else value) for name, value in files._allitems())
    return {str(path) for name, value in named if name != "key" for path in value}


def covered(path, declared):
    """Whether a declared file or folder holds ``path``."""
    return any(path == whole or path.startswith(whole + "/") for whole in declared)


def test_dvc_looks_outside_the_project_before_every_stage_that_may_use_what_is_there():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    made = next(iter(stages["outside"]["outs"][0]))
    waiting = {name for name, stage in stages.items() if made in stage.get("do", stage).get("deps", [])}
    assert waiting == {"data", "checkpoint", "backbone", "released"}
    assert stages["outside"]["always_changed"]


def test_same_commands(dvc_stages, snakemake_jobs):
    assert set(dvc_stages) == set(snakemake_jobs)


def test_stage_names_are_rule_names(dvc_stages, snakemake_jobs):
    assert {cmd: name.split("@")[0] for cmd, (name, _, _) in dvc_stages.items()} == {
        cmd: rule for cmd, (rule, *_) in snakemake_jobs.items()
    }


def test_trainings_that_carry_claims_come_first_and_each_evaluation_before_the_next_training(snakemake_jobs):
    params = load_params(ROOT / "params.yaml")
    priorities = {
        stage: {cmd.split()[2]: priority for cmd, (rule, *_, priority) in snakemake_jobs.items() if rule == stage}
        for stage in ("train", "evaluate")
    }
    order = sorted(priorities["train"], key=priorities["train"].__getitem__, reverse=True)
    single = [params.experiments[name].seeds == "single" for name in order]
    assert single == sorted(single)
    assert len(set(priorities["train"].values())) == len(order)
    assert max(priorities["train"].values()) < min(priorities["evaluate"].values())


@pytest.mark.parametrize("which", [1, 2], ids=["outputs", "inputs"])
def test_same_files(dvc_stages, snakemake_jobs, which):
    """Each of Snakemake's files lies in one that DVC declares, and each of DVC's holds one of Snakemake's.

    Code and weights in git are no inputs of Snakemake's jobs: they are in their keys.
    """
    for command, files in dvc_stages.items():
        job = snakemake_jobs[command]
        stage = [{path for path in part if not CODE.match(path)} if isinstance(part, set) else part for part in files]
        assert [path for path in sorted(job[which]) if not covered(path, stage[which])] == [], (
            f"not in dvc.yaml: {command}"
        )
        assert [path for path in sorted(stage[which]) if not any(covered(file, {path}) for file in job[which])] == [], (
            f"not in the Snakefile: {command}"
        )


def test_a_new_clone_can_ask_for_several_datasets_at_once(tmp_path):
    """Snakemake remembers what it found in a folder, and the keys of all of them are written while it plans."""
    wanted = [f"data/smoke/{name}/manifest.json" for name in ("ade20k", "nyuv2", "refcoco")]
    command = [sys.executable, "-m", "snakemake", "-n", "--config", "scale=smoke", "--", *wanted]
    done = subprocess.run(command, cwd=project(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


# --------------------------------------------------------------------------------------------------------- one Snakemake
def project(folder: Path) -> Path:
    """A folder in which Snakemake can make the smallest dataset."""
    for name in ("Snakefile", "params.yaml", "workflow", "profiles"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def snakemake(*arguments: str) -> list[str]:
    """Command that prints how long each timer runs that Snakemake sets, and makes the smallest dataset."""
    noted = "import threading; start = threading.Timer.start; from snakemake.cli import main; "
    noted += "threading.Timer.start = lambda timer: (print('a timer of', timer.interval), start(timer)); main()"
    return [sys.executable, "-c", noted, "--cores", "1", *arguments, "--config", "scale=smoke", "--", SMALLEST]


SMALLEST = "data/smoke/captions/manifest.json"


def test_snakemake_goes_on_after_a_kill_and_ends_with_its_last_job(tmp_path):
    """The locks of a killed one are removed, those of a living one are not, and nothing polls when the jobs are done."""
    command, folder = snakemake(), project(tmp_path)
    engine = subprocess.Popen(command, cwd=folder, start_new_session=True)
    wait_for_locks(folder, engine)
    engine.send_signal(signal.SIGSTOP)
    try:
        other = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert other.returncode != 0
        assert "Directory cannot be locked" in other.stderr
    finally:
        os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
    assert list((folder / ".snakemake/locks").iterdir())
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "An earlier Snakemake was killed; its locks are removed." in done.stderr
    assert (folder / SMALLEST).is_file()
    assert "a timer of" not in done.stdout


def wait_for_locks(folder: Path, engine: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(".snakemake/locks/*")) and time.monotonic() < deadline:
        assert engine.poll() is None, "snakemake ended by itself"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, None),
        ({"scale": "smoke"}, None),
        ({"scale": "smoke", "protocol": "paper"}, None),
        ({"scal": "smoke"}, "set no 'scal': did you mean 'scale'?"),
        ({"scale": "smoke", "protcol": "paper"}, "set no 'protcol': did you mean 'protocol'?"),
        ({"Scale": "smoke"}, "set no 'Scale': did you mean 'scale'?"),
        ({"experiments": {"seg-fast": {}}}, "set no 'experiments': (known: protocol, scale); params.yaml is"),
        ({"schema": 1, "scale": "smoke"}, "set no 'schema'"),
        ({"scale": None}, "--config scale is None, which is no name"),
        ({"scale": 1}, "--config scale is 1"),
        ({"scale": True}, "--config scale is True"),
        ({"protocol": ["paper"]}, "--config protocol is ['paper']"),
        ({"scale": {"smoke": 1}}, "--config scale is {'smoke': 1}"),
    ],
)
def test_what_a_user_gives_snakemake_counts_or_is_refused(config, said):
    if said is None:
        assert chosen(config) == config
        return
    with pytest.raises(UserError) as refused:
        chosen(config)
    assert said in str(refused.value)


@pytest.mark.parametrize("given", [["--config", "scal=smoke"], ["--configfile", "other.yaml"]])
def test_snakemake_ends_with_the_sentence(tmp_path, given):
    (tmp_path / "other.yaml").write_text("scal: smoke\n")
    command = [sys.executable, "-m", "snakemake", "-n", *given]
    done = subprocess.run(command, cwd=project(tmp_path), capture_output=True, text=True)
    assert done.returncode != 0
    assert "--config and --configfile set no 'scal': did you mean 'scale'?" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_both_hold_the_whole_matrix(dvc_stages):
    params = load_params(ROOT / "params.yaml")
    names = {name for name, _, _ in dvc_stages.values()}
    wanted = {f"{stage}@{name}" for stage in ("train", "evaluate") for name in params.experiments}
    wanted |= {f"data@{name}" for name in params.datasets} | {f"checkpoint@{name}" for name in params.checkpoints}
    wanted |= {f"backbone@{name}" for name in params.backbones}
    assert names == wanted | {"pretrain", "measure", "ship", "released", "report", "track"}


@pytest.mark.parametrize("scale", ["smoke", "mini", "scratch", "paper"])
def test_every_scale_has_the_settings_that_dvc_looks_up(scale):
    """DVC fails a stage if one of its parameters is not in params.yaml, even if that has a default."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    named = {param for stage in stages for param in stage.get("do", stage).get("params", [])}
    keys = {key.replace("${scale}", scale) for key in named if not re.search(r"\$\{(?!scale)", key)}
    assert f"scales.{scale}.measures" in keys
    for key in keys:
        reduce(getitem, key.split("."), document)


WALLS = {
    "data": {"datasets", "world", "download"},
    "pretrain": {"pretraining", *(f"datasets/{n}" for n in ("captions", "images"))},
    "checkpoint": {"pretrained", "pretraining", *(f"datasets/{n}" for n in ("captions", "images"))},
    "measure": {
        *("measures", "pretraining", "world"),
        *(f"datasets/{n}" for n in ("captions", "images")),
        *(f"models/{n}" for n in ("attention", "base", "diffusion", "prompts", "text")),
    },
    "backbone": {
        "pretraining",
        "pretrained",
        "models/backbones",
        *(f"datasets/{n}" for n in ("captions", "images", "objects")),
    },
    "train": {"datasets", "models", "training"},
    "evaluate": {"datasets", "models", "evaluation"},
    "ship": {"pretrained", "stages/shipping"},
    "released": {"datasets", "models", "evaluation", "pretrained"},
    "report": {"report", "config"},
    "track": {"tracking"},
}
"""The code whose change can change a stage's output."""


def test_a_stage_depends_on_the_code_that_decides_its_output(dvc_stages):
    for name, _, inputs in dvc_stages.values():
        code = {path.removeprefix("src/vpd/").removesuffix(".py") for path in inputs if CODE.match(path)} - {"weights"}
        assert code == WALLS[name.split("@")[0]], name


def test_the_codes_own_fingerprints_stay_within_these_walls():
    """DVC looks at least at what the code itself looks at; otherwise it would miss a change that the code knows to matter."""
    from vpd.evaluation.results import CODE as EVALUATION
    from vpd.training.runs import CODE as TRAINING

    assert set(TRAINING) == WALLS["train"]
    assert set(EVALUATION) == WALLS["evaluate"]
    for stage in ("data", "pretrain", "checkpoint", "measure", "backbone", "ship"):
        used = packages_of(stage)
        assert used, stage
        assert all(any(f"{package}/".startswith(f"{wall}/") for wall in WALLS[stage]) for package in used), (
            stage,
            used,
        )


def packages_of(stage):
    """Packages whose digests go into the fingerprints of a stage, at every scale."""
    from vpd.stages import keys
    from vpd.utils import fingerprint

    used = set()

    def spy(*packages):
        used.update(packages)
        return "c0de"

    with pytest.MonkeyPatch.context() as patch:
        original = fingerprint.code_digest
        for module in [module for name, module in sys.modules.items() if name.startswith("vpd.")]:
            if getattr(module, "code_digest", None) is original:
                patch.setattr(module, "code_digest", spy)
            if hasattr(module, "manifest_path"):  # inputs need not be there to know which code counts
                patch.setattr(module, "manifest_path", lambda folder: ROOT / "pyproject.toml")
        for scale in ("smoke", "mini", "paper"):
            params = load_params(ROOT / "params.yaml", scale)
            names = {"data": params.datasets, "checkpoint": params.checkpoints, "backbone": params.backbones}
            for name in names.get(stage, [""]):
                keys.is_current(stage, name, params, Paths(scale, ROOT))
    return used


# ------------------------------------------------------------------------------------------------------------- the paths
def test_both_workflows_declare_the_files_that_the_code_writes(dvc_stages):
    """vpd.config.paths is the third place that knows them, and the only one that the commands use."""
    declared = {path for _, outputs, _ in dvc_stages.values() for path in outputs}
    params = load_params(ROOT / "params.yaml")
    paths, name, task = Paths(params.scale), "seg-fast", "train"
    written = [
        paths.runs(name),
        paths.spec(name),
        paths.history(name),
        paths.timing(task, name),
        *paths.evaluated(name),
    ]
    written += [paths.measures, paths.pretraining, paths.checkpoint("sd-1-5"), paths.backbone_facts("sam")]
    written += [paths.dataset("ade20k"), paths.released, paths.tracked, paths.results / "REPORT.md"]
    for path in written:
        assert covered(path.as_posix(), declared), path


# ----------------------------------------------------------------------------------------------------------- paper scale
@pytest.fixture(scope="module")
def at_paper_scale(tmp_path_factory):
    """A clean copy of the project with the first line of params.yaml edited; nothing has been run."""
    from test_reproduce import copy_of_project

    folder = copy_of_project(tmp_path_factory.mktemp("paper"))
    params = folder / "params.yaml"
    params.write_text(re.sub(r"(?m)^scale: \w+", "scale: paper", params.read_text()))
    return folder


def test_dvc_lists_the_whole_of_paper_scale(at_paper_scale):
    from test_reproduce import run

    listed = run("dvc repro --dry --force", at_paper_scale)
    params = load_params(ROOT / "params.yaml", "paper")
    for name in params.experiments:
        assert f"vpd train {name} --scale paper" in listed
        assert f"vpd evaluate {name} --scale paper" in listed
    for name in (*params.datasets, "released"):
        assert re.search(rf"vpd (data )?{name} --scale paper", listed)


def test_snakemake_lists_the_whole_of_paper_scale_with_what_each_job_needs(at_paper_scale):
    from test_reproduce import run

    listed = run("snakemake -n --config scale=paper", at_paper_scale)
    costs = json.loads((ROOT / "workflow/costs.json").read_text())
    for stage in ("train", "evaluate"):
        jobs = re.findall(rf"rule {stage}:.*?wildcards: name=(\S+).*?resources: ([^\n]*)", listed, flags=re.S)
        assert sorted(name for name, _ in jobs) == sorted(load_params(ROOT / "params.yaml", "paper").experiments)
        for name, resources in jobs:
            found = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", resources)}
            wanted = costs[name]["resources"][stage]
            assert found["gpu"] == wanted["gpus"], name
            assert all(found[key] == wanted[key] for key in ("gpu_mem_mb", "mem_mb", "runtime")), name


PAGE = (ROOT / "docs/one-table.md").read_text(encoding="utf-8")
ONE_TABLE = re.findall(r"`(snakemake --profile .*?)`", PAGE)


@pytest.mark.parametrize(("command", "gpus"), zip(ONE_TABLE, (1, 8, 8), strict=True))
def test_one_table_is_a_target_and_its_trainings_share_the_gpus_there_are(at_paper_scale, command, gpus):
    """A training that may use eight gets those there are, an evaluation one; trainings come first."""
    from test_reproduce import run

    listed = run(command.replace(" -- ", " -n -- "), at_paper_scale)
    found = {
        rule: [int(number) for number in re.findall(rf"rule {rule}:(?:(?!\nrule ).)*?\bgpu=(\d+)", listed, flags=re.S)]
        for rule in ("train", "evaluate")
    }
    assert found == {"train": 7 * [gpus], "evaluate": 7 * [1]}
    assert len(re.findall(r"^    priority: 6\.\d+$", listed, re.M)) == 7  # of evaluations 0, which is not printed
    (downloads,) = re.findall(r"^snakemake .* -- (.*)$", PAGE, re.M)
    assert all(f"output: {file}" in listed for file in downloads.split())


# ---------------------------------------------------------------------------------------------------------------- many
@pytest.mark.cluster
def test_snakemake_lists_hundreds_of_experiments_and_resolves_each_once(tmp_path):
    from test_reproduce import copy_of_project, run

    folder, count = copy_of_project(tmp_path), 250
    params = folder / "params.yaml"
    enlarged = runpy.run_path(str(ROOT / "benchmarks/many_experiments.py"))["enlarged"]
    params.write_text(enlarged(params.read_text(), count))
    listed = run("python -m cProfile -o profile $(which snakemake) -n", folder)
    names = list(load_params(params).experiments)
    assert len(names) == count
    for stage in ("train", "evaluate"):
        assert sorted(re.findall(rf"rule {stage}:.*?wildcards: name=(\S+)", listed, flags=re.S)) == sorted(names)
    called = {
        (Path(file).name, name): found[1]
        for (file, _, name), found in pstats.Stats(str(folder / "profile")).stats.items()
    }
    assert called["params.py", "load_params"] == 1
    assert called["params.py", "_check_names"] == count


LOCK = "schema: '2.0'\nstages:\n  data@a:\n    cmd: vpd data a\n    deps:\n    - path: b\n      size: 3\n"


@pytest.mark.parametrize(
    ("text", "damaged"),
    [
        (LOCK, False),
        ("schema: '2.0'\nstages: {}\n", False),
        ("", True),
        (LOCK[: LOCK.index("stages")], False),
        (LOCK[: LOCK.index("    cmd")], True),
        (LOCK[: LOCK.index("@a") + 1], True),
        (LOCK.replace("size: 3", "size: ["), True),
        (f"<<<<<<< HEAD\n{LOCK}=======\n{LOCK}>>>>>>> other\n", True),
        (LOCK.replace("2.0", "1.0"), True),
        ("\0" * 100, True),
    ],
)
def test_a_damaged_dvc_lock_is_set_aside_and_what_it_held_stays(tmp_path, text, damaged):
    """DVC empties the file before it writes it, and refuses to start on what a kill leaves."""
    lock = tmp_path / "dvc.lock"
    assert set_aside_damaged(lock) is None
    lock.write_text(text)
    aside = set_aside_damaged(lock)
    assert aside == (tmp_path / "dvc.lock.damaged" if damaged else None)
    assert lock.exists() is not damaged
    assert (aside or lock).read_text() == text
