"""A group's work: many processes on one data folder and on one MLflow server with PostgreSQL, with and without logins.

All engines are real and started here. Run with `make test-cluster`.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from evaluated_world import write_evaluated
from postgres_lab import (
    ADD_USER,
    ADMIN_PASSWORD,
    PASSWORD,
    PREPARE_LOGINS,
    QUOTED,
    SERVE,
    SERVE_WITH_LOGINS,
    WORK,
    Postgres,
    filled,
    postgres,
    serving,
)
from tracking_world import SEEDS, STEPS, Server, free_port, table5, write_depth, write_results
from vpd.config.params import load_params
from vpd.config.schema import load_spec
from vpd.utils.digests import changed, sha256
from vpd.utils.files import read_json
from vpd.utils.fingerprint import read_manifest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parent.parent
NAMES = ["seg-full", "seg-fast", "seg-mid", "seg-up"]
"""Experiments on one dataset and one checkpoint, one per machine."""
VPD = f"{sys.executable} -m vpd"
LIVE = "seg-untrained"
"""Another one, which trains longer."""
STEPS_OF_A_JOB, STEPS_OF_LIVE, EXPERIMENTS = 5, 60, 2


# ------------------------------------------------------------------------------------------------------------------ labs
@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(scope="module")
def server(database: Postgres, tmp_path_factory) -> Iterator[Server]:
    """The group's server; its database is called ``mlflow``."""
    with serving(SERVE, tmp_path_factory.mktemp("server"), database) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(database: Postgres, tmp_path_factory) -> Iterator[Server]:
    """The same with logins."""
    database.shell(PREPARE_LOGINS)
    database.create("guarded")
    command = SERVE_WITH_LOGINS.replace("5432/mlflow\n", "5432/guarded\n")  # the other server has that one
    with serving(command, tmp_path_factory.mktemp("guarded"), database) as running:
        yield running


def on_machine(place: Path, command: str, **environment: str) -> subprocess.Popen:
    """Start a shell command in ``place`` as on a machine of its own: other home, other temporary folder."""
    for name in ("home", "tmp"):
        (place / name).mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    own = {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "OMP_NUM_THREADS": "1", **environment}
    with open(place / "said.txt", "w") as said:
        return subprocess.Popen(["sh", "-ec", command], cwd=place, env={**kept, **own}, stdout=said, stderr=said)


def finished(process: subprocess.Popen, place: Path, code: int = 0) -> str:
    """All that a process said, once it has ended with ``code``; no traceback and no password."""
    process.wait()
    said = (place / "said.txt").read_text()
    assert process.returncode == code, said
    for never in ("Traceback", PASSWORD, QUOTED, ADMIN_PASSWORD):
        assert never not in said
    return said


def on_machines(places: list[Path], command: str, **environment: str) -> list[str]:
    """What the command said on each of several machines on which it was started at once."""
    started = [on_machine(place, command.replace("PLACE", str(place)), **environment) for place in places]
    return [finished(process, place) for process, place in zip(started, places, strict=True)]


def sentence(place: Path, command: str, **environment: str) -> str:
    """The one sentence with which a command ends that the user can cure."""
    said = finished(on_machine(place, command, **environment), place, code=2)
    own = [line for line in said.splitlines() if "is not registered" not in line]
    assert len(own) == 1, said
    assert own[0].startswith("vpd: MLflow "), said
    return own[0]


# ---------------------------------------------------------------------------------------------------- what PostgreSQL has
def active_runs(database: Postgres, experiment: str, name: str = "mlflow") -> list[tuple[str, str, str]]:
    """(key, id, status) of every run that is not deleted."""
    return database.ask(
        "SELECT tags.value, runs.run_uuid, runs.status FROM runs JOIN experiments USING (experiment_id)"
        " JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'vpd.key'"
        f" WHERE runs.lifecycle_stage = 'active' AND experiments.name = '{experiment}' ORDER BY 1",
        name,
    )


