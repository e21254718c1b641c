"""Registered models: a version per trained network, and where its files are for ``vpd predict``."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import vpd
from vpd.config.params import Params
from vpd.config.schema import Spec, VPDModel, load_spec
from vpd.tracking.records import KEY, run_key
from vpd.tracking.store import connected, database_file, environment
from vpd.training.runs import has_settings, seed_folder
from vpd.utils.digests import digest, sha256
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import atomic_folder, exclusive, read_json, write_json
from vpd.utils.fingerprint import FINGERPRINT, MANIFEST

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

FORMAT = 1
"""Version of the registered models' layout; another number creates new versions of all of them."""
WEIGHTS = "final.safetensors"
MODEL, CHAMPION = "vpd.model", "champion"
"""Tag with the digest that distinguishes versions, and alias of the version that was tracked last."""
UPLOAD_SECONDS = "600"
"""A server answers only when it has stored a whole file."""
NOT_NEEDED = ("dvc", "ruamel.yaml.clib", "snakemake")
"""Requirements of this project that run the workflow and predict nothing."""
DESCRIPTIONS = {
    "segmentation": ("Semantic segmentation", "class ids, with the classes' colours as palette"),
    "referring": ("The object that a text describes", "255 where the object is and 0 elsewhere"),
    "depth": ("Depth from one picture", "16-bit millimetres"),
}
"""Task -> what the model does, and what its PNG shows."""
EXAMPLES = {"text": "the red chair", "scene": "kitchen"}
PREFIX = "models:/"
FORM = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/@]+))")
DOWNLOADS = Path("downloads/models")
FILES = ("spec", "weights", "classes")


# ------------------------------------------------------------------------------------------------------- trained networks
class Missing(UserError):
    """A file that a registered model needs does not exist."""


@dataclass(frozen=True)
class RegisteredNetwork:
    """One task's trained network with everything that its predictions depend on."""

    spec: Spec
    seed: int
    run: Path
    """Folder with the weights and their manifest."""
    spec_file: Path
    weights_digest: str
    checkpoint: Path
    checkpoint_digest: str
    copied: bool
    """Whether the model holds the checkpoint, or names its folder."""
    classes: list[str] | None
    """Names of the segmentation classes."""

    @property
    def name(self) -> str:
        """Registered model that holds the versions of this task."""
        return f"vpd-{self.spec.task}"

    @property
    def run_key(self) -> str:
        """Key of the run whose weights these are."""
        return run_key(self.spec.scale, self.spec.protocol, self.spec.name, self.seed)

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
        return {**tags, KEY: self.run_key, MODEL: self.digest}


def networks_to_register(results: Path, params: Params, data: Path, checkpoints: Path) -> list[RegisteredNetwork]:
    """Collect the networks that ``params.registered`` names; a missing file is reported and skips only that network."""
    networks = []
    for task, name in params.registered.items():
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
        weights_digest=pick(WEIGHTS, read_json(run / MANIFEST).get("files", {}), "file", str(run / MANIFEST)),
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


# -------------------------------------------------------------------------------------------------------------- register
def register(client: MlflowClient, experiment: str, network: RegisteredNetwork, run: Run) -> bool:
    """Create the version of a network unless there is one, and point the aliases to it; return whether it is new."""
    versions = client.search_model_versions(f"name = '{network.name}'", max_results=10_000)
    same = [version for version in versions if version.tags.get(MODEL) == network.digest]
    version = min(same, key=lambda version: int(version.version), default=None)
    new = version is None
    if version is None:
        version = _create_version(client, network, _upload(client, experiment, network, run), run)
    aliases = client.get_registered_model(network.name).aliases
    for alias in (f"{network.spec.scale}-{network.spec.protocol}", CHAMPION):
        if str(aliases.get(alias)) != str(version.version):
            client.set_registered_model_alias(network.name, alias, version.version)
    _link(client, version, run)
    return new


