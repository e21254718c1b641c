"""Cells: every number of the paper once, beside what was measured for it, and the verdict."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vpd.files import write_text
from vpd.report.layout import RELEASED, FigureSpec, TableSpec, band, matched_row, metric_band, table_names
from vpd.report.reported import ReportedTable, reruns_of

if TYPE_CHECKING:
    from vpd.params import Params

COLUMNS = ("table", "row", "column", "value", "sd", "seeds", "paper", "reruns", "provenance", "verdict", "experiment")
PROTOCOL_OURS = ", protocol: ours"
"""Ending of verdicts on rows whose protocol nobody published: never a reproduction in the narrow sense."""
OURS = {"reproduced": "agrees", "as re-run by others": "as re-run by others", "differs": "differs"}
PROVENANCES = ("measured", "released-weights", "quoted", "missing")
Measured = Mapping[tuple[str, str], tuple[dict[int, float], str]]
"""(experiment, ``milestone.metric``) -> value by seed, provenance."""


@dataclass(frozen=True)
class Cell:
    """One number: ``values`` holds one measurement per seed, ``paper`` what the paper prints."""

    table: str
    row: str
    column: str
    paper: float | None
    provenance: str = "quoted"
    verdict: str = "quoted"
    experiment: str = ""
    metric: str = ""
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    reruns: tuple[tuple[str, float], ...] = ()
    """(source, value) of others who measured the same."""

    @property
    def value(self) -> float | None:
        """Mean over the seeds, exactly rounded and so the same in any order; the paper's number if it is quoted."""
        if self.values:
            return statistics.fmean(self.values)
        return self.paper if self.provenance == "quoted" else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Measured minus the paper's number."""
        return self.value - self.paper if self.values and self.paper is not None else None


def by_reference(frame: pd.DataFrame) -> Measured:
    """Index the tidy frame of ``collect`` by experiment and ``milestone.metric``."""
    groups = frame.groupby(["experiment", "milestone", "metric"], sort=True)
    return {
        (experiment, f"{milestone}.{metric}"): (
            dict(sorted(zip(lines["seed"], lines["value"], strict=True))),
            lines["provenance"].iloc[0],
        )
        for (experiment, milestone, metric), lines in groups
    }


@dataclass(frozen=True)
class Judge:
    """Looks measurements up and gives verdicts."""

    measured: Measured
    comparable: bool
    released: frozenset[str] = frozenset()
    """Experiments whose released weights the scale measures; elsewhere such rows are quoted."""

    def runs(self, experiment: str | None) -> bool:
        """Whether this scale runs ``experiment`` at all."""
        return experiment is not None and (not experiment.endswith(RELEASED) or experiment in self.released)

    def cell(
        self,
        cell: tuple[str, str, str],
        paper: float | None,
        source: tuple[str, str],
        tolerance: float,
        *,
        ours: bool = False,
        reruns: tuple[tuple[str, float], ...] = (),
    ) -> Cell:
        """The cell ``(table, row, column)`` filled from ``source``, an experiment and a ``milestone.metric``."""
        experiment, reference = source
        metric = reference.partition(".")[2]
        if source not in self.measured:
            return Cell(*cell, paper, "missing", "not run", experiment, metric, reruns=reruns)
        runs, provenance = self.measured[source]
        seeds, values = tuple(runs), tuple(runs.values())
        verdict = self.verdict(statistics.fmean(values), paper, tolerance, reruns)
        if ours and verdict in OURS:
            verdict = OURS[verdict] + PROTOCOL_OURS
        return Cell(*cell, paper, provenance, verdict, experiment, metric, seeds, values, reruns)

    def verdict(
        self, value: float, paper: float | None, tolerance: float, reruns: tuple[tuple[str, float], ...] = ()
    ) -> str:
        """``beyond the paper``, ``miniature``, ``reproduced``, ``as re-run by others`` or ``differs``."""
        if paper is None:
            return "beyond the paper"
        if not self.comparable:
            return "miniature"
        # Values carry six decimals; without the slack, 54.4 - 53.7 would fall outside a band of 0.7.
        near = [abs(value - other) <= tolerance + 1e-9 for other in (paper, *(number for _, number in reruns))]
        if near[0]:
            return "reproduced"
        return "as re-run by others" if any(near) else "differs"