def points(database: Postgres, run: str, prefix: str, name: str = "mlflow") -> list[tuple[str, int, float]]:
    """(metric, step, value) of the points of a run, as often as they are there."""
    query = f"SELECT key, step, value FROM metrics WHERE run_uuid = '{run}' AND key LIKE '{prefix}/%'"
    return sorted(database.ask(query, name))


def versions(database: Postgres, model: str, name: str = "mlflow") -> list[int]:
    """Versions of a registered model."""
    where = f"name = '{model}' AND current_stage != 'Deleted_Internal'"
    return [
        version for (version,) in database.ask(f"SELECT version FROM model_versions WHERE {where} ORDER BY 1", name)
    ]


def history(path: Path) -> list[tuple[str, int, float]]:
    """(metric, step, value) of every cell of a history.csv."""
    with open(path, newline="") as file:
        rows = [(int(row.pop("step")), row) for row in csv.DictReader(file)]
    return sorted((f"train/{k}", step, float(row[k])) for step, row in rows for k in row if k != "seed")


# ------------------------------------------------------------------------------------------------------ several at once
class Group:
    """One shared folder, and machines of which each trains an experiment, from nothing."""

    def __init__(self, root: Path, uri: str) -> None:
        self.root, self.uri, self.shared = root, uri, root / "shared"
        document = yaml.safe_load((ROOT / "params.yaml").read_text())
        smoke = document["scales"]["smoke"]["tasks"]["segmentation"]
        smoke["schedules"] |= {key: {"training": {"steps": STEPS_OF_A_JOB}} for key in ("full", "fast")}
        document["experiments"][LIVE]["training"] = {"steps": STEPS_OF_LIVE}
        (root / "params.yaml").write_text(yaml.safe_dump(document))
        self.params = load_params(root / "params.yaml", "smoke")
        self.given = f"--params {root / 'params.yaml'} --scale smoke"
        self.machines = {name: self.machine(name) for name in NAMES}

    def machine(self, name: str) -> Path:
        """A project's folder whose datasets and checkpoints are the shared ones."""
        place = self.root / name
        place.mkdir()
        for kind in ("data", "checkpoints"):
            (self.shared / kind).mkdir(parents=True, exist_ok=True)
            (place / kind).symlink_to(self.shared / kind)
        return place

    def train(self, name: str) -> str:
        """Train one experiment, logged live."""
        return f"{VPD} train {name} {self.given} --live {self.uri}"

    def measure(self, place: Path, name: str, steps: int, value: float) -> None:
        """Write what `vpd evaluate` writes, with an invented number."""
        results = place / "results/smoke"
        spec = load_spec(results / "specs" / f"{name}.json")
        row = {"seed": 0, "milestone": "final", "step": steps, "metrics": {"miou_ss": value}}
        write_evaluated(results, name, [row], spec.digest())

    def track(self, uri: str) -> str:
        """Track the results of a machine."""
        return f"{VPD} track {self.given} --uri '{uri}'"

    def key(self, name: str) -> str:
        """Identity of the experiment's run."""
        return f"smoke/official/{name}/seed0"


@pytest.fixture(scope="module")
def group(server: Server, tmp_path_factory) -> Group:
    """Machines that began at once, when there was nothing yet, and have trained."""
    group = Group(tmp_path_factory.mktemp("group"), server.uri)
    places = list(group.machines.values())
    stages = ("data captions", "data ade20k", "pretrain", "checkpoint sd-1-5")
    group.said = on_machines(places, " && ".join(f"{VPD} {stage} {group.given}" for stage in stages))
    started = {name: on_machine(place, group.train(name)) for name, place in group.machines.items()}
    for number, (name, process) in enumerate(started.items()):
        finished(process, group.machines[name])
        group.measure(group.machines[name], name, STEPS_OF_A_JOB, number + 0.1)
    return group


@pytest.fixture(scope="module")
def tracked(group: Group, server: Server) -> list[str]:
    """What the machines said when all of them tracked at once."""
    return on_machines(list(group.machines.values()), group.track(server.uri))


