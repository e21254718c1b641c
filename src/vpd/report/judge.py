"""Fills the cells: looks measurements up, quotes the paper elsewhere with the reason, and gives verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from vpd.config.params import Params
from vpd.config.reported import ReportedTable, Row, reruns_of
from vpd.config.tables import RELEASED, FigureSpec, QuestionSpec, TableRow, TableSpec, band, matched_row, metric_band
from vpd.report.cells import PROTOCOL_OURS, Cell
from vpd.report.collect import Costs

OURS = {"reproduced": "agrees", "as re-run by others": "as re-run by others", "differs": "differs"}
SLACK = 1e-9
"""Values carry six decimals; without it, 54.4 - 53.7 would fall outside a band of 0.7."""
SETTING = "a setting, not a result"
UNCOUNTED = "the costs of this network were not given to the report"
UNCLAIMED = "no experiment of params.yaml fills this cell"
BEYOND = "beyond-the-paper"
"""Table of the cells of questions that the paper does not ask."""
Key = tuple[str, str, str]
"""Table, row and column."""
Reruns = tuple[tuple[str, float], ...]
"""(source, value) of others."""
Measured = Mapping[tuple[str, str], tuple[dict[int, float], str]]
"""(experiment, ``milestone.metric``) -> value by seed, provenance."""


def by_reference(frame: pd.DataFrame) -> Measured:
    """Index the tidy frame of ``collect`` by experiment and ``milestone.metric``."""
    return {
        (str(experiment), f"{milestone}.{metric}"): (
            dict(sorted(zip(lines["seed"], lines["value"], strict=True))),
            lines["provenance"].iloc[0],
        )
        for (experiment, milestone, metric), lines in frame.groupby(["experiment", "milestone", "metric"])
    }


@dataclass(frozen=True)
class Judge:
    """Looks measurements up and gives verdicts."""

    measured: Measured
    comparable: bool
    """Whether the paper's absolute numbers can be expected at this scale."""
    released: frozenset[str] = frozenset()
    """Experiments whose released weights the scale measures; elsewhere such rows are quoted."""
    costs: Costs = field(default_factory=dict)
    full_size: bool = False
    """Whether the costs are those of networks of the paper's size."""

    def runs(self, experiment: str) -> bool:
        """Whether this scale runs ``experiment`` at all."""
        return not experiment.endswith(RELEASED) or experiment in self.released

    def cell(
        self,
        key: Key,
        paper: float | None,
        source: tuple[str, str],
        tolerance: float,
        *,
        ours: bool = False,
        reruns: Reruns = (),
    ) -> Cell:
        """Fill a cell from ``source``, an experiment and ``milestone.metric``; ``ours`` if the protocol is this project's.

        ``tolerance`` is the half-width of the ``reproduced`` band, in the metric's unit.
        """
        experiment, reference = source
        metric = reference.partition(".")[2]
        if source not in self.measured:
            return Cell(*key, paper, "missing", "not run", experiment, metric, reruns=reruns)
        runs, provenance = self.measured[source]
        seeds, values = tuple(runs), tuple(runs.values())
        verdict = self.verdict(statistics.fmean(values), paper, tolerance, reruns)
        if ours and verdict in OURS:
            verdict = OURS[verdict] + PROTOCOL_OURS
        return Cell(*key, paper, provenance, verdict, experiment, metric, seeds, values, reruns)

    def verdict(self, value: float, paper: float | None, tolerance: float, reruns: Reruns = ()) -> str:
        """Choose ``beyond the paper``, ``miniature``, ``reproduced``, ``as re-run by others`` or ``differs``."""
        if paper is None:
            return "beyond the paper"
        if not self.comparable:
            return "miniature"
        near = [abs(value - other) <= tolerance + SLACK for other in (paper, *(number for _, number in reruns))]
        if near[0]:
            return "reproduced"
        return "as re-run by others" if any(near) else "differs"

    def counted(self, key: Key, paper: float | None, experiment: str, value: float, share: float) -> Cell:
        """Fill a cell that is counted from the network: it needs no training, only a network of the paper's size."""
        judge = replace(self, comparable=self.full_size)
        verdict = judge.verdict(value, paper, share * (paper or 0.0))
        return Cell(*key, paper, "counted", verdict, experiment, key[2], values=(value,))