def all_cells(params: Params, reported: Mapping[str, ReportedTable], frame: pd.DataFrame) -> list[Cell]:
    """One cell per numeric cell of ``reported`` and per point of the trend figures, in the paper's order."""
    judge = Judge(by_reference(frame), params.comparable, frozenset(name + RELEASED for name in params.released))
    cells = []
    for name in table_names(params, reported):
        cells += table_cells(name, params.tables.get(name), reported[name], judge, params.tolerances)
    for name, figure in params.figures.items():
        if figure.points:
            cells += figure_cells(name, figure, reported.get(name), judge, params.tolerances)
    return cells


def table_cells(
    name: str, table: TableSpec | None, source: ReportedTable, judge: Judge, tolerances: Mapping[str, float]
) -> list[Cell]:
    """The cells of one table: measured where ``table`` claims row and column, quoted elsewhere."""
    claimed = {matched_row(row, source, f"tables.{name}"): row for row in table.rows} if table else {}
    cells = []
    for index, reported in enumerate(source.rows):
        row = claimed.get(index)
        label = row.label if row else source.label(index)
        for column in source.columns:
            experiment = row.source(column) if row and column in table.columns else None
            paper = reported.get(column)
            if judge.runs(experiment):
                allowed = band(name, table, row, column, tolerances)
                key = (experiment, table.columns[column])
                ours, others = table.ours or row.ours, reruns_of(name, reported, column)
                cells.append(judge.cell((name, label, column), paper, key, allowed, ours=ours, reruns=others))
            elif paper is not None:
                cells.append(Cell(name, label, column, paper, reruns=reruns_of(name, reported, column)))
    return cells


def figure_cells(
    name: str, figure: FigureSpec, source: ReportedTable | None, judge: Judge, tolerances: Mapping[str, float]
) -> list[Cell]:
    """The cells of a trend figure: its points in order, then printed points that no experiment fills."""
    metric = figure.metric.partition(".")[2]
    column = source.columns[0] if source else metric
    printed = {source.label(i).casefold(): row[column] for i, row in enumerate(source.rows)} if source else {}
    allowed = metric_band(figure.metric, tolerances, f"figures.{name}.metric")
    cells = []
    for point, experiment in figure.points.items():
        paper = printed.pop(point.casefold(), None)
        key = (experiment, figure.metric)
        cells.append(judge.cell((name, point, column), paper, key, allowed, ours=figure.ours))
    return cells + [Cell(name, point, column, paper) for point, paper in printed.items()]


def counts(cells: Iterable[Cell], attribute: str) -> dict[str, int]:
    """How many cells have each provenance or verdict."""
    return dict(Counter(getattr(cell, attribute) for cell in cells))


def number(value: float | None) -> str:
    """Shortest text of a number rounded to six decimals; empty for None."""
    if value is None:
        return ""
    return repr(round(float(value), 6) + 0.0).removesuffix(".0")


def cells_csv(cells: Iterable[Cell]) -> str:
    """The tidy table as CSV text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in cells:
        numbers = (number(cell.value), number(cell.sd), len(cell.values) or "", number(cell.paper))
        others = "; ".join(f"{number(value)} ({source})" for source, value in cell.reruns)
        ends = (others, cell.provenance, cell.verdict, cell.experiment)
        writer.writerow((cell.table, cell.row, cell.column, *numbers, *ends))
    return buffer.getvalue()


def write_cells(cells: Iterable[Cell], path: Path) -> None:
    """Write ``cells.csv``."""
    write_text(path, cells_csv(cells))