def test_one_machine_prepares_and_the_others_train_on_the_same(group):
    for made in ("hashing captions", "hashing ade20k", "pretraining.denoiser"):
        assert sum(made in said for said in group.said) == 1, made
    for folder in ("data/smoke/captions", "data/smoke/ade20k", "checkpoints/smoke/sd-1-5"):
        assert changed(group.shared / folder, read_manifest(group.shared / folder)["files"]) == []
    folders = {"data": "data/smoke/ade20k", "checkpoint": "checkpoints/smoke/sd-1-5"}
    wanted = {role: sha256(group.shared / folder / "manifest.json") for role, folder in folders.items()}
    for name, place in group.machines.items():
        assert read_json(place / "results/smoke/runs" / name / "seed0/fingerprint.json")["inputs"] == wanted


def test_machines_that_track_at_once_lose_and_double_nothing(group, tracked, database):
    runs = active_runs(database, "vpd-smoke")
    assert [key for key, *_ in runs] == sorted(group.key(name) for name in NAMES)
    assert {status for *_, status in runs} == {"FINISHED"}
    ids = {key: run for key, run, _ in runs}
    for number, (name, place) in enumerate(group.machines.items()):
        expected = history(place / "results/smoke/history" / f"{name}.csv")
        assert len(expected) == STEPS_OF_A_JOB * 4
        assert points(database, ids[group.key(name)], "train") == expected
        finals = points(database, ids[group.key(name)], "final")
        assert [label for label, *_ in finals] == ["final/miou_ss", "final/miou_ss_mean"]
        assert {step for _, step, _ in finals} == {STEPS_OF_A_JOB}
        assert [value for *_, value in finals] == pytest.approx([number + 0.1] * 2)
    assert versions(database, "vpd-segmentation") == [1]


def test_all_results_in_one_folder_pushed_later_keep_all(group, tracked, database, server):
    """Over the same server, and straight into another database, which has no tables yet."""
    place = group.machine("all")
    for machine in group.machines.values():
        shutil.copytree(machine / "results", place / "results", dirs_exist_ok=True)
    before = active_runs(database, "vpd-smoke")
    again = f"0 runs added, 0 replaced, {len(NAMES)} kept; 1 registered models, 0 new versions"
    assert again in on_machines([place], group.track(server.uri))[0]
    assert active_runs(database, "vpd-smoke") == before
    straight = group.track(database.create("straight"))
    assert f"{len(NAMES)} runs added, 0 replaced, 0 kept" in on_machines([place], straight)[0]
    assert again in on_machines([place], straight)[0]
    assert [key for key, *_ in active_runs(database, "vpd-smoke", "straight")] == [key for key, *_ in before]


# ------------------------------------------------------------------------------------------- the same results, many times
@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, str]:
    """Results of six runs, a report and a model to register, and the command that tracks them."""
    root, params = tmp_path_factory.mktemp("small"), table5(EXPERIMENTS, depth=True)
    write_results(root / "results", params)
    write_depth(root, params)
    for kind in ("data", "checkpoints", "results"):
        (root / kind).rename(root / "mini")
        (root / kind).mkdir()
        (root / "mini").rename(root / kind / "mini")
    return root, f"cd {root} && {VPD} track --params {ROOT / 'params.yaml'} --scale mini"


def test_the_same_results_tracked_four_times_at_once_are_there_once(server, database, small, tmp_path):
    _, command = small
    on_machines([tmp_path / str(number) for number in range(4)], f"{command} --uri {server.uri}")
    runs = active_runs(database, "vpd-mini")
    wanted = {f"mini/official/{name}/seed{seed}" for name in table5(EXPERIMENTS).experiments for seed in SEEDS}
    wanted |= {"mini/official/report", "mini/official/depth-full/seed0"}
    assert [key for key, *_ in runs] == sorted(wanted)
    assert {status for *_, status in runs} == {"FINISHED"}
    for key, run, _ in runs:
        rows = points(database, run, "train")
        assert len(rows) == len(set(rows)) == (0 if "report" in key or "depth" in key else 4 * len(STEPS))
    assert versions(database, "vpd-depth") == [1]


