"""Where every measured number comes from: its run, with digests, and the pre-trained network that it started from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

from vpd.report.cells import csv_text, number
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

if TYPE_CHECKING:
    from vpd.config.params import Params

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


# ------------------------------------------------------------------------------------------------- pre-trained networks
DIFFUSION = "text-to-image diffusion"
NETWORKS = (
    "checkpoint", "source", "objective", "images_seen", "parameters", "loss_first", "loss_last", "measures", "used_by",
)  # fmt: skip


class Loss(BaseModel):
    """Loss at both ends of pre-training."""

    first: float
    last: float


class Phase(BaseModel):
    """One objective of a pre-training, as the backbone stage records it."""

    loss: Loss
    measures: dict[Literal["fresh", "trained"], dict[str, float]]


class Manifest(BaseModel):
    """A checkpoint's manifest, as far as the report shows it."""

    source: str = ""
    repo: str | None = None
    revision: str | None = None
    objective: str | None = None
    images_seen: int | None = None
    parameters: dict[str, object] | int | None = None
    phases: dict[str, Phase] = {}

    @property
    def loss(self) -> Loss | None:
        """Loss of the image encoder's own phase, the first."""
        return next((phase.loss for phase in self.phases.values()), None)

    @property
    def measures(self) -> dict[str, tuple[float, float]]:
        """Held-out measures of all phases, each of the trained network and of the same one with fresh weights."""
        compared = {}
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


@dataclass(frozen=True)
class Backbone:
    """One checkpoint that experiments start from."""

    name: str
    manifest: Manifest
    """Empty if nothing is recorded."""
    used_by: tuple[str, ...]

    @property
    def source(self) -> str:
        """Origin of its weights in words."""
        if self.manifest.source == "pretrained":
            return "pre-trained here"
        revision = f" at {self.manifest.revision[:12]}" if self.manifest.revision else ""
        return f"{self.manifest.repo}{revision}" if self.manifest.repo else self.manifest.source or "not here"


def backbones(params: Params, folder: Path) -> list[Backbone]:
    """Read every checkpoint of the matrix, in the order of first use; ``folder`` has copies of their manifests."""
    used: dict[str, list[str]] = {}
    for name in params.experiments:
        used.setdefault(params.resolve(name).checkpoint, []).append(name)
    return [Backbone(name, _manifest(params, name, folder), tuple(names)) for name, names in used.items()]


def _manifest(params: Params, name: str, folder: Path) -> Manifest:
    if name in params.checkpoints:
        return _diffusion(params, name)
    path = folder / f"{name}.json"
    if not path.is_file():
        return Manifest()
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path} is not a backbone's manifest ({key}); make the backbone again") from None


def _diffusion(params: Params, name: str) -> Manifest:
    """Describe a Stable Diffusion checkpoint from the parameters: its milestone, or its repository."""
    spec, denoiser = params.checkpoint(name), params.pretraining.denoiser
    steps = params.pretraining.milestones.get(name)
    seen = steps * denoiser.batch_size if steps is not None and denoiser is not None else None
    about = {"source": spec.source, "repo": spec.repo, "revision": spec.revision}
    return Manifest.model_validate({"objective": DIFFUSION, "images_seen": seen, **about})


def backbones_csv(networks: Iterable[Backbone]) -> str:
    """Format the checkpoints as CSV; unknown values are empty."""
    rows = []
    for item in networks:
        facts = item.manifest
        loss = (facts.loss.first, facts.loss.last) if facts.loss else (None, None)
        texts = (
            f"{key} {number(trained)} (random {number(fresh)})" for key, (trained, fresh) in facts.measures.items()
        )
        numbers = map(number, (facts.images_seen, facts.size, *loss))
        rows.append((item.name, item.source, facts.objective or "", *numbers, "; ".join(texts), " ".join(item.used_by)))
    return csv_text(NETWORKS, rows)
