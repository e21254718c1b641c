"""Fills the cells: looks measurements up, quotes the paper elsewhere with the reason, and gives verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pandas as pd

from vpd.config.reported import ReportedTable, Row, reruns_of
from vpd.config.table_checks import band, matched_row, metric_band, table_names
from vpd.config.tables import RELEASED, FigureSpec, QuestionSpec, TableRow, TableSpec
from vpd.report.cells import PROTOCOL_OURS, Cell

if TYPE_CHECKING:
    from vpd.config.params import Params

OURS = {"reproduced": "agrees", "as re-run by others": "as re-run by others", "differs": "differs"}
SLACK = 1e-9
"""Values carry six decimals; without it, 54.4 - 53.7 would fall outside a band of 0.7."""
SETTING = "a setting, not a result"
UNCOUNTED = "the costs of this network were not given to the report"
UNCLAIMED = "no experiment of params.yaml fills this cell"
BEYOND = "beyond-the-paper"
"""Table of the cells of questions that the paper does not ask."""
Measured = Mapping[tuple[str, str], tuple[dict[int, float], str]]
"""(experiment, ``milestone.metric``) -> value by seed, provenance."""
Costs = Mapping[str, Mapping[str, float]]
"""Experiment -> figures of ``vpd cost``."""


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
    costs: Costs = field(default_factory=dict)
    full_size: bool = False
    """Whether the costs are those of networks of the paper's size."""

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
        near = [abs(value - other) <= tolerance + SLACK for other in (paper, *(number for _, number in reruns))]
        if near[0]:
            return "reproduced"
        return "as re-run by others" if any(near) else "differs"

    def counted(
        self, cell: tuple[str, str, str], paper: float | None, experiment: str, value: float, share: float
    ) -> Cell:
        """A cell counted from the network, which needs no training: what matters is the network's size."""
        judge = replace(self, comparable=self.full_size)
        verdict = judge.verdict(value, paper, share * (paper or 0.0))
        return Cell(*cell, paper, "counted", verdict, experiment, cell[2], values=(value,))


def all_cells(
    params: Params,
    reported: Mapping[str, ReportedTable],
    frame: pd.DataFrame,
    costs: Costs | None = None,
    full_size: bool = False,
) -> list[Cell]:
    """One cell per numeric cell of ``reported``, per point of the trend figures and per experiment of a question."""
    released = frozenset(name + RELEASED for name in params.released)
    judge = Judge(by_reference(frame), params.comparable, released, costs or {}, full_size)
    cells = []
    for name in table_names(params, reported):
        cells += table_cells(name, params.tables.get(name), reported[name], judge, params.tolerances)
    for name, figure in params.figures.items():
        if figure.points:
            cells += figure_cells(name, figure, reported.get(name), judge, params.tolerances)
    return cells + list(question_cells(params.questions, judge))


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
            place, paper = (name, label, column), reported.get(column)
            experiment = row.source(column) if row and column in table.columns else None
            if judge.runs(experiment):
                allowed = band(name, table, row, column, tolerances)
                key = (experiment, table.columns[column])
                ours, others = table.ours or row.ours, reruns_of(name, reported, column)
                cells.append(judge.cell(place, paper, key, allowed, ours=ours, reruns=others))
            elif count := _count(judge, source, row, column):
                cells.append(judge.counted(place, paper, *count))
            elif paper is not None:
                others = reruns_of(name, reported, column)
                cells.append(Cell(*place, paper, reruns=others, reason=_reason(source, reported, row, column)))
    return cells


def _count(judge: Judge, source: ReportedTable, row: TableRow | None, column: str) -> tuple[str, float, float] | None:
    """Experiment, count and allowed share of a counted column, if the costs of the row's one experiment are known."""
    if column not in source.costs or row is None or row.released or row.experiment is None:
        return None
    figures = judge.costs.get(row.experiment, {})
    rule = source.costs[column]
    return (row.experiment, figures[rule.figure], rule.tolerance) if rule.figure in figures else None


def _reason(source: ReportedTable, reported: Row, row: TableRow | None, column: str) -> str:
    """Why a printed number is quoted."""
    if column in source.settings:
        return SETTING
    if reported.get("quoted"):
        return str(reported["quoted"])
    return UNCOUNTED if row is not None and column in source.costs else UNCLAIMED


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
    return cells + [Cell(name, point, column, paper, reason=UNCLAIMED) for point, paper in printed.items()]


def question_cells(questions: tuple[QuestionSpec, ...], judge: Judge) -> Iterator[Cell]:
    """One cell per experiment and metric that a question compares."""
    asked = dict.fromkeys((name, asked.metric) for asked in questions for name in (asked.first, asked.second))
    for experiment, reference in asked:
        yield judge.cell((BEYOND, experiment, reference), None, (experiment, reference), 0.0)