def _upload(client: MlflowClient, experiment: str, network: RegisteredNetwork, run: Run) -> LoggedModel:
    """Store the files of a network as a logged model.

    ``pyfunc.log_model`` would load the network to validate it, which takes minutes at paper scale, and reopen the run.
    """
    from mlflow import pyfunc
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model

    for attempt in client.search_logged_models([experiment], f"tags.`{MODEL}` = '{network.digest}'"):
        client.delete_logged_model(attempt.model_id)  # a killed attempt, since no version stands for it
    run_id, params = run.info.run_id, run.data.params
    logged = client.create_logged_model(experiment, network.name, run_id, network.tags, params, "pyfunc")
    described = Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
    with tempfile.TemporaryDirectory() as temporary, environment({"MLFLOW_HTTP_REQUEST_TIMEOUT": UPLOAD_SECONDS}):
        scratch, folder = Path(temporary) / "scratch", Path(temporary) / "model"
        scratch.mkdir()
        write_json(scratch / "classes.json", {"classes": network.classes})
        files = {"spec": network.spec_file, "weights": network.run / WEIGHTS, "manifest": network.run / MANIFEST}
        files |= {"classes": scratch / "classes.json"} | ({"checkpoint": network.checkpoint} if network.copied else {})
        reference = {"checkpoint": str(network.checkpoint.resolve()), "checkpoint_digest": network.checkpoint_digest}
        spec = network.spec
        pyfunc.save_model(
            folder,
            python_model=Path(__file__).with_name("served.py"),
            code_paths=[str(Path(vpd.__file__).parent)],
            artifacts={name: str(_without_links(path, scratch)) for name, path in files.items()},
            model_config=None if network.copied else reference,
            signature=_signature(spec),
            input_example=_input_example(spec),
            pip_requirements=_requirements(),
            metadata={
                "task": spec.task,
                "experiment": spec.name,
                "scale": spec.scale,
                "png": DESCRIPTIONS[spec.task][1],
            },
            mlflow_model=described,
        )
        for cache in list(folder.rglob("__pycache__")):
            shutil.rmtree(cache)
        client.log_model_artifacts(logged.model_id, str(folder))
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _create_version(client: MlflowClient, network: RegisteredNetwork, logged: LoggedModel, run: Run) -> ModelVersion:
    import mlflow

    if not client.search_registered_models(f"name = '{network.name}'"):
        what, png = DESCRIPTIONS[network.spec.task]
        inputs = ", ".join(["`image` (base64)", *(f"`{name}`" for name, _ in _options(network.spec))])
        text = f"{what}. In: {inputs}. Out: `png` (base64, {png}), `width`, `height`."
        client.create_registered_model(network.name, {"task": network.spec.task}, text)
    source, model, uri = f"{PREFIX}{logged.model_id}", logged.model_id, client.tracking_uri
    with environment({"MLFLOW_TRACKING_URI": uri}):  # where MLflow's registry looks the logged model up
        chosen = mlflow.get_tracking_uri()  # in this process, which outranks the environment
        mlflow.set_tracking_uri(uri) if chosen != uri else None
        try:
            version = client.create_model_version(network.name, source, run.info.run_id, network.tags, model_id=model)
        finally:
            mlflow.set_tracking_uri(chosen) if chosen != uri else None
    shown = json.dumps([{"name": version.name, "version": version.version}])
    client.set_logged_model_tags(model, {"mlflow.modelVersions": shown})
    return version


def _link(client: MlflowClient, version: ModelVersion, run: Run) -> None:
    """Show the model with the final results at its run, also at one that replaced the run it was made from."""
    from mlflow.entities import LoggedModelOutput, Metric

    outputs, model, run_id = run.outputs.model_outputs if run.outputs else [], _model_id(version), run.info.run_id
    if model in [output.model_id for output in outputs]:
        return
    finals = [name for name in run.data.metrics if name.startswith("final/")]
    points = [point for name in finals for point in client.get_metric_history(run_id, name)]
    metrics = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model, run_id=run_id) for p in points]
    client.log_batch(run_id, metrics=metrics)
    client.log_outputs(run_id, [LoggedModelOutput(model, step=max((point.step for point in points), default=0))])


def _model_id(version: ModelVersion) -> str:
    """Id of the logged model that a version stands for; MLflow's own stores keep it in the source alone."""
    return (version.source or "").removeprefix(PREFIX)


