"""Reads what the other stages measured: metrics, losses, timings, and what every row of the tables costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, FiniteFloat, ValidationError

from vpd.config.params import Params
from vpd.config.reported import load_reported
from vpd.config.tables import RELEASED, matched_row
from vpd.planning.costs import read_entries
from vpd.report.cells import csv_text, number
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


def read_csv(path: Path, columns: Iterable[str], cure: str, dtype: dict[str, type] | None = None) -> pd.DataFrame:
    """Read a CSV file; UserError with ``cure`` if it is damaged or lacks one of ``columns``."""
    try:
        frame = pd.read_csv(path, dtype=dtype)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file ({error}); {cure}") from None
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}' (columns: {', '.join(frame.columns)}); {cure}")
    return frame


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


@dataclass(frozen=True)
class RowCost:
    """Cost of one experiment of one table row."""

    table: str
    row: str
    experiment: str
    seeds: int
    seconds: float | None = None
    """Wall time of training per seed; None if training was not timed here."""
    peak_mb: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


def read_costs(path: Path | None) -> Costs:
    """Read figures by experiment from a file of ``vpd cost --out``; empty without a path."""
    return {name: entry.figures for name, entry in read_entries(path, _Entry).items()} if path else {}


def row_costs(params: Params, timings: pd.DataFrame, costs: Costs) -> list[RowCost]:
    """List every experiment once: in the first table or figure that shows it, then those that none shows."""
    trained = timings[timings["stage"] == "train"].set_index("name")[["seconds", "peak_mb"]].to_dict("index")
    rows, listed = [], set()
    for table, row, experiment in _rows(params):
        if experiment not in listed:
            listed.add(experiment)
            seeds = len(params.resolve(experiment).seeds)
            job = trained.get(experiment, {})
            seconds = job["seconds"] / seeds if job else None
            peak = None if pd.isna(job.get("peak_mb")) else float(job["peak_mb"])
            rows.append(RowCost(table, row, experiment, seeds, seconds, peak, costs.get(experiment, {})))
    return rows


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


def costs_csv(rows: Iterable[RowCost]) -> str:
    """Format the costs as CSV; unknown values are empty."""
    lines = []
    for row in rows:
        numbers = (row.seconds, row.peak_mb, *(row.figures.get(name) for name in FIGURES))
        lines.append((row.table, row.row, row.experiment, row.seeds, *map(number, numbers)))
    return csv_text(COST_COLUMNS, lines)
