"""Fills the cells: looks measurements up, quotes the paper elsewhere with the reason, and gives verdicts."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from vpd.config.params import Params
from vpd.config.reported import ReportedTable, Row, reruns_of
from vpd.config.tables import RELEASED, FigureSpec, QuestionSpec, TableRow, TableSpec, band, matched_row, metric_band
from vpd.report.cells import PROTOCOL_OURS, Cell
from vpd.report.collect import Costs

OURS = {"reproduced": "agrees", "as re-run by others": "as re-run by others", "differs": "differs"}
SLACK = 1e-9  # values carry six decimals; without it, 54.4 - 53.7 would fall outside a band of 0.7
SETTING = "a setting, not a result"
UNCOUNTED = "the costs of this network were not given to the report"
UNCLAIMED = "no experiment of params.yaml fills this cell"
BEYOND = "beyond-the-paper"  # table of the cells of questions that the paper does not ask
Key = tuple[str, str, str]  # table, row and column
Origin = tuple[str, str]  # experiment and ``milestone.metric``
Reruns = tuple[tuple[str, float], ...]  # (source, value) of others
Measured = Mapping[Origin, tuple[dict[int, float], str]]  # value by seed, and provenance
Reported = Mapping[str, ReportedTable]


def by_origin(frame: pd.DataFrame) -> Measured:
    """Index the tidy frame of ``collect`` by experiment and ``milestone.metric``."""
    measured = {}
    for (experiment, milestone, metric), lines in frame.groupby(["experiment", "milestone", "metric"]):
        values = dict(sorted(zip(lines["seed"], lines["value"], strict=True)))
        measured[str(experiment), f"{milestone}.{metric}"] = (values, lines["provenance"].iloc[0])
    return measured


@dataclass(frozen=True)
class Judge:
    """Looks measurements up and gives verdicts."""

    measured: Measured
    comparable: bool  # whether the paper's absolute numbers can be expected at this scale
    tolerances: Mapping[str, float] = field(default_factory=dict)  # half-width of ``reproduced`` by metric
    released: frozenset[str] = frozenset()  # experiments whose released weights the scale measures, not quotes
    costs: Costs = field(default_factory=dict)
    full_size: bool = False  # whether the costs are those of networks of the paper's size

    def cell(
        self, key: Key, paper: float | None, origin: Origin, tolerance: float, ours: bool = False, reruns: Reruns = ()
    ) -> Cell:
        """Fill a cell from its origin; ``ours`` if the protocol is this project's, ``tolerance`` in the metric's unit."""
        experiment, metric = origin[0], origin[1].partition(".")[2]
        if origin not in self.measured:
            return Cell(*key, paper, "missing", "not run", experiment, metric, reruns=reruns)
        runs, provenance = self.measured[origin]
        verdict = self.verdict(statistics.fmean(runs.values()), paper, tolerance, reruns)
        if ours and verdict in OURS:
            verdict = OURS[verdict] + PROTOCOL_OURS
        return Cell(*key, paper, provenance, verdict, experiment, metric, tuple(runs), tuple(runs.values()), reruns)

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


def all_cells(
    params: Params, reported: Reported, frame: pd.DataFrame, costs: Costs | None = None, full_size: bool = False
) -> list[Cell]:
    """Fill every cell: of the paper's tables, of the points of trend figures, and of the questions' experiments."""
    released = frozenset(name + RELEASED for name in params.released)
    judge = Judge(by_origin(frame), params.comparable, params.tolerances, released, costs or {}, full_size)
    cells: list[Cell] = []
    for name in table_names(params, reported):
        cells += _table_cells(name, params.tables.get(name), reported[name], judge)
    for name, figure in params.figures.items():
        if figure.metric:
            cells += _figure_cells(name, figure, figure.metric, reported.get(name), judge)
    return cells + question_cells(params.questions, judge)


def table_names(params: Params, reported: Reported) -> list[str]:
    """Tables of the report in the paper's order; a figure's printed points are no table."""
    return [name for name in reported if name not in params.figures or name in params.tables]


def _table_cells(name: str, table: TableSpec | None, source: ReportedTable, judge: Judge) -> Iterator[Cell]:
    """Fill one table: measured where ``table`` claims row and column, quoted elsewhere; then its rows beyond the paper."""
    claimed = {matched_row(row, source, f"tables.{name}"): row for row in table.rows} if table else {}
    for index, reported in enumerate(source.rows):
        row = claimed.get(index)
        label = row.label if row else source.label(index)
        for column in source.columns:
            key, paper, others = (name, label, column), _printed(reported, column), reruns_of(name, reported, column)
            experiment = row.source(column) if row and table and column in table.columns else None
            if row and table and experiment and (not experiment.endswith(RELEASED) or experiment in judge.released):
                tolerance = band(name, table, row, column, judge.tolerances)
                origin = (experiment, table.columns[column])
                yield judge.cell(key, paper, origin, tolerance, ours=table.ours or row.ours, reruns=others)
            elif counted := _counted(key, paper, judge, source, row):
                yield counted
            elif paper is not None:
                yield Cell(*key, paper, reruns=others, reason=_reason(source, reported, row, column))
    for added in table.beyond if table else ():
        for column, reference in table.columns.items() if table else ():
            yield judge.cell((name, added.label, column), None, (added.experiment, reference), 0.0)


def _printed(row: Row, column: str) -> float | None:
    value = row.get(column)
    return value if isinstance(value, (int, float)) else None


def _counted(key: Key, paper: float | None, judge: Judge, source: ReportedTable, row: TableRow | None) -> Cell | None:
    """Fill a cell that is counted from the network, if its costs are known: only the network must be of full size."""
    if key[2] not in source.costs or row is None or row.released or row.experiment is None:
        return None
    rule, judge = source.costs[key[2]], replace(judge, comparable=judge.full_size)
    if (value := judge.costs.get(row.experiment, {}).get(rule.figure)) is None:
        return None
    verdict = judge.verdict(value, paper, rule.tolerance * (paper or 0.0))
    return Cell(*key, paper, "counted", verdict, row.experiment, key[2], values=(value,))


def _reason(source: ReportedTable, reported: Row, row: TableRow | None, column: str) -> str:
    """Why a printed number is quoted."""
    if column in source.settings:
        return SETTING
    if reported.get("quoted"):
        return str(reported["quoted"])
    return UNCOUNTED if row is not None and column in source.costs else UNCLAIMED


def _figure_cells(
    name: str, figure: FigureSpec, reference: str, source: ReportedTable | None, judge: Judge
) -> Iterator[Cell]:
    """Fill a trend figure: its points in order, then printed points that no experiment fills."""
    column = source.columns[0] if source else reference.partition(".")[2]
    rows = source.rows if source else ()
    printed = {source.label(i).casefold(): _printed(row, column) for i, row in enumerate(rows)} if source else {}
    tolerance = metric_band(reference, judge.tolerances, f"figures.{name}.metric")
    for point, experiment in figure.points.items():
        paper = printed.pop(point.casefold(), None)
        yield judge.cell((name, point, column), paper, (experiment, reference), tolerance, ours=figure.ours)
    for point, paper in printed.items():
        yield Cell(name, point, column, paper, reason=UNCLAIMED)


def question_cells(questions: Iterable[QuestionSpec], judge: Judge) -> list[Cell]:
    """Fill one cell per experiment and metric that a question compares."""
    pairs = dict.fromkeys((name, asked.metric) for asked in questions for name in (asked.first, asked.second))
    return [judge.cell((BEYOND, *pair), None, pair, 0.0) for pair in pairs]
