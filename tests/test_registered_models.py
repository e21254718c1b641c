"""Registered models: a version per trained network, from which vpd makes the same predictions as from the run itself."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import threading
from importlib import import_module
from pathlib import Path

import mlflow
import pytest
import requests
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from evaluated_world import edit_evaluated, write_evaluated
from fixtures.parity.narrow import make_spec, write_factor_4
from forked import status_of
from test_predict import scene, write
from tracking_world import free_port, mlflow_server
from trained import DATASETS, OPTIONS, lively, write_run
from vpd.config.params import Params, load_params
from vpd.config.schema import Spec, load_spec
from vpd.datasets import build_dataset
from vpd.datasets.ade20k import class_names
from vpd.models import build_model
from vpd.predict import predict
from vpd.stages.data import prepare_dataset
from vpd.tracking import model_places, sync
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json
from vpd.utils.fingerprint import Fingerprint, write_manifest

REGISTERED = {task: f"tiny-{task}" for task in DATASETS}


def tiny_spec(task: str) -> Spec:
    names = {"name": REGISTERED[task], "scale": "tiny", "protocol": "official", "dataset": task, "checkpoint": "narrow"}
    return make_spec(task).model_copy(update={**names, "variant": "refcoco" if task == "referring" else None})


class TinyParams(Params):
    """Parameters that say of each experiment what its tiny spec says."""

    def resolve(self, name: str) -> Spec:
        return tiny_spec(name.removeprefix("tiny-"))


def tiny_params(registered: dict[str, str], checkpoints: str = "copied") -> Params:
    """Parameters of three experiments that are in no table."""
    params = load_params(Path(__file__).parents[1] / "params.yaml", "smoke", "official")
    line = next(iter(params.experiments.values()))
    parts = {"scale": "tiny", "experiments": dict.fromkeys(REGISTERED.values(), line), "registered": registered}
    parts["scales"] = {"tiny": params.block.model_copy(update={"registered_checkpoints": checkpoints})}
    return TinyParams(params.document.model_copy(update={**parts, "tables": {}, "figures": {}}), params.source)


class World:
    """Results, datasets and a checkpoint of three trained networks, as the stages leave them."""

    def __init__(self, root: Path, registered: dict[str, str] = REGISTERED, checkpoints: str = "copied") -> None:
        self.root, self.params = root, tiny_params(registered, checkpoints)
        self.results, self.data, self.checkpoints = (root / name for name in ("results", "data", "checkpoints"))

    def fill(self) -> World:
        write_factor_4(self.checkpoints / "narrow")
        write_manifest(self.checkpoints / "narrow", Fingerprint("settings", "code"), {})
        for task, dataset in DATASETS.items():
            prepare_dataset(task, dataset, self.data / task)
            self.train(task)
        return self

    def train(self, task: str) -> None:
        spec = tiny_spec(task)
        (self.results / "specs").mkdir(parents=True, exist_ok=True)
        (self.results / f"specs/{spec.name}.json").write_text(spec.model_dump_json())
        model = build_model(spec, self.checkpoints / "narrow", build_dataset(spec, self.data / task, "val").classes)
        write_run(self.weights(task), lively(model).trained_state(), spec)
        rows = [{"seed": 0, "milestone": "final", "step": 2, "metrics": {"score": 0.5}}]
        write_evaluated(self.results, spec.name, rows, spec.digest())

    def weights(self, task: str) -> Path:
        return self.results / f"runs/{REGISTERED[task]}/seed0/final.safetensors"

    def retrain(self, task: str) -> None:
        weights = {name: value + 0.01 for name, value in load_file(self.weights(task)).items()}
        write_run(self.weights(task), weights, load_spec(self.results / f"specs/{REGISTERED[task]}.json"))

    def sync(self, uri: str, strict: bool = True):
        return sync(self.results, self.params, uri, self.data, self.checkpoints, strict=strict)

    def predicted(self, task: str, picture: Path, out: Path, **places: Path) -> bytes:
        """The PNG that ``vpd predict`` writes."""
        usual = {
            "spec": self.results / f"specs/{REGISTERED[task]}.json",
            "weights": self.weights(task),
            "checkpoint": self.checkpoints / "narrow",
        } | places
        names = [names[0] for names in class_names(self.data / task)] if task == "segmentation" else None
        names = read_json(places["classes"])["classes"] if places else names
        spec = load_spec(usual["spec"])
        assert predict(spec, usual["weights"], usual["checkpoint"], [picture], out, names=names, **OPTIONS[task]) == 0
        return (out / f"{picture.stem}.png").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return World(tmp_path_factory.mktemp("trained")).fill().root


@pytest.fixture(scope="module")
def registered(trained: Path, empty_store: Path, tmp_path_factory) -> str:
    """A store with the three models, which tests only read."""
    path = shutil.copy(empty_store, tmp_path_factory.mktemp("registered") / "mlflow.db")
    World(trained).sync(f"sqlite:///{path}")
    return f"sqlite:///{path}"


@pytest.fixture
def world(trained: Path, tmp_path: Path) -> World:
    return World(Path(shutil.copytree(trained, tmp_path / "world")))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("picture") / "photo.png", scene(70, 90))


def versions(uri: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for version in MlflowClient(uri).search_model_versions(order_by=["version_number ASC"]):
        found.setdefault(version.name, []).append(str(version.version))
    return found


def logged_models(uri: str) -> list:
    client = MlflowClient(uri)
    return client.search_logged_models([client.get_experiment_by_name("vpd-tiny").experiment_id])


# ------------------------------------------------------------------------------------------------------------ versions
def test_a_second_sync_adds_nothing(trained, registered):
    before = [logged.model_id for logged in logged_models(registered)]
    summary = World(trained).sync(registered)
    assert (summary.kept, summary.models, summary.new_versions) == (3, 3, 0)
    assert "; 3 registered models, 0 new versions" in str(summary)
    assert versions(registered) == {f"vpd-{task}": ["1"] for task in DATASETS}
    assert [logged.model_id for logged in logged_models(registered)] == before
    assert len(before) == 3
    assert mlflow.get_tracking_uri() != registered


def test_a_version_knows_its_run_its_results_and_its_weights(trained, registered):
    client = MlflowClient(registered)
    version = client.get_model_version_by_alias("vpd-depth", "champion")
    run = client.get_run(version.run_id)
    assert run.info.run_name == "tiny-depth/seed0"
    assert [output.model_id for output in run.outputs.model_outputs] == [version.source.removeprefix("models:/")]
    weights = World(trained).weights("depth")
    tags = {"task": "depth", "scale": "tiny", "checkpoint": "narrow", "weights": sha256(weights)}
    assert tags.items() <= version.tags.items()
    logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert logged.params["model.head.kind"] == "depth-decoder"
    assert client.get_model_version_by_alias("vpd-depth", "tiny-official").version == version.version


def test_new_weights_make_a_new_version_of_their_task_alone(world, uri):
    world.params = tiny_params({task: REGISTERED[task] for task in ("referring", "depth")})
    world.sync(uri)
    world.retrain("depth")
    summary = world.sync(uri)
    assert (summary.kept, summary.new_versions) == (3, 1)
    assert versions(uri) == {"vpd-depth": ["1", "2"], "vpd-referring": ["1"]}
    client = MlflowClient(uri)
    aliases = {alias: str(number) for alias, number in client.get_registered_model("vpd-depth").aliases.items()}
    assert aliases == {"champion": "2", "tiny-official": "2"}
    latest, first = (model_places(f"models:/vpd-depth/{version}", uri)["weights"] for version in ("latest", "1"))
    assert sha256(latest) == sha256(world.weights("depth")) != sha256(first)


def test_a_run_that_is_replaced_keeps_the_version_of_its_weights(world, uri):
    world.params = tiny_params({"depth": "tiny-depth"})
    world.sync(uri)
    edit_evaluated(world.results, "tiny-depth", lambda metrics: metrics["final"]["score"].update(seed0=0.75))
    summary = world.sync(uri)
    assert (summary.replaced, summary.new_versions) == (1, 0)
    client = MlflowClient(uri)
    (run,) = client.search_runs([logged_models(uri)[0].experiment_id], "run_name = 'tiny-depth/seed0'")
    version = client.get_model_version("vpd-depth", "1")
    assert [f"models:/{output.model_id}" for output in run.outputs.model_outputs] == [version.source]


@pytest.mark.parametrize("method", ["log_model_artifacts", "create_model_version"])
def test_after_a_kill_a_sync_completes_without_duplicates(world, uri, method):
    world.params = tiny_params({"depth": "tiny-depth"})

    def killed() -> None:
        setattr(MlflowClient, method, lambda *given, **named: os.kill(os.getpid(), signal.SIGKILL))
        world.sync(uri)

    assert status_of(killed) == -signal.SIGKILL
    assert versions(uri) == {}
    assert len(logged_models(uri)) == 1
    assert world.sync(uri).new_versions == 1
    (logged,) = logged_models(uri)
    assert (logged.status.name, versions(uri)["vpd-depth"]) == ("READY", ["1"])


# ------------------------------------------------------------------------------------------------- what is not there yet
def test_a_missing_file_is_reported_and_skips_only_that_model(world, uri, capsys):
    world.weights("referring").unlink()
    (world.data / "segmentation/manifest.json").unlink()
    fingerprint = world.weights("depth").with_name("fingerprint.json")
    write_json(fingerprint, (whole := read_json(fingerprint)) | {"settings": "another"})
    summary = world.sync(uri)
    assert (summary.added, summary.models) == (3, 0)
    assert "was trained with other settings than those of tiny-depth" in capsys.readouterr().err
    write_json(fingerprint, whole)
    assert world.sync(uri).models == 1
    assert versions(uri) == {"vpd-depth": ["1"]}
    said = capsys.readouterr().err
    assert "vpd-referring is not registered: " in said
    assert "final.safetensors does not exist; train tiny-referring first" in said
    assert "vpd-segmentation is not registered: " in said
    assert "segmentation/manifest.json does not exist; prepare the dataset first" in said


def test_networks_that_were_not_trained_here_share_one_line(world, uri, capsys):
    for task in ("referring", "depth"):
        shutil.rmtree(world.weights(task).parents[1])
    assert world.sync(uri).models == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "registered" in line]
    assert said.startswith("what was not trained here is not registered as a model: ")
    assert set(said.partition(": ")[2].split(", ")) == {"tiny-referring", "tiny-depth"}


def test_an_experiment_of_another_task_is_refused(world, uri):
    world.params = tiny_params({"depth": "tiny-referring"})
    with pytest.raises(UserError, match=r"registered\.depth names tiny-referring, which is referring"):
        world.sync(uri)


# ---------------------------------------------------------------------------------------------------- loading with vpd
def test_a_model_holds_data_alone_neither_code_nor_pickles(registered):
    root = model_places("models:/vpd-depth/1", registered)["spec"].parent
    names = {path.name for path in root.rglob("*") if path.is_file()}
    assert {"MLmodel", "spec.json", "final.safetensors", "manifest.json", "classes.json"} <= names
    assert {Path(name).suffix for name in names} <= {"", ".json", ".safetensors", ".txt"}


@pytest.mark.parametrize("task", DATASETS)
def test_vpd_predict_finds_everything_in_the_model(trained, registered, picture, tmp_path, task):
    places = model_places(f"models:/vpd-{task}@champion", registered)
    assert {name: path.is_relative_to(trained) for name, path in places.items()} == dict.fromkeys(
        ("spec", "weights", "classes", "checkpoint"), False
    )
    expected = World(trained).predicted(task, picture, tmp_path / "usual")
    assert World(trained).predicted(task, picture, tmp_path / "registered", **places) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("models:/vpd-depht/1", "unknown registered model 'vpd-depht'; did you mean 'vpd-depth'"),
        ("models:/vpd-depth/7", "models:/vpd-depth/7 does not exist; vpd-depth has 1, @champion, @tiny-official"),
        ("models:/vpd-depth@best", "models:/vpd-depth@best does not exist"),
        ("models:/vpd-depth", "names no registered model; write for example models:/vpd-depth/1"),
    ],
)
def test_a_model_that_does_not_exist_is_one_sentence(registered, name, said):
    with pytest.raises(UserError, match=said):
        model_places(name, registered)


def test_a_referenced_checkpoint_is_not_copied_and_must_be_the_same(world, uri, picture, tmp_path):
    world.params = tiny_params({"depth": "tiny-depth"}, "referenced")
    world.sync(uri)
    places = model_places("models:/vpd-depth/1", uri)
    checkpoint = world.checkpoints / "narrow"
    assert places["checkpoint"] == checkpoint
    assert not (places["weights"].parent / "checkpoint").exists()
    expected = world.predicted("depth", picture, tmp_path / "usual")
    assert world.predicted("depth", picture, tmp_path / "registered", **places) == expected

    write_json(checkpoint / "manifest.json", {"name": "another"})
    with pytest.raises(UserError, match="is not the checkpoint that the model was trained from"):
        model_places("models:/vpd-depth/1", uri)
    shutil.move(world.checkpoints, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"the model refers to the checkpoint .*narrow, which is not here"):
        model_places("models:/vpd-depth/1", uri)


def test_a_link_into_a_cache_is_followed(world, uri):
    """Orchestrators may keep the files elsewhere."""
    for path in (world.weights("depth"), world.checkpoints / "narrow/manifest.json"):
        cached = world.root / "cache" / path.name
        cached.parent.mkdir(exist_ok=True)
        shutil.move(path, cached)
        path.symlink_to(cached)
    world.params = tiny_params({"depth": "tiny-depth"})
    world.sync(uri)
    places = model_places("models:/vpd-depth/1", uri)
    assert sha256(places["weights"]) == sha256(world.root / "cache/final.safetensors")
    assert (places["checkpoint"] / "manifest.json").is_file()


# -------------------------------------------------------------------------------------------------------------- servers
@pytest.mark.parametrize(
    ("dies_in", "missing"),
    [
        ("sync._create_run", "3 runs are not logged yet"),
        ("models._upload", "models or links may be missing yet"),
        ("sync._links", "models or links may be missing yet"),
    ],
)
def test_a_server_that_dies_in_the_middle_is_one_sentence(trained, uri, monkeypatch, capsys, dies_in, missing):
    def die(*given):
        monkeypatch.setattr("vpd.tracking.store.reachable", lambda uri: False)
        raise mlflow.exceptions.MlflowException("API request failed")

    module, _, function = dies_in.partition(".")
    monkeypatch.setattr(import_module(f"vpd.tracking.{module}"), function, die)
    summary = World(trained, {"depth": "tiny-depth"}).sync(uri, strict=False)
    said = [line for line in capsys.readouterr().err.splitlines() if "unreachable" in line or "Error" in line]
    assert said == [f"MLflow at {uri} is unreachable; {missing}; run 'vpd track' later"]
    assert summary.missed == (3 if "_create_run" in dies_in else 0)


def test_a_server_stores_the_models_and_gives_them_back_once(world, tmp_path):
    world.params = tiny_params({"depth": "tiny-depth"})
    with mlflow_server(tmp_path, free_port(), f"sqlite:///{tmp_path / 'server.db'}") as uri:
        assert world.sync(uri).new_versions == 1
        assert (world.sync(uri).kept, versions(uri)["vpd-depth"]) == (3, ["1"])
        places = model_places("models:/vpd-depth/1", uri, tmp_path / "downloads")
        assert sha256(places["weights"]) == sha256(world.weights("depth"))
        assert read_json(places["spec"]) == read_json(world.results / "specs/tiny-depth.json")
        assert places["checkpoint"].is_relative_to(tmp_path / "downloads")
        before = places["weights"].stat().st_mtime_ns
        again = model_places("models:/vpd-depth@champion", uri, tmp_path / "downloads")
        assert (again, again["weights"].stat().st_mtime_ns) == (places, before)


class Dying(http.server.ThreadingHTTPServer):
    """A proxy before a real server, which answers ``left`` requests and is then gone."""

    daemon_threads = True

    def __init__(self, behind: str, left: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.behind, self.left = behind, left
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Passing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.close_connection = True
        self.server.left -= 1
        if self.server.left < 0:
            self.server.socket.close()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        given = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        found = requests.request(self.command, self.server.behind + self.path, headers=given, data=body)
        self.send_response(found.status_code)
        self.send_header("Content-Type", found.headers.get("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(found.content)))
        self.end_headers()
        self.wfile.write(found.content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.slow
def test_a_server_that_dies_at_any_request_fails_nothing_and_gets_the_rest_later(world, tmp_path, capsys):
    """While runs are logged, files are stored, versions are made, and links are asked for."""
    world.params, died = tiny_params({"depth": "tiny-depth"}), []
    with mlflow_server(tmp_path, free_port(), f"sqlite:///{tmp_path / 'server.db'}") as uri:
        for left in range(1, 200, 3):
            with Dying(uri, left) as server:
                summary = world.sync(server.uri, strict=False)
                server.shutdown()
            said = capsys.readouterr().err
            if "is unreachable" not in said:
                break
            died.append(summary.missed)
        assert said.count("\n") <= 1
        assert 0 in died  # after the last run was logged
        assert len(died) > 5
        summary = world.sync(uri)
        assert (summary.missed, summary.new_versions, versions(uri)) == (0, 0, {"vpd-depth": ["1"]})
        assert len(logged_models(uri)) == 1
