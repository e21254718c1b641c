"""Registered models: a version per trained network, and where its files are for ``vpd predict``."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from vpd.config.params import Params
from vpd.config.schema import Spec, load_spec
from vpd.tracking.records import KEY, run_key
from vpd.tracking.store import connected, database_file, environment
from vpd.training.runs import has_settings, seed_folder
from vpd.utils.digests import digest, sha256
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import atomic_folder, exclusive, write_json
from vpd.utils.fingerprint import FINGERPRINT, MANIFEST, read_manifest
from vpd.utils.validation import read_as

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

FORMAT = 2
"""Version of the registered models' layout; another number creates new versions of all of them."""
FLAVOR = "vpd"
SPEC, WEIGHTS, CLASSES, CHECKPOINT = "spec.json", "final.safetensors", "classes.json", "checkpoint"
"""Names in a model; the classes' file also names the folder of a checkpoint that is not copied."""
MODEL, CHAMPION = "vpd.model", "champion"
"""Tag with the digest that distinguishes versions, and alias of the version that was tracked last."""
UPLOAD_SECONDS = "600"  # a server answers only when it has stored a whole file
DESCRIPTIONS = {
    "segmentation": "Semantic segmentation; the PNG holds class ids, with the classes' colours as palette",
    "referring": "The object that a text describes; the PNG is 255 where it is and 0 elsewhere",
    "depth": "Depth from one picture; the PNG holds 16-bit millimetres",
}
PREFIX = "models:/"
FORM = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/@]+))")
DOWNLOADS = Path("downloads/models")


class Reference(TypedDict):
    """The checkpoint of a model that does not hold it."""

    checkpoint: str
    checkpoint_digest: str


class Missing(UserError):
    """A file that a registered model needs does not exist."""


