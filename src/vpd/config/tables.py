"""What the report shows: which experiment and metric fill which cell of the paper's tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vpd.config.experiment import NotNegative
from vpd.config.reported import ReportedTable, Row, Scalar
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.validation import Frozen

Reference = Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]  # ``milestone.metric``, such as ``final.miou_ss``
RELEASED = "@released"  # ending of an experiment's name whose results are those of released weights


class _Verdicts(Frozen):
    ours: bool = False
    """Whether nobody published how this was made; it is then never `reproduced`, but `agrees, protocol: ours`."""
    tolerances: dict[str, NotNegative] = {}
    """Column -> half-width of its verdict. A row's counts before its table's, and both before the general ones."""


class TableRow(_Verdicts):
    """One row of the paper that this project runs itself."""

    match: dict[str, Scalar] = Field(min_length=1)
    """Selects exactly one row of the paper: all these keys are equal in src/vpd/config/reported.yaml."""
    label: str
    """Name of the row in the report."""
    experiment: str | None = None
    """Experiment that fills every measured column; exactly one of `experiment` and `experiments` is set."""
    experiments: dict[str, str] = {}
    """Column -> experiment that fills it."""
    released: bool = False
    """Whether the row shows the authors' own weights, measured here at scales whose `released` lists them."""

    @model_validator(mode="after")
    def _check_source(self) -> TableRow:
        if (self.experiment is None) == (not self.experiments):
            raise ValueError(f"row '{self.label}' needs either experiment or experiments")
        return self

    def source(self, column: str) -> str | None:
        """Return the experiment that fills ``column``, if any does, with the ending of released weights if those are shown."""
        name = self.experiment or self.experiments.get(column)
        return name + RELEASED if name and self.released else name

    @property
    def trained(self) -> dict[str, str]:
        """Experiments trained for this row, by column; one that fills all columns has an empty key."""
        if self.released:
            return {}
        return {"": self.experiment} if self.experiment else self.experiments


class BeyondRow(Frozen):
    """One row of a table that the paper does not have; it stands below the paper's, without a number to compare with."""

    label: str
    """Name of the row in the report."""
    experiment: str
    """Experiment that fills every measured column."""


class TableSpec(_Verdicts):
    """One table: measured columns and rows; every other number of it is quoted from the paper."""

    title: str | None = None
    """Heading in the report."""
    columns: dict[str, Reference] = Field(min_length=1)
    """Column of the paper's table -> `milestone.metric`, such as `final.miou_ss`."""
    rows: tuple[TableRow, ...]
    """Rows that are measured here; every other row shows the paper's number as quoted."""
    beyond: tuple[BeyondRow, ...] = ()
    """Rows below them. Figures, MLflow's tags and the target `table5` leave them out; the target `beyond` has them."""


KINDS = ("points", "table", "curves", "panels", "panel")


class FigureSpec(Frozen):
    """One figure of one kind: exactly one of `points`, `table`, `curves`, `panels` and `panel` is set."""

    metric: Reference | None = None
    """Trend: `milestone.metric` of the points."""
    ours: bool = False
    """Trend: whether nobody published how the points were made."""
    points: dict[str, str] = {}
    """Trend: point -> experiment, against the pre-training of the experiment's checkpoint."""
    steps: dict[str, PositiveInt] = {}
    """Trend: checkpoint -> its pre-training steps, for a scale that pre-trains nothing itself."""
    table: str | None = None
    """Dots: table whose measured rows are drawn, one panel per measured column."""
    curves: str | None = None
    """Learning curves: table whose rows are drawn against each other, VPD in front."""
    panels: tuple[str, ...] = ()
    """Experiments whose predictions are shown."""
    panel: str | None = None
    """Experiment whose attention maps are shown."""

    @model_validator(mode="after")
    def _check_kind(self) -> FigureSpec:
        kinds = [name for name in KINDS if getattr(self, name)]
        if len(kinds) != 1:
            raise ValueError(f"a figure needs exactly one of {', '.join(KINDS)}, found {kinds or 'none'}")
        if bool(self.points) != bool(self.metric):
            raise ValueError("a figure needs both points and metric, or neither")
        return self

    @property
    def drawn(self) -> bool:
        """Whether the report draws this figure itself; evaluation draws panels."""
        return bool(self.points or self.table or self.curves)

    @property
    def experiments(self) -> tuple[str, ...]:
        """All experiments the figure names."""
        return (*self.points.values(), *self.panels, *filter(None, (self.panel,)))


