"""Where every measured number comes from: run, spec, code, data and weights, each by its digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.report.cells import csv_text
from vpd.utils.files import read_json

if TYPE_CHECKING:
    from vpd.config.params import Params

COLUMNS = (
    "run", "experiment", "seed", "checkpoint", "dataset", "spec", "code", "data_digest", "checkpoint_digest", "weights",
    "commit",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One seed of one experiment; empty texts are not recorded."""

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

    @property
    def measured(self) -> bool:
        """Whether the experiment has results here."""
        return bool(self.spec)


def sources(params: Params, results: Path) -> list[Source]:
    """Every experiment of the matrix with its runs."""
    return [_source(params, name, results) for name in params.experiments]


def _source(params: Params, name: str, results: Path) -> Source:
    path = results / "metrics" / f"{name}.json"
    metrics = read_json(path) if path.is_file() else {}
    recorded = _recorded(metrics, results / "runs" / name / "manifest.json", params.resolve(name).training_digest())
    spec = params.resolve(name)
    runs = []
    for seed in sorted({result["seed"] for result in metrics.get("results", [])}):
        facts = recorded.get(f"seed{seed}", {})
        weights = facts.get("files", {}).get("final.safetensors", "")
        digests = {key: str(facts.get(key, "")) for key in ("code", "data", "checkpoint", "commit")}
        runs.append(Run(f"{spec.scale}/{spec.protocol}/{name}/seed{seed}", seed, weights=weights, **digests))
    what = (name, spec.task, spec.variant or spec.dataset, spec.checkpoint, spec.schedule)
    return Source(*what, str(metrics.get("spec", "")), tuple(runs))


def _recorded(metrics: dict, manifest: Path, training: str) -> dict[str, dict]:
    """What is known of each seed's run: by the metrics file, else by the manifest of the runs if it is of this spec."""
    if "runs" in metrics:
        return metrics["runs"]
    content = read_json(manifest) if manifest.is_file() else {}
    return content.get("seeds", {}) if content.get("spec") == training else {}


def provenance_csv(found: list[Source]) -> str:
    """One line per run as CSV text."""
    rows = []
    for item in found:
        for run in item.runs:
            digests = (item.spec, run.code, run.data, run.checkpoint, run.weights, run.commit)
            rows.append((run.key, item.experiment, run.seed, item.checkpoint, item.dataset, *digests))
    return csv_text(COLUMNS, rows)
