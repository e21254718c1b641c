"""What every row costs: training time and memory as measured, size and multiply-adds as ``vpd cost`` counts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from vpd.report.names import ordinal

if TYPE_CHECKING:
    from vpd.config.params import Params

SHOWN = ("parameters (M)", "trainable (M)", "GMACs", "GMACs, mmcv")
"""Figures of ``vpd cost`` that the report shows."""
COLUMNS = ("table", "row", "experiment", "seeds", "seconds_per_seed", "peak_mb", *SHOWN)


class _Entry(BaseModel):
    figures: dict[str, float]


@dataclass(frozen=True)
class RowCost:
    """What one experiment of one table row took."""

    table: str
    row: str
    experiment: str
    seeds: int
    seconds: float | None = None
    """Wall time of training per seed; None if training was not timed here."""
    peak_mb: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


def read_costs(path: Path | None) -> Costs:
    """Figures by experiment from a file that ``vpd cost --out`` wrote; empty without a path."""
    return {name: entry.figures for name, entry in read_entries(path, _Entry).items()} if path else {}


def row_costs(params: Params, timings: pd.DataFrame, costs: Costs) -> list[RowCost]:
    """Every experiment of every table row, once: in the first table that shows it, then those that only figures show."""
    trained = timings[timings["stage"] == "train"].set_index("name")
    found = []
    for table, row, experiment in _places(params):
        seeds = len(params.resolve(experiment).seeds)
        seconds = peak = None
        if experiment in trained.index:
            job = trained.loc[experiment]
            seconds = float(job["seconds"]) / seeds
            peak = None if pd.isna(job["peak_mb"]) else float(job["peak_mb"])
        found.append(RowCost(table, row, experiment, seeds, seconds, peak, costs.get(experiment, {})))
    return found


def _places(params: Params) -> Iterator[tuple[str, str, str]]:
    seen, reported = set(), load_reported()
    for name, table in params.tables.items():
        for row in sorted(table.rows, key=lambda row: matched_row(row, reported[name], f"tables.{name}")):
            for column, experiment in row.trained.items():
                if experiment not in seen:
                    seen.add(experiment)
                    yield ordinal(name), f"{row.label}, {column}" if column else row.label, experiment
    for name, figure in params.figures.items():
        for point, experiment in figure.points.items():
            if experiment not in seen:
                seen.add(experiment)
                yield ordinal(name), point, experiment
    for experiment in params.experiments:
        if experiment not in seen:
            yield "beyond the paper", experiment, experiment


def costs_csv(rows: list[RowCost]) -> str:
    """The costs as CSV text; what is not known is empty."""
    lines = []
    for row in rows:
        numbers = (row.seconds, row.peak_mb, *(row.figures.get(name) for name in SHOWN))
        lines.append((row.table, row.row, row.experiment, row.seeds, *map(number, numbers)))
    return csv_text(COLUMNS, lines)