def all_cells(
    params: Params,
    reported: Mapping[str, ReportedTable],
    frame: pd.DataFrame,
    costs: Costs | None = None,
    full_size: bool = False,
) -> list[Cell]:
    """Fill every cell: of the paper's tables, of the points of trend figures, and of the questions' experiments.

    ``frame`` is that of ``collect``; ``full_size`` says that the costs are those of networks of the paper's size.
    """
    released = frozenset(name + RELEASED for name in params.released)
    judge = Judge(by_reference(frame), params.comparable, released, costs or {}, full_size)
    cells: list[Cell] = []
    for name in table_names(params, reported):
        cells += table_cells(name, params.tables.get(name), reported[name], judge, params.tolerances)
    for name, figure in params.figures.items():
        if figure.metric:
            cells += figure_cells(name, figure, figure.metric, reported.get(name), judge, params.tolerances)
    return cells + list(question_cells(params.questions, judge))


def table_names(params: Params, reported: Mapping[str, ReportedTable]) -> list[str]:
    """Tables of the report in the paper's order; a figure's printed points are no table."""
    return [name for name in reported if name not in params.figures or name in params.tables]


def table_cells(
    name: str, table: TableSpec | None, source: ReportedTable, judge: Judge, tolerances: Mapping[str, float]
) -> Iterator[Cell]:
    """Fill one table: measured where ``table`` claims row and column, quoted elsewhere."""
    claimed = {matched_row(row, source, f"tables.{name}"): row for row in table.rows} if table else {}
    for index, reported in enumerate(source.rows):
        row = claimed.get(index)
        label = row.label if row else source.label(index)
        for column in source.columns:
            key, paper, others = (name, label, column), _printed(reported, column), reruns_of(name, reported, column)
            experiment = row.source(column) if row and table and column in table.columns else None
            if row and table and experiment and judge.runs(experiment):
                tolerance = band(name, table, row, column, tolerances)
                origin = (experiment, table.columns[column])
                yield judge.cell(key, paper, origin, tolerance, ours=table.ours or row.ours, reruns=others)
            elif count := _count(judge, source, row, column):
                yield judge.counted(key, paper, *count)
            elif paper is not None:
                yield Cell(*key, paper, reruns=others, reason=_reason(source, reported, row, column))


def _printed(row: Row, column: str) -> float | None:
    value = row.get(column)
    return value if isinstance(value, (int, float)) else None


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
    name: str,
    figure: FigureSpec,
    reference: str,
    source: ReportedTable | None,
    judge: Judge,
    bands: Mapping[str, float],
) -> Iterator[Cell]:
    """Fill a trend figure: its points in order, then printed points that no experiment fills."""
    column = source.columns[0] if source else reference.partition(".")[2]
    rows = source.rows if source else ()
    printed = {source.label(i).casefold(): _printed(row, column) for i, row in enumerate(rows)} if source else {}
    tolerance = metric_band(reference, bands, f"figures.{name}.metric")
    for point, experiment in figure.points.items():
        paper = printed.pop(point.casefold(), None)
        yield judge.cell((name, point, column), paper, (experiment, reference), tolerance, ours=figure.ours)
    for point, paper in printed.items():
        yield Cell(name, point, column, paper, reason=UNCLAIMED)


def question_cells(questions: tuple[QuestionSpec, ...], judge: Judge) -> Iterator[Cell]:
    """Fill one cell per experiment and metric that a question compares."""
    pairs = dict.fromkeys(
        (name, question.metric) for question in questions for name in (question.first, question.second)
    )
    for experiment, reference in pairs:
        yield judge.cell((BEYOND, experiment, reference), None, (experiment, reference), 0.0)
