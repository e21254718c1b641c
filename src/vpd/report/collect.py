"""Reads what the other stages measured: metrics, losses, timings, and what every row of the tables costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, FiniteFloat, ValidationError

from vpd.config.params import Params
from vpd.config.reported import load_reported
from vpd.config.table_checks import matched_row
from vpd.config.tables import RELEASED
from vpd.planning.costs import read_entries
from vpd.report.cells import csv_text, number, read_csv
from vpd.report.wording import ordinal
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

COLUMNS = ["experiment", "seed", "milestone", "step", "metric", "value", "provenance"]
Costs = Mapping[str, Mapping[str, float]]
"""Experiment -> figures of ``vpd cost``."""
TIMINGS = ["stage", "name", "seconds", "peak_mb"]


class _Result(BaseModel):
    seed: int
    milestone: str
    step: int
    metrics: dict[str, FiniteFloat]


class Metrics(BaseModel):
    """A metrics file, as far as the report needs it."""

    experiment: str
    provenance: Literal["measured", "released-weights"] = "measured"
    """``released-weights``: this project evaluated weights that the authors trained."""
    results: list[_Result]


def collect(
    metrics: Path, experiments: Iterable[str], released: Path | None = None, weights: Iterable[str] = ()
) -> pd.DataFrame:
    """Read measurements into a tidy frame, one line per seed, milestone and metric.

    Args:
        metrics: folder with one JSON file per experiment; files of other experiments are ignored.
        experiments: those of the matrix; one whose file is missing has no lines.
        released: folder of the released stage.
        weights: experiments whose released weights were measured; their names end in ``@released`` in the frame.

    Raises:
        UserError: a file is damaged, or the metrics of all experiments are missing.
    """
    names = list(experiments)
    lines = [line for name in names for line in _lines(metrics / f"{name}.json")]
    if not lines:
        raise UserError(f"{metrics} has metrics of none of the {len(names)} experiments; run the evaluate stage first")
    if released:
        lines += [line for name in weights for line in _lines(released / "metrics" / f"{name}.json", RELEASED)]
    return pd.DataFrame(lines, columns=COLUMNS)


def _lines(path: Path, ending: str = "") -> Iterator[tuple]:
    if path.is_file():
        content = _read_metrics(path)
        for result in sorted(content.results, key=lambda result: (result.seed, result.step, result.milestone)):
            run = (content.experiment + ending, result.seed, result.milestone, result.step)
            for name, value in sorted(result.metrics.items()):
                yield (*run, name, value, content.provenance)


def _read_metrics(path: Path) -> Metrics:
    cure = "delete it and evaluate again"
    try:
        content = Metrics.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not a metrics file ({key}: {first['msg'].lower()}); {cure}") from None
    if content.experiment != path.stem:
        raise UserError(f"{path} holds the metrics of experiment '{content.experiment}'; {cure}")
    runs = [(result.seed, result.milestone) for result in content.results]
    if len(set(runs)) != len(runs):
        raise UserError(f"{path} holds a seed and milestone twice; {cure}")
    return content


def read_curves(path: Path, columns: Iterable[str]) -> pd.DataFrame | None:
    """Read a CSV of training or pre-training losses; None if there is none, UserError if it lacks one of ``columns``."""
    return read_csv(path, columns, "run the stage that makes it again") if path.is_file() else None


def read_timings(folder: Path) -> pd.DataFrame:
    """Read the wall time of every job: columns stage, name, seconds, peak_mb; empty if nothing was timed."""
    lines = []
    for path in sorted(folder.rglob("*.json")):
        job = read_json(path)
        if not {"stage", "seconds"} <= job.keys():
            raise UserError(f"{path} has no stage or no seconds; delete it and run the stage that makes it again")
        lines.append((job["stage"], job.get("name", path.stem), float(job["seconds"]), job.get("peak_mb")))
    return pd.DataFrame(lines, columns=TIMINGS)


FIGURES = ("parameters (M)", "trainable (M)", "GMACs", "GMACs, mmcv")
"""Figures of ``vpd cost`` in costs.csv."""
COST_COLUMNS = ("table", "row", "experiment", "seeds", "seconds_per_seed", "peak_mb", *FIGURES)


class _Entry(BaseModel):
    figures: dict[str, float]


def read_costs(path: Path | None) -> Costs:
    """Read figures by experiment from a file of ``vpd cost --out``; empty without a path."""
    return {name: entry.figures for name, entry in read_entries(path, _Entry).items()} if path else {}


def row_costs(params: Params, timings: pd.DataFrame, costs: Costs) -> list[dict[str, Any]]:
    """List every experiment once, in the first table or figure that shows it, then those that none shows.

    Returns:
        ``COST_COLUMNS`` by name; times of training, sizes and multiply-adds are None where they are not known.
    """
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
    for name, figure in params.figures.items():
        for point, experiment in figure.points.items():
            yield ordinal(name), point, experiment
    for experiment in params.experiments:
        yield "beyond the paper", experiment, experiment


def costs_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format the costs as CSV; unknown values are empty."""
    texts, numeric = COST_COLUMNS[:4], COST_COLUMNS[4:]
    return csv_text(COST_COLUMNS, ([*(row[c] for c in texts), *(number(row[c]) for c in numeric)] for row in rows))
