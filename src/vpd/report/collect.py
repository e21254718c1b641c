"""Reads what the other stages measured: metrics, losses, timings, and what every row of the tables costs."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from vpd.config.params import Params
from vpd.config.reported import load_reported
from vpd.config.tables import RELEASED, matched_row
from vpd.evaluation.results import read_metrics
from vpd.measures.results import TABLE
from vpd.planning.costs import read_entries, read_timing
from vpd.report.cells import csv_text, number, read_csv
from vpd.report.wording import ordinal
from vpd.utils.errors import UserError
from vpd.utils.files import files_in

COLUMNS = ["experiment", "seed", "milestone", "step", "metric", "value", "provenance"]
MEASURES = {
    "thing": ("objects with colour %", 100, 1),
    "room": ("rooms %", 100, 1),
    "frechet": ("Fréchet distance", 1, 2),
    "word_auc": ("words point, AUC", 1, 2),
    "text_matters": ("wrong caption costs more %", 100, 1),
}
"""Column of measures.csv -> its heading in the report, the factor of its values, and their decimals."""
Costs = Mapping[str, Mapping[str, float]]  # experiment -> figures of ``vpd cost``


class _Entry(BaseModel):
    figures: dict[str, float]


def collect(
    metrics: Path, experiments: Iterable[str], released: Path | None = None, weights: Iterable[str] = ()
) -> pd.DataFrame:
    """Read measurements into a tidy frame; ``weights`` of others in ``released`` get the ending ``@released``."""
    names = list(experiments)
    lines = [line for name in names for line in _lines(metrics / f"{name}.json", name, "measured")]
    if not lines:
        raise UserError(f"{metrics} has metrics of none of the {len(names)} experiments; run the evaluate stage first")
    if released:
        files = {name + RELEASED: released / "metrics" / f"{name}.json" for name in weights}
        lines += [line for name, path in files.items() for line in _lines(path, name, "released-weights")]
    return pd.DataFrame(lines, columns=COLUMNS)


def _lines(path: Path, experiment: str, provenance: str) -> Iterator[tuple]:
    for result in read_metrics(path) if path.is_file() else ():
        for name, value in sorted(result["metrics"].items()):
            yield experiment, result["seed"], result["milestone"], result["step"], name, value, provenance


def read_curves(path: Path, columns: Iterable[str]) -> pd.DataFrame | None:
    """Read a CSV of training or pre-training losses; None if there is none, UserError if it lacks one of ``columns``."""
    return read_csv(path, columns, "run the stage that makes it again") if path.is_file() else None


def read_measures(folder: Path) -> pd.DataFrame | None:
    """Read what was measured of the small Stable Diffusion, a line per checkpoint; None if nothing was yet."""
    path, cure = folder / TABLE, "run `vpd measure` again, or restore it with git"
    if not path.is_file():
        return None
    return read_csv(path, ["images", *MEASURES], cure)


def read_timings(folder: Path) -> pd.DataFrame:
    """Read the wall time of every job: columns stage, name, seconds, peak_mb, machine; empty if nothing was timed."""
    lines = []
    for path in files_in(folder, "**/*.json"):
        job = read_timing(path)
        lines.append((job["stage"], job["name"], job["seconds"], job.get("peak_mb"), job.get("machine", "")))
    return pd.DataFrame(lines, columns=["stage", "name", "seconds", "peak_mb", "machine"])


FIGURES = ("parameters (M)", "trainable (M)", "GMACs", "GMACs, mmcv")  # figures of ``vpd cost`` in costs.csv
COST_COLUMNS = ("table", "row", "experiment", "seeds", "seconds_per_seed", "peak_mb", *FIGURES)


def read_costs(path: Path | None) -> Costs:
    """Read figures by experiment from a file of ``vpd cost --out``; empty without a path."""
    return {name: entry.figures for name, entry in read_entries(path, _Entry).items()} if path else {}


def row_costs(params: Params, timings: pd.DataFrame, costs: Costs) -> list[dict[str, Any]]:
    """List every experiment once, by ``COST_COLUMNS``, in the first table or figure that shows it, then the others."""
    trained = timings[timings["stage"] == "train"].set_index("name")[["seconds", "peak_mb"]].to_dict("index")
    rows: dict[str, dict[str, Any]] = {}
    for table, label, experiment in _rows(params):
        if experiment not in rows:
            seeds, job = len(params.resolve(experiment).seeds), trained.get(experiment, {})
            row = {"table": table, "row": label, "experiment": experiment, "seeds": seeds}
            row["seconds_per_seed"] = job["seconds"] / seeds if job else None
            row["peak_mb"] = None if pd.isna(job.get("peak_mb")) else float(job["peak_mb"])
            rows[experiment] = row | {name: costs.get(experiment, {}).get(name) for name in FIGURES}
    return list(rows.values())


def _rows(params: Params) -> Iterator[tuple[str, str, str]]:
    """Table, row and experiment of every place where an experiment is shown."""
    reported = load_reported()
    for name, table in params.tables.items():
        for row in sorted(table.rows, key=lambda row: matched_row(row, reported[name], f"tables.{name}")):
            for column, experiment in row.trained.items():
                yield ordinal(name), f"{row.label}, {column}" if column else row.label, experiment
        for added in table.beyond:
            yield ordinal(name), added.label, added.experiment
    for name, figure in params.figures.items():
        for point, experiment in figure.points.items():
            yield ordinal(name), point, experiment
    for experiment in params.experiments:
        yield "beyond the paper", experiment, experiment


def costs_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format the costs as CSV; unknown values are empty."""
    texts, numeric = COST_COLUMNS[:4], COST_COLUMNS[4:]
    return csv_text(COST_COLUMNS, ([*(row[c] for c in texts), *(number(row[c]) for c in numeric)] for row in rows))