# --------------------------------------------------------------------------------------------------------------- mistakes
def test_what_is_wrong_with_a_database_is_one_sentence(database, small, tmp_path):
    _, command = small
    place = f"postgresql://127.0.0.1:{database.port}"
    failed = f'{place}/mlflow refused: .*password authentication failed for user "mlflow"'
    cases = {
        database.uri("mlflow", "guessed"): failed,
        database.uri("vanished"): f'{place}/vanished refused: .*database "vanished" does not exist',
        database.uri("mlflow", PASSWORD): "is not a valid address; write special characters of the password as %XX",
        f"postgresql://mlflow:{QUOTED}@127.0.0.1:{free_port()}/mlflow": "is unreachable; start it",
        f"http://mlflow:{QUOTED}@127.0.0.1:{free_port()}": "is unreachable; start it",
    }
    for number, (uri, said) in enumerate(cases.items()):
        found = sentence(tmp_path / str(number), command, MLFLOW_TRACKING_URI=uri)
        assert re.search(said, found), found
        assert "guessed" not in found


def test_a_server_that_lost_its_database_is_one_sentence_and_none_afterwards(server, database, small, tmp_path):
    _, command = small
    with database.closed("mlflow"):
        found = sentence(tmp_path / "closed", command, MLFLOW_TRACKING_URI=server.uri)
    assert re.match(f"vpd: MLflow at {server.uri} ", found), found
    on_machines([tmp_path / "open"], command, MLFLOW_TRACKING_URI=server.uri)


def test_a_training_survives_its_server_and_nothing_is_lost(group, tracked, server, database):
    """The server is killed when the first values of the training are in its database."""
    place, key = group.machine("live"), group.key(LIVE)
    training = on_machine(place, group.train(LIVE))

    def arrived() -> int:
        runs = [run for found, run, _ in active_runs(database, "vpd-smoke") if found == key]
        return sum(len(points(database, run, "train")) for run in runs)

    while not arrived():
        assert training.poll() is None, (place / "said.txt").read_text()
        time.sleep(0.05)
    server.kill()
    try:
        said = finished(training, place)
        seen = arrived()
    finally:
        server.start()
    assert said.count(f"live logging of {LIVE}/seed0 stopped: MLflow at {server.uri} ") == 1
    expected = history(place / "results/smoke/history" / f"{LIVE}.csv")
    assert 0 < seen < len(expected) == 4 * STEPS_OF_LIVE
    group.measure(place, LIVE, STEPS_OF_LIVE, 12.1)
    (said,) = on_machines([place], group.track(server.uri))
    assert "0 runs added, 1 replaced, 0 kept" in said
    ((_, run, status),) = [found for found in active_runs(database, "vpd-smoke") if found[0] == key]
    assert (status, points(database, run, "train")) == ("FINISHED", expected)


# ----------------------------------------------------------------------------------------------------------------- logins
def test_a_server_with_logins_says_what_it_wants(guarded, small, tmp_path):
    _, command = small
    command += f" --uri {guarded.uri}"
    names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    assert sentence(tmp_path, command).endswith(f"wants a user name and a password; set {names}")
    stranger = {"MLFLOW_TRACKING_USERNAME": "mallory", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    assert sentence(tmp_path, command, **stranger).endswith(
        f"does not know user mallory with this password; correct {names}"
    )


def test_with_a_login_the_documented_commands_work(guarded, database, small, tmp_path):
    """A user whom the administrator made tracks, and tracks again."""
    root, _ = small
    port = int(guarded.uri.rpartition(":")[2])
    user, work = (filled(text, tmp_path, database, port) for text in (ADD_USER, WORK))
    finished(on_machine(tmp_path, user), tmp_path)
    track = f"cd {root} && {VPD} track --params {ROOT / 'params.yaml'} --scale mini"
    work = re.sub(r"vpd track( --results \S+)?", track, work)
    for counts in ("8 runs added, 0 replaced, 0 kept; 1 registered models, 1 new", "0 runs added, 0 replaced, 8 kept"):
        (said,) = on_machines([tmp_path / "alice"], work)
        assert counts in said
    keys = [key for key, *_ in active_runs(database, "vpd-mini", "guarded")]
    assert len(keys) == len(set(keys)) == 8
