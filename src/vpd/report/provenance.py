"""Where every measured number comes from: its run, with digests, and the pre-trained network that it started from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
"""Of provenance.csv."""
NETWORKS = (
    "checkpoint", "source", "objective", "images_seen", "parameters", "loss_first", "loss_last", "measures", "used_by",
)  # fmt: skip
"""Columns of backbones.csv."""


def provenance_csv(runs: Iterable[Mapping[str, Any]]) -> str:
    """Format one line per run as CSV."""
    return csv_text(COLUMNS, (run.values() for run in runs))


def runs_of(params: Params, name: str, metrics: Path) -> list[dict[str, Any]]:
    """Describe every run of an experiment, one per seed, by ``COLUMNS``; digests that are not recorded are empty.

    ``run`` is scale/protocol/experiment/seed, which is also the run's key in MLflow; ``weights`` the digest of the final
    weights; ``spec`` the digest of the resolved spec that was evaluated.
    """
    content, spec = read_json(metrics) if metrics.is_file() else {}, params.resolve(name)
    runs = []
    for seed in sorted({result["seed"] for result in content.get("results", [])}):
        record = content.get("runs", {}).get(f"seed{seed}", {})
        made = _made_from(record)
        key, dataset = f"{spec.scale}/{spec.protocol}/{name}/seed{seed}", spec.variant or spec.dataset
        about = (key, name, seed, spec.checkpoint, dataset, _made_from(content).get("settings", ""))
        digests = [made.get(role, "") for role in ("code", "data", "checkpoint")]
        weights = record.get("files", {}).get("final.safetensors", "")
        runs.append(dict(zip(COLUMNS, (*about, *digests, weights, made.get("commit", "")), strict=True)))
    return runs


def _made_from(record: Mapping[str, Any]) -> dict[str, str]:
    """Digests by role of a metrics file or of one of its runs.

    Results recorded before vpd had fingerprints name the digests beside the metrics, and the settings ``spec``.
    """
    if fingerprint := record.get("fingerprint"):
        return {"settings": fingerprint["settings"], "code": fingerprint["code"], **fingerprint.get("inputs", {})}
    roles = {"settings": "spec", "code": "code", "data": "data", "checkpoint": "checkpoint", "commit": "commit"}
    return {role: str(record[key]) for role, key in roles.items() if key in record}


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
    networks = []
    for name, experiments in used.items():
        path = folder / f"{name}.json"
        recorded = read_json(path) if path.is_file() else {}
        manifest = _diffusion(params, name) if name in params.checkpoints else recorded
        try:
            networks.append(Backbone.model_validate({**manifest, "name": name, "used_by": experiments}))
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(f"{path} is not a backbone's manifest ({key}); make the backbone again") from None
    return networks


def _diffusion(params: Params, name: str) -> dict[str, Any]:
    """Describe a Stable Diffusion checkpoint from the parameters: its milestone, or its repository."""
    spec, denoiser = params.checkpoint(name), params.pretraining.denoiser
    steps = params.pretraining.milestones.get(name)
    seen = steps * denoiser.batch_size if steps is not None and denoiser is not None else None
    about = {"source": spec.source, "repo": spec.repo, "revision": spec.revision}
    return {"objective": "text-to-image diffusion", "images_seen": seen, **about}


def backbones_csv(networks: Iterable[Backbone]) -> str:
    """Format the checkpoints as CSV; unknown values are empty."""
    rows = []
    for item in networks:
        texts = (f"{key} {number(trained)} (random {number(fresh)})" for key, (trained, fresh) in item.measures.items())
        numbers = map(number, (item.images_seen, item.size, *(item.loss or (None, None))))
        rows.append((item.name, item.origin, item.objective or "", *numbers, "; ".join(texts), " ".join(item.used_by)))
    return csv_text(NETWORKS, rows)
