"""Dataset inputs of MLflow runs: what an experiment was trained on and validated on, by the digest of its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vpd.config.schema import Spec
from vpd.tracking.tags import UNKNOWN
from vpd.utils.files import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

CONTEXTS = ("training", "validation")
CONTEXT_TAG = "mlflow.data.context"
LONGEST_DIGEST = 36
"""Characters that MLflow keeps of a digest; the profile has all of it."""


class DatasetUse(NamedTuple):
    """One split of one prepared dataset, as one run uses it."""

    name: str
    digest: str
    """SHA-256 of the dataset's manifest, which lists that of every file."""
    context: str
    """``training`` or ``validation``."""
    source: str
    """Folder that holds the files."""
    counts: Mapping[str, int]
    """What the manifest counts; nothing where the dataset itself is not here."""


def dataset_uses(spec: Spec, digest: str, data: Path | None) -> tuple[DatasetUse, ...]:
    """Both splits of the spec's dataset under the folder ``data``; none while the digest is not known.

    Expressions of the RefCOCO family go by their variant's name. MLflow tells the inputs of a run apart by name and
    digest, so the split is part of the name.
    """
    if digest == UNKNOWN:
        return ()
    place = (data or Path("data") / spec.scale) / spec.dataset
    name, (source, counts) = spec.variant or spec.dataset, _described(place)
    return tuple(DatasetUse(f"{name}/{context}", digest, context, source, counts) for context in CONTEXTS)


@cache
def _described(place: Path) -> tuple[str, Mapping[str, int]]:
    from vpd.datasets.manifest import MANIFEST, located

    counts = read_json(place / MANIFEST).get("counts", {}) if (place / MANIFEST).is_file() else {}
    return located(place).as_posix(), counts


def as_input(use: DatasetUse) -> DatasetInput:
    """Return MLflow's entity, whose source ``mlflow.data.get_source`` opens as a local folder."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps({"sha256": use.digest, **use.counts})
    source = json.dumps({"uri": use.source})
    dataset = Dataset(use.name, use.digest[:LONGEST_DIGEST], "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag(CONTEXT_TAG, use.context)])


def contradicts(run: Run, uses: tuple[DatasetUse, ...]) -> bool:
    """Whether the run shows other contents of one of these datasets; inputs can be added to a run, but not removed."""
    present = _present(run)
    return any(name == use.name and digest != use.digest[:LONGEST_DIGEST] for use in uses for name, digest in present)


def log_datasets(client: MlflowClient, run: Run, uses: tuple[DatasetUse, ...]) -> None:
    """Add those inputs that the run does not have yet."""
    present = _present(run)
    missing = [as_input(use) for use in uses if (use.name, use.digest[:LONGEST_DIGEST]) not in present]
    if missing:
        client.log_inputs(run.info.run_id, missing)


def _present(run: Run) -> set[tuple[str, str]]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return {(entry.dataset.name, entry.dataset.digest) for entry in inputs}