# ----------------------------------------------------------------------------------------------------- content of a model
def _without_links(path: Path, scratch: Path) -> Path:
    """Copy what contains links into a cache, which MLflow does not follow."""
    if not any(part.is_symlink() for part in (path, *path.rglob("*"))):
        return path.resolve()
    copy = scratch / path.name
    return Path(shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy))


def _options(spec: Spec) -> list[tuple[str, bool]]:
    """Inputs beside the picture, and whether they are required."""
    if spec.task == "referring":
        return [("text", True)]
    return [("scene", False)] if isinstance(spec.model, VPDModel) and spec.model.prompt.strategy == "scene" else []


def _signature(spec: Spec) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = [ColSpec("string", "image")] + [ColSpec("string", name, required=must) for name, must in _options(spec)]
    outputs = [ColSpec("string", "png"), ColSpec("long", "width"), ColSpec("long", "height")]
    return ModelSignature(Schema([*inputs]), Schema([*outputs]))


def _input_example(spec: Spec) -> pd.DataFrame:
    """One row: a plain picture, and the options of the task."""
    import pandas as pd
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (96, 64), (205, 200, 185)).save(file, "PNG")
    row = {"image": base64.b64encode(file.getvalue()).decode()}
    return pd.DataFrame([row | {name: EXAMPLES[name] for name, _ in _options(spec)}])


def _requirements() -> list[str]:
    """This project's requirements as they are installed here; the project itself comes along as code."""
    versions = {}
    for declared in metadata.requires("vpd") or []:
        name = re.split(r"[^\w.-]", declared, maxsplit=1)[0]
        if "extra ==" not in declared and name not in NOT_NEEDED:
            with contextlib.suppress(metadata.PackageNotFoundError):  # only other platforms need it
                versions[name] = metadata.version(name).partition("+")[0]  # without a local part such as +cpu
    return [f"{name}=={version}" for name, version in versions.items()]


# ---------------------------------------------------------------------------------------------------------------- locate
def model_places(uri: str, tracking_uri: str, folder: Path = DOWNLOADS) -> dict[str, Path]:
    """Find the files of a registered model; none of its code is run.

    Args:
        uri: such as ``models:/vpd-depth/1`` or ``models:/vpd-depth@champion``.
        tracking_uri: the store.
        folder: where a model is downloaded to, once, if it is not on this machine.

    Returns:
        Paths of ``spec``, ``weights``, ``checkpoint`` and ``classes`` (a JSON file).

    Raises:
        UserError: there is no such model, or the checkpoint that it refers to is not here.
    """
    from mlflow.models import Model

    form = FORM.fullmatch(uri)
    if form is None:
        raise UserError(f"'{uri}' names no registered model; write for example models:/vpd-depth/1")
    with connected(tracking_uri) as client:
        root = _files(client, _version(client, uri, form), tracking_uri, folder)
    described = Model.load(root).flavors.get("python_function", {})
    paths = {name: root / entry["path"] for name, entry in described.get("artifacts", {}).items()}
    # The file may come from anybody: its paths must not lead out of the model.
    paths = {name: path for name, path in paths.items() if path.resolve().is_relative_to(root.resolve())}
    for name in FILES:
        if name not in paths or not paths[name].is_file():
            raise UserError(f"{uri} has no {name}, so it is not a model that vpd track registered; name another")
    if "checkpoint" not in paths:
        config = described.get("config", {})
        paths["checkpoint"] = check_checkpoint(Path(config["checkpoint"]), config["checkpoint_digest"])
    return {name: paths[name] for name in (*FILES, "checkpoint")}


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
    """The model's folder, downloaded unless it is on this machine."""
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


def check_checkpoint(folder: Path, expected: str) -> Path:
    """Return ``folder`` if it is the checkpoint with this manifest digest; UserError otherwise."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"the model refers to the checkpoint {folder}, which is not here; fetch it or put it there")
    if sha256(manifest) != expected:
        raise UserError(f"{folder} is not the checkpoint that the model was trained from; put that one back")
    return folder
