"""Where the files of a registered model lie, for ``vpd predict``: they are read, and none of the model's code is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.tracking.store import connected, database_file
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError, nearest
from vpd.utils.files import atomic_folder, exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "models:/"
FORM = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/@]+))")
DOWNLOADS = Path("downloads/models")
FILES = ("spec", "weights", "classes")


def model_places(uri: str, tracking_uri: str, folder: Path = DOWNLOADS) -> dict[str, Path]:
    """Spec, weights, checkpoint and classes (a JSON file) of the model at ``uri``, such as models:/vpd-depth@champion.

    A model on a server is downloaded into ``folder`` once; one beside a sqlite database is read where it is.
    UserError if there is no such model, or the checkpoint that it refers to is not here.
    """
    form = FORM.fullmatch(uri)
    if form is None:
        raise UserError(f"'{uri}' names no registered model; write for example models:/vpd-depth/1")
    with connected(tracking_uri) as client:
        version = _version(client, uri, form)
        root = _files(client, version, tracking_uri, folder)
    return _places(uri, root)


def _places(uri: str, root: Path) -> dict[str, Path]:
    """What the MLmodel file in ``root`` lists; its paths may not lead out of there."""
    from mlflow.models import Model

    described = Model.load(root).flavors.get("python_function", {})
    listed = {name: root / entry["path"] for name, entry in described.get("artifacts", {}).items()}
    inside = {name: path for name, path in listed.items() if path.resolve().is_relative_to(root.resolve())}
    for name in FILES:
        if name not in inside or not inside[name].is_file():
            raise UserError(f"{uri} has no {name}, so it is not a model that vpd track registered; name another")
    places = {name: inside[name] for name in FILES}
    if "checkpoint" in inside:
        return places | {"checkpoint": inside["checkpoint"]}
    config = described.get("config", {})
    return places | {"checkpoint": check_checkpoint(Path(config["checkpoint"]), config["checkpoint_digest"])}


def _version(client: MlflowClient, uri: str, form: re.Match) -> ModelVersion:
    name = form["name"]
    versions = client.search_model_versions(f"name = '{name}'", max_results=10_000)
    if not versions:
        known = [model.name for model in client.search_registered_models(max_results=1000)]
        raise UserError(f"unknown registered model '{name}'; {nearest(name, known)}")
    numbered = {str(version.version): version for version in versions}
    aliases = client.get_registered_model(name).aliases
    wanted = form["version"]
    if form["alias"]:
        wanted = str(aliases.get(form["alias"], ""))
    elif wanted == "latest":
        wanted = max(numbered, key=int)
    if wanted not in numbered:
        known = sorted(numbered, key=int) + [f"@{alias}" for alias in aliases]
        raise UserError(f"{uri} does not exist; {name} has {', '.join(known)}")
    return numbered[wanted]


def model_id(version: ModelVersion) -> str:
    """Id of the logged model that a version stands for; MLflow's own stores keep it in the source alone."""
    return version.source.removeprefix(PREFIX)


def _files(client: MlflowClient, version: ModelVersion, tracking_uri: str, folder: Path) -> Path:
    """The model's folder, downloaded unless it lies on this machine."""
    from mlflow.artifacts import download_artifacts

    location = client.get_logged_model(model_id(version)).artifact_location
    if location.startswith(("/", "file:")):
        from mlflow.utils.file_utils import local_file_uri_to_path

        return Path(local_file_uri_to_path(location))
    place = folder / model_id(version)
    with exclusive(place):
        if not place.is_dir():
            with atomic_folder(place) as temporary:
                path = database_file(tracking_uri)
                store = f"sqlite:///{path}" if path else tracking_uri
                download_artifacts(location, dst_path=str(temporary), tracking_uri=store)
    return place / location.rstrip("/").rpartition("/")[2]


def check_checkpoint(folder: Path, digest: str) -> Path:
    """``folder``, if it is the checkpoint with this manifest digest; UserError otherwise."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"the model refers to the checkpoint {folder}, which is not here; fetch it or put it there")
    if sha256(manifest) != digest:
        raise UserError(f"{folder} is not the checkpoint that the model was trained from; put that one back")
    return folder
