"""Registered models in an MLflow store: a version per trained network, and none twice."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.tracking.candidates import Candidate
from vpd.tracking.locate import model_id
from vpd.tracking.package import PNG, options, save_package
from vpd.tracking.store import as_global, setting
from vpd.tracking.tags import KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

MODEL = "vpd.model"
"""Tag with the digest that tells versions apart."""
CHAMPION = "champion"
VERSIONS = "mlflow.modelVersions"
TIMEOUT, UPLOAD_SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT", "600"
"""A server answers only when it has stored a whole file."""
DESCRIPTIONS = {
    "segmentation": "Semantic segmentation",
    "referring": "The object that a text describes",
    "depth": "Depth from one picture",
}


def register(client: MlflowClient, experiment: str, found: Candidate, run: Run) -> bool:
    """Make the version of ``found`` exist and the aliases point to it; return whether it is new.

    Every step looks for its own result first, so that a killed attempt is completed. Of versions that several processes
    made at once, the one with the lowest number stays; whoever made another finds it gone and is to begin again.
    """
    versions, new = _versions(client, found), None
    if not versions:
        new = _new_version(client, found, _logged_model(client, experiment, found, run), run)
        versions = _versions(client, found)
    version, *surplus = versions
    for other in surplus:
        client.delete_model_version(found.name, other.version)
    _remove_attempts(client, experiment, found, version)
    _show(client, version)
    _point(client, found, version)
    _link(client, version, run)
    return new is not None and new.version == version.version


def _versions(client: MlflowClient, found: Candidate) -> list[ModelVersion]:
    """Versions of this very network; the first by number, which all processes see alike, is the one that counts."""
    versions = client.search_model_versions(f"name = '{found.name}'", max_results=10_000)
    same = [version for version in versions if version.tags.get(MODEL) == found.digest]
    return sorted(same, key=lambda version: int(version.version))


def _new_version(client: MlflowClient, found: Candidate, logged: LoggedModel, run: Run) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    _ensure_registered(client, found)
    source, tags = f"models:/{logged.model_id}", _tags(found)
    with as_global(client.tracking_uri):
        try:
            return client.create_model_version(found.name, source, run.info.run_id, tags, model_id=logged.model_id)
        except MlflowException:
            client.get_logged_model(logged.model_id)  # says so if a faster process has deleted it
            raise


def _show(client: MlflowClient, version: ModelVersion) -> None:
    """Name the version at its logged model."""
    logged = client.get_logged_model(model_id(version))
    text = json.dumps([{"name": version.name, "version": version.version}])
    if logged.tags.get(VERSIONS) != text:
        client.set_logged_model_tags(logged.model_id, {VERSIONS: text})


def _remove_attempts(client: MlflowClient, experiment: str, found: Candidate, version: ModelVersion) -> None:
    """Delete uploads that no version stands for: a killed attempt's, or a slower process's."""
    for logged in _attempts(client, experiment, found):
        if logged.model_id != model_id(version):
            client.delete_logged_model(logged.model_id)


def _ensure_registered(client: MlflowClient, found: Candidate) -> None:
    if not client.search_registered_models(f"name = '{found.name}'"):
        task = found.spec.task
        inputs = ["`image` (base64)"] + [f"`{name}`" for name, _ in options(found.spec)]
        text = f"{DESCRIPTIONS[task]}. In: {', '.join(inputs)}. Out: `png` (base64, {PNG[task]}), `width`, `height`."
        client.create_registered_model(found.name, {"task": task}, text)


def _tags(found: Candidate) -> dict[str, str]:
    spec = found.spec
    names = ("task", "scale", "protocol", "method", "checkpoint")
    tags = {name: str(getattr(spec, name)) for name in names}
    tags |= {"experiment": spec.name, "seed": str(found.seed), "weights": found.weights_digest}
    return {**tags, KEY: found.run_key, MODEL: found.digest}


def _logged_model(client: MlflowClient, experiment: str, found: Candidate, run: Run) -> LoggedModel:
    """Upload the model, unless a complete upload is there already."""
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model

    for logged in _attempts(client, experiment, found):
        if logged.status == LoggedModelStatus.READY:
            return logged
    logged = client.create_logged_model(
        experiment, found.name, run.info.run_id, _tags(found), run.data.params, "pyfunc"
    )
    described = Model(logged.artifact_location, run.info.run_id, model_uuid=logged.model_id, model_id=logged.model_id)
    with tempfile.TemporaryDirectory() as folder, setting(TIMEOUT, UPLOAD_SECONDS):
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        save_package(Path(folder) / "model", found, scratch, described)
        for cache in list((Path(folder) / "model").rglob("__pycache__")):
            shutil.rmtree(cache)
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _attempts(client: MlflowClient, experiment: str, found: Candidate) -> Iterator[LoggedModel]:
    token = None
    while token != "":
        page = client.search_logged_models([experiment], f"name = '{found.name}'", page_token=token)
        yield from [logged for logged in page if logged.tags.get(MODEL) == found.digest]
        token = page.token or ""


def _point(client: MlflowClient, found: Candidate, version: ModelVersion) -> None:
    """Let the aliases name this version: that of its scale and protocol, and the champion, which is tracked last."""
    present: Mapping[str, str] = client.get_registered_model(found.name).aliases
    for alias in (found.alias, CHAMPION):
        if str(present.get(alias)) != str(version.version):
            client.set_registered_model_alias(found.name, alias, version.version)


def _link(client: MlflowClient, version: ModelVersion, run: Run) -> None:
    """Show the model, with the final results, at the run, also at one that replaced the first."""
    from mlflow.entities import LoggedModelOutput, Metric

    outputs, model = run.outputs.model_outputs if run.outputs else [], model_id(version)
    if model in [output.model_id for output in outputs]:
        return
    finals = [name for name in run.data.metrics if name.startswith("final/")]
    points = [point for name in finals for point in client.get_metric_history(run.info.run_id, name)]
    run_id, last = run.info.run_id, max((point.step for point in points), default=0)
    metrics = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model, run_id=run_id) for p in points]
    client.log_batch(run_id, metrics=metrics)
    client.log_outputs(run_id, [LoggedModelOutput(model, step=last)])
