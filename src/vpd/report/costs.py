"""What every row costs: training time and memory as measured, size and multiply-adds as ``vpd cost`` counts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import BaseModel

from vpd.config.reported import load_reported
from vpd.config.table_checks import matched_row
from vpd.planning.costs import read_entries
from vpd.report.cells import csv_text, number
from vpd.report.judge import Costs
from vpd.report.wording import ordinal

if TYPE_CHECKING:
    from vpd.config.params import Params

FIGURES = ("parameters (M)", "trainable (M)", "GMACs", "GMACs, mmcv")
"""Figures of ``vpd cost`` in costs.csv."""
COLUMNS = ("table", "row", "experiment", "seeds", "seconds_per_seed", "peak_mb", *FIGURES)


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
    return csv_text(COLUMNS, lines)
