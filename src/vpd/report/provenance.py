"""Where every measured number comes from: its run, with digests, and the pre-trained network that it started from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from vpd.config.params import Params
from vpd.report.cells import csv_text, number
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

COLUMNS = (
    "run", "experiment", "seed", "checkpoint", "dataset", "spec", "code", "data_digest", "checkpoint_digest", "weights",
    "commit",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One seed of one experiment; empty digests are not recorded."""

    key: str
    """scale/protocol/experiment/seed, which is also the run's key in MLflow."""
    seed: int
    code: str = ""
    data: str = ""
    checkpoint: str = ""
    weights: str = ""
    """Digest of the final weights."""
    commit: str = ""


@dataclass(frozen=True)
class Source:
    """One experiment: what it is, and its runs."""

    experiment: str
    task: str
    dataset: str
    checkpoint: str
    schedule: str
    spec: str
    """Digest of the resolved spec that was evaluated; empty if nothing was."""
    runs: tuple[Run, ...]

    def recorded(self, kind: str) -> list[str]:
        """Distinct digests of ``code``, ``data`` or ``checkpoint``, or commits, over the runs."""
        return sorted({getattr(run, kind) for run in self.runs} - {""})


def sources(params: Params, results: Path) -> list[Source]:
    """Read every experiment of the matrix with its runs."""
    return [_source(params, name, results / "metrics" / f"{name}.json") for name in params.experiments]


def _source(params: Params, name: str, path: Path) -> Source:
    metrics, spec = read_json(path) if path.is_file() else {}, params.resolve(name)
    runs = []
    for seed in sorted({result["seed"] for result in metrics.get("results", [])}):
        record = metrics.get("runs", {}).get(f"seed{seed}", {})
        digests = made_from(record)
        parts = {kind: digests.get(kind, "") for kind in ("code", "data", "checkpoint", "commit")}
        weights = record.get("files", {}).get("final.safetensors", "")
        runs.append(Run(f"{spec.scale}/{spec.protocol}/{name}/seed{seed}", seed, weights=weights, **parts))
    dataset = spec.variant or spec.dataset
    settings = made_from(metrics).get("settings", "")
    return Source(name, spec.task, dataset, spec.checkpoint, spec.schedule, settings, tuple(runs))


def made_from(record: Mapping[str, Any]) -> dict[str, str]:
    """Digests by role of a metrics file or of one of its runs; a role that is not recorded is absent.

    Results recorded before vpd had fingerprints name the digests beside the metrics, and the settings ``spec``.
    """
    fingerprint = record.get("fingerprint")
    if fingerprint is None:
        roles = {"settings": "spec", "code": "code", "data": "data", "checkpoint": "checkpoint", "commit": "commit"}
        return {role: str(record[key]) for role, key in roles.items() if key in record}
    return {"settings": fingerprint["settings"], "code": fingerprint["code"], **fingerprint.get("inputs", {})}


def provenance_csv(experiments: Iterable[Source]) -> str:
    """Format one line per run as CSV."""
    rows = []
    for item in experiments:
        for run in item.runs:
            digests = (item.spec, run.code, run.data, run.checkpoint, run.weights, run.commit)
            rows.append((run.key, item.experiment, run.seed, item.checkpoint, item.dataset, *digests))
    return csv_text(COLUMNS, rows)


DIFFUSION = "text-to-image diffusion"
NETWORKS = (
    "checkpoint", "source", "objective", "images_seen", "parameters", "loss_first", "loss_last", "measures", "used_by",
)  # fmt: skip


class _Loss(BaseModel):
    first: float
    last: float


class _Phase(BaseModel):
    loss: _Loss
    measures: dict[Literal["fresh", "trained"], dict[str, float]]


class Backbone(BaseModel):
    """One checkpoint that experiments start from: its manifest, as far as the report shows it."""

    name: str
    used_by: tuple[str, ...]
    source: str = "not here"
    repo: str | None = None
    revision: str | None = None
    objective: str | None = None
    images_seen: int | None = None
    parameters: dict[str, object] | int | None = None
    """By part, or of all together."""
    phases: dict[str, _Phase] = {}
    """By objective; that of the image encoder is the first."""

    @property
    def loss(self) -> tuple[float, float] | None:
        """First and last loss of the image encoder's own phase."""
        return next(((phase.loss.first, phase.loss.last) for phase in self.phases.values()), None)

    @property
    def measures(self) -> dict[str, tuple[float, float]]:
        """Held-out measures of all phases, each of the trained network and of the same one with fresh weights."""
        compared: dict[str, tuple[float, float]] = {}
        for phase in self.phases.values():
            fresh, trained = (phase.measures.get(name, {}) for name in ("fresh", "trained"))
            shared = [name for name in trained if name in fresh and name != "chance"]  # chance is the same for both
            compared |= {name.replace("_", " "): (trained[name], fresh[name]) for name in shared}
        return compared

    @property
    def size(self) -> int | None:
        """Parameters of all parts together."""
        if isinstance(self.parameters, dict):
            return sum(value for value in self.parameters.values() if isinstance(value, int))
        return self.parameters

    @property
    def origin(self) -> str:
        """Origin of its weights in words."""
        if self.source == "pretrained":
            return "pre-trained here"
        revision = f" at {self.revision[:12]}" if self.revision else ""
        return f"{self.repo}{revision}" if self.repo else self.source


def backbones(params: Params, folder: Path) -> list[Backbone]:
    """Read every checkpoint of the matrix, in the order of first use; ``folder`` has copies of their manifests."""
    used: dict[str, list[str]] = {}
    for name in params.experiments:
        used.setdefault(params.resolve(name).checkpoint, []).append(name)
    return [_backbone(params, name, names, folder / f"{name}.json") for name, names in used.items()]


def _backbone(params: Params, name: str, used_by: list[str], path: Path) -> Backbone:
    recorded = read_json(path) if path.is_file() else {}
    manifest = _diffusion(params, name) if name in params.checkpoints else recorded
    try:
        return Backbone.model_validate({**manifest, "name": name, "used_by": used_by})
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path} is not a backbone's manifest ({key}); make the backbone again") from None


def _diffusion(params: Params, name: str) -> dict[str, Any]:
    """Describe a Stable Diffusion checkpoint from the parameters: its milestone, or its repository."""
    spec, denoiser = params.checkpoint(name), params.pretraining.denoiser
    steps = params.pretraining.milestones.get(name)
    seen = steps * denoiser.batch_size if steps is not None and denoiser is not None else None
    about = {"source": spec.source, "repo": spec.repo, "revision": spec.revision}
    return {"objective": DIFFUSION, "images_seen": seen, **about}


def backbones_csv(networks: Iterable[Backbone]) -> str:
    """Format the checkpoints as CSV; unknown values are empty."""
    rows = []
    for item in networks:
        texts = (f"{key} {number(trained)} (random {number(fresh)})" for key, (trained, fresh) in item.measures.items())
        numbers = map(number, (item.images_seen, item.size, *(item.loss or (None, None))))
        rows.append((item.name, item.origin, item.objective or "", *numbers, "; ".join(texts), " ".join(item.used_by)))
    return csv_text(NETWORKS, rows)