@dataclass(frozen=True)
class RegisteredNetwork:
    """One task's trained network with everything that its predictions depend on."""

    spec: Spec
    seed: int
    run: Path  # the folder with the weights
    spec_file: Path
    weights_digest: str
    checkpoint: Path
    checkpoint_digest: str
    copied: bool  # whether the model holds the checkpoint, or names its folder
    classes: list[str] | None

    @property
    def name(self) -> str:
        """Registered model that holds the versions of this task."""
        return f"vpd-{self.spec.task}"

    @property
    def digest(self) -> str:
        """Changes with whatever changes predictions, or where they find the checkpoint."""
        folder = None if self.copied else self.checkpoint.resolve().as_posix()
        return digest([FORMAT, self.spec.digest(), self.weights_digest, self.checkpoint_digest, self.classes, folder])

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the version."""
        tags = {name: str(getattr(self.spec, name)) for name in ("task", "scale", "protocol", "method", "checkpoint")}
        tags |= {"experiment": self.spec.name, "seed": str(self.seed), "weights": self.weights_digest}
        return {**tags, KEY: run_key(self.spec, self.seed), MODEL: self.digest}


def networks_to_register(results: Path, params: Params, data: Path, checkpoints: Path) -> list[RegisteredNetwork]:
    """Collect the networks that ``params.registered`` names; a missing file is reported and skips only that network."""
    trained = {task: name for task, name in params.registered.items() if (results / "runs" / name).is_dir()}
    if untrained := [name for name in params.registered.values() if name not in trained.values()]:
        said = f"what was not trained here is not registered as a model: {', '.join(untrained)}"
        print(said, file=sys.stderr, flush=True)
    networks = []
    for task, name in trained.items():
        try:
            networks.append(_network(results, params, data, checkpoints, task, name))
        except Missing as missing:
            print(f"vpd-{task} is not registered: {missing}", file=sys.stderr, flush=True)
    return networks


def _network(results: Path, params: Params, data: Path, checkpoints: Path, task: str, name: str) -> RegisteredNetwork:
    spec_file = results / "specs" / f"{name}.json"
    _needed(spec_file, f"train {name} first")
    spec = load_spec(spec_file)
    if spec.task != task:
        raise UserError(f"registered.{task} names {name}, which is {spec.task}; name an experiment of {task}")
    run, checkpoint = seed_folder(results / "runs" / name, spec.seeds[0]), checkpoints / spec.checkpoint
    for file in (run / MANIFEST, run / FINGERPRINT, run / WEIGHTS):
        _needed(file, f"train {name} first")
    if not has_settings(run, spec):
        raise Missing(f"{run} was trained with other settings than those of {name}; train it again")
    _needed(checkpoint / MANIFEST, "prepare the checkpoint first")
    return RegisteredNetwork(
        spec=spec,
        seed=spec.seeds[0],
        run=run,
        spec_file=spec_file,
        weights_digest=pick(WEIGHTS, read_manifest(run)["files"], "file", str(run / MANIFEST)),
        checkpoint=checkpoint,
        checkpoint_digest=sha256(checkpoint / MANIFEST),
        copied=params.registered_checkpoints == "copied",
        classes=_classes(data / spec.dataset) if task == "segmentation" else None,
    )


def _needed(path: Path, cure: str) -> None:
    if not path.is_file():
        raise Missing(f"{path} does not exist; {cure}")


def _classes(dataset: Path) -> list[str]:
    _needed(dataset / MANIFEST, "prepare the dataset first")
    from vpd.datasets.ade20k import class_names  # vpd.predict has it too, but imports torch for seconds
    from vpd.datasets.manifest import located

    return [names[0] for names in class_names(located(dataset))]


def register(client: MlflowClient, experiment: str, network: RegisteredNetwork, run: Run) -> bool:
    """Create the version of a network unless there is one, and point the aliases to it; return whether it is new."""
    versions = client.search_model_versions(f"name = '{network.name}'", max_results=10_000)
    same = [version for version in versions if version.tags.get(MODEL) == network.digest]
    new = not same
    version = _create_version(client, experiment, network, run) if new else min(same, key=lambda v: int(v.version))
    aliases = client.get_registered_model(network.name).aliases
    for alias in (f"{network.spec.scale}-{network.spec.protocol}", CHAMPION):
        if str(aliases.get(alias)) != str(version.version):
            client.set_registered_model_alias(network.name, alias, version.version)
    _link(client, version, run)
    return new


def _upload(client: MlflowClient, experiment: str, network: RegisteredNetwork, run: Run) -> LoggedModel:
    """Store the files of a network as a logged model of the flavor ``vpd``."""
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model

    for attempt in client.search_logged_models([experiment], f"tags.`{MODEL}` = '{network.digest}'"):
        client.delete_logged_model(attempt.model_id)  # a killed attempt, since no version stands for it
    run_id, params = run.info.run_id, run.data.params
    logged = client.create_logged_model(experiment, network.name, run_id, network.tags, params, FLAVOR)
    described = Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
    described.add_flavor(FLAVOR, task=network.spec.task, experiment=network.spec.name, scale=network.spec.scale)
    with tempfile.TemporaryDirectory() as temporary, environment({"MLFLOW_HTTP_REQUEST_TIMEOUT": UPLOAD_SECONDS}):
        folder = Path(temporary)
        described.save(str(folder / "MLmodel"))
        # Copies follow links into a cache; MLflow does not.
        for path in (network.run / WEIGHTS, network.run / MANIFEST):
            shutil.copyfile(path, folder / path.name)
        shutil.copyfile(network.spec_file, folder / SPEC)
        reference = {"checkpoint": str(network.checkpoint.resolve()), "checkpoint_digest": network.checkpoint_digest}
        if network.copied:
            shutil.copytree(network.checkpoint, folder / CHECKPOINT)
        write_json(folder / CLASSES, {"classes": network.classes} | ({} if network.copied else reference))
        client.log_model_artifacts(logged.model_id, str(folder))
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _create_version(client: MlflowClient, experiment: str, network: RegisteredNetwork, run: Run) -> ModelVersion:
    import mlflow

    logged = _upload(client, experiment, network, run)
    if not client.search_registered_models(f"name = '{network.name}'"):
        text = f"{DESCRIPTIONS[network.spec.task]}; use it with `vpd predict models:/{network.name}/VERSION PICTURE`"
        client.create_registered_model(network.name, {"task": network.spec.task}, text)
    source, model, uri = f"{PREFIX}{logged.model_id}", logged.model_id, client.tracking_uri
    with environment({"MLFLOW_TRACKING_URI": uri}):  # where MLflow's registry looks the logged model up
        chosen = mlflow.get_tracking_uri()  # in this process, which outranks the environment
        mlflow.set_tracking_uri(uri) if chosen != uri else None
        try:
            version = client.create_model_version(network.name, source, run.info.run_id, network.tags, model_id=model)
        finally:
            mlflow.set_tracking_uri(chosen) if chosen != uri else None
    versions = json.dumps([{"name": version.name, "version": version.version}])
    client.set_logged_model_tags(model, {"mlflow.modelVersions": versions})
    return version


def _link(client: MlflowClient, version: ModelVersion, run: Run) -> None:
    """Show the model at its run, also at one that replaced the run it was made from."""
    from mlflow.entities import LoggedModelOutput

    outputs, model = run.outputs.model_outputs if run.outputs else [], _model_id(version)
    if model not in [output.model_id for output in outputs]:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model, step=0)])


def _model_id(version: ModelVersion) -> str:
    # MLflow's own stores keep the id of the logged model in the source alone.
    return (version.source or "").removeprefix(PREFIX)


def model_places(uri: str, tracking_uri: str, folder: Path = DOWNLOADS) -> dict[str, Path]:
    """Find the files of a registered model; none of its code is run.

    Args:
        uri: such as ``models:/vpd-depth/1`` or ``models:/vpd-depth@champion``.
        tracking_uri: the store.
        folder: where a model is downloaded to, once, if it is not on this machine.

    Returns:
        Paths of ``spec``, ``weights``, ``checkpoint`` and ``classes`` (a JSON file).
    """
    form = FORM.fullmatch(uri)
    if form is None:
        raise UserError(f"'{uri}' names no registered model; write for example models:/vpd-depth/1")
    with connected(tracking_uri) as client:
        root = _files(client, _version(client, uri, form), tracking_uri, folder)
    places = {"spec": root / SPEC, "weights": root / WEIGHTS, "classes": root / CLASSES}
    for name, path in places.items():
        if not path.is_file():
            raise UserError(f"{uri} has no {name}, so it is not a model that vpd track registered; name another")
    if (root / CHECKPOINT).is_dir():
        return {**places, "checkpoint": root / CHECKPOINT}
    reference = read_as(Reference, root / CLASSES, "register the model again")
    checkpoint = Path(reference["checkpoint"])
    if not (checkpoint / MANIFEST).is_file():
        raise UserError(f"the model refers to the checkpoint {checkpoint}, which is not here; fetch it or put it there")
    if sha256(checkpoint / MANIFEST) != reference["checkpoint_digest"]:
        raise UserError(f"{checkpoint} is not the checkpoint that the model was trained from; put that one back")
    return {**places, "checkpoint": checkpoint}


def _version(client: MlflowClient, uri: str, form: re.Match[str]) -> ModelVersion:
    name, version = form["name"], form["version"]
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'", max_results=10_000)}
    if not versions:
        known = [model.name for model in client.search_registered_models(max_results=1000)]
        raise UserError(f"unknown registered model '{name}'; {nearest(name, known)}")
    aliases = client.get_registered_model(name).aliases
    if form["alias"]:
        version = str(aliases.get(form["alias"]))
    elif version == "latest":
        version = max(versions, key=int)
    if version not in versions:
        known = sorted(versions, key=int) + [f"@{alias}" for alias in aliases]
        raise UserError(f"{uri} does not exist; {name} has {', '.join(known)}")
    return versions[version]


def _files(client: MlflowClient, version: ModelVersion, tracking_uri: str, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.utils.file_utils import local_file_uri_to_path

    location = client.get_logged_model(_model_id(version)).artifact_location
    if location.startswith(("/", "file:")):
        return Path(local_file_uri_to_path(location))
    download = folder / _model_id(version)
    with exclusive(download):
        if not download.is_dir():
            with atomic_folder(download) as temporary:
                path = database_file(tracking_uri)
                store = f"sqlite:///{path}" if path else tracking_uri
                download_artifacts(location, dst_path=str(temporary), tracking_uri=store)
    return download / location.rstrip("/").rpartition("/")[2]