class QuestionSpec(Frozen):
    """A question beyond the paper: two experiments, of which neither is expected to be ahead."""

    title: str
    """The question, as the report asks it."""
    metric: Reference
    """`milestone.metric` by which they are compared over their seeds."""
    first: str
    """One experiment."""
    second: str
    """The other one."""
    margin: PositiveFloat | None = None
    """Smallest difference of interest, in the metric's unit; without one, `no difference` is never said."""


def check_layout(
    tables: Mapping[str, TableSpec],
    reported: Mapping[str, ReportedTable],
    experiments: Iterable[str],
    figures: Mapping[str, FigureSpec] | None = None,
    tolerances: Mapping[str, float] | None = None,
    questions: Iterable[QuestionSpec] = (),
) -> None:
    """Look up what tables, figures and questions name; UserError if a name is unknown or a row matches not exactly one.

    ``experiments`` are all known names, public models included; without ``tolerances`` none are looked up.
    """
    known = dict.fromkeys(experiments)
    for name, table in tables.items():
        source = pick(name, reported, "table of the paper", "tables")
        for column in table.columns:
            pick(column, dict.fromkeys(source.columns), "column", f"tables.{name}.columns")
        _check_rows(name, table, source, known)
        for row in table.rows if tolerances is not None else ():
            for column in filter(row.source, table.columns):
                band(name, table, row, column, tolerances or {})
    for name, figure in (figures or {}).items():
        for experiment in figure.experiments:
            pick(experiment, known, "experiment", f"figures.{name}")
        for other in filter(None, (figure.table, figure.curves)):
            pick(other, tables, "table", f"figures.{name}")
        if figure.metric is not None and tolerances is not None:
            metric_band(figure.metric, tolerances, f"figures.{name}.metric")
    for question in questions:
        for experiment in (question.first, question.second):
            pick(experiment, known, "experiment", f"questions, '{question.title}'")


def _check_rows(name: str, table: TableSpec, source: ReportedTable, experiments: Mapping[str, None]) -> None:
    labels: dict[int, str] = {}
    for row in table.rows:
        where = f"tables.{name}, row '{row.label}'"
        for column in (*row.experiments, *row.tolerances):
            pick(column, table.columns, "measured column", where)
        for experiment in filter(None, (row.experiment, *row.experiments.values())):
            pick(experiment, experiments, "experiment", where)
        index = matched_row(row, source, where)
        if index in labels:
            raise UserError(f"{where}: matches the row that '{labels[index]}' already fills; remove one of them")
        labels[index] = row.label
    for added in table.beyond:
        pick(added.experiment, experiments, "experiment", f"tables.{name}.beyond, row '{added.label}'")
    every = [labels.get(index) or source.label(index) for index in range(len(source.rows))]
    every += [added.label for added in table.beyond]
    if twice := [label for label in every if every.count(label) > 1]:
        raise UserError(f"tables.{name}: two rows would be called '{twice[0]}'; give one of them another label")


def band(name: str, table: TableSpec, row: TableRow, column: str, tolerances: Mapping[str, float]) -> float:
    """Return the half-width of a ``reproduced`` verdict: the row's, else the table's, else the metric's; UserError if none."""
    own = {**table.tolerances, **row.tolerances}
    if column in own:
        return own[column]
    return metric_band(table.columns[column], tolerances, f"tables.{name}.columns.{column}")


def metric_band(reference: str, tolerances: Mapping[str, float], where: str) -> float:
    """Return the general half-width for the metric of ``milestone.metric``."""
    return pick(reference.partition(".")[2], tolerances, "metric in tolerances", where)


def matched_row(row: TableRow, source: ReportedTable, where: str) -> int:
    """Return the index of the row of the paper that ``row`` selects; UserError for none or several."""
    return matched(row.match, source, where)


def matched(match: Row, source: ReportedTable, where: str) -> int:
    """Return the index of the row of the paper that agrees with ``match``; UserError from ``where`` for none or several."""
    for key in match:
        pick(key, dict.fromkeys(key for reported in source.rows for key in reported), "key of a row", where)
    indices = source.matching(match)
    if len(indices) > 1:
        labels = "; ".join(map(source.label, indices))
        cure = "add a key that distinguishes them"
        raise UserError(f"{where}: matches {len(indices)} rows of the paper ({labels}); {cure}")
    if not indices:
        wanted, *others = (", ".join(f"{key}={one.get(key)}" for key in match) for one in (match, *source.rows))
        raise UserError(f"{where}: no row of the paper has {wanted}; {nearest(wanted, set(others))}")
    return indices[0]
