"""What the report shows where: which experiment and metric fill which cell of the paper's tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vpd.config.reported import ReportedTable, Scalar, load_reported
from vpd.config.tables import RELEASED, FigureSpec, QuestionSpec, Reference, TableRow, TableSpec
from vpd.utils.errors import UserError, nearest, pick

__all__ = [
    "RELEASED",
    "FigureSpec",
    "QuestionSpec",
    "Reference",
    "TableRow",
    "TableSpec",
    "check_layout",
    "load_reported",
]


def check_layout(
    tables: Mapping[str, TableSpec],
    reported: Mapping[str, ReportedTable],
    experiments: Iterable[str],
    figures: Mapping[str, FigureSpec] | None = None,
    tolerances: Mapping[str, float] | None = None,
    questions: Iterable[QuestionSpec] = (),
) -> None:
    """Look up what tables, figures and questions name.

    Args:
        tables: of params.yaml.
        reported: tables of the paper.
        experiments: known names, public models included.
        figures: of params.yaml.
        tolerances: metric -> half-width; not looked up if not given.
        questions: of params.yaml.

    Raises:
        UserError: a name is unknown, or a row matches no row of the paper or several.
    """
    known = dict.fromkeys(experiments)
    for name, table in tables.items():
        source = pick(name, dict(reported), "table of the paper", "tables")
        for column in table.columns:
            pick(column, dict.fromkeys(source.columns), "column", f"tables.{name}.columns")
        _check_rows(name, table, source, known)
        if tolerances is not None:
            _check_bands(name, table, tolerances)
    for name, figure in (figures or {}).items():
        for experiment in figure.experiments:
            pick(experiment, known, "experiment", f"figures.{name}")
        for shown in filter(None, (figure.table, figure.curves)):
            pick(shown, dict(tables), "table", f"figures.{name}")
        if figure.metric is not None and tolerances is not None:
            metric_band(figure.metric, tolerances, f"figures.{name}.metric")
    for question in questions:
        for experiment in (question.first, question.second):
            pick(experiment, known, "experiment", f"questions, '{question.title}'")


def _check_bands(name: str, table: TableSpec, tolerances: Mapping[str, float]) -> None:
    for row in table.rows:
        for column in filter(row.source, table.columns):
            band(name, table, row, column, tolerances)


def band(name: str, table: TableSpec, row: TableRow, column: str, tolerances: Mapping[str, float]) -> float:
    """Return the half-width of a ``reproduced`` verdict: the row's, else the table's, else the metric's; UserError if none."""
    for own in (row.tolerances, table.tolerances):
        if column in own:
            return own[column]
    return metric_band(table.columns[column], tolerances, f"tables.{name}.columns.{column}")


def metric_band(reference: str, tolerances: Mapping[str, float], where: str) -> float:
    """Return the general half-width for the metric of ``milestone.metric``."""
    return pick(reference.partition(".")[2], dict(tolerances), "metric in tolerances", where)


def _check_rows(name: str, table: TableSpec, source: ReportedTable, experiments: dict[str, None]) -> None:
    claimed: dict[int, str] = {}
    for row in table.rows:
        where = f"tables.{name}, row '{row.label}'"
        for column in (*row.experiments, *row.tolerances):
            pick(column, dict(table.columns), "measured column", where)
        for experiment in filter(None, (row.experiment, *row.experiments.values())):
            pick(experiment, experiments, "experiment", where)
        index = matched_row(row, source, where)
        if index in claimed:
            raise UserError(f"{where}: matches the row that '{claimed[index]}' already fills; remove one of them")
        claimed[index] = row.label
    _check_labels(name, [claimed.get(index) or source.label(index) for index in range(len(source.rows))])


def matched_row(row: TableRow, source: ReportedTable, where: str) -> int:
    """Return the index of the row of the paper that ``row`` selects; UserError for none or several."""
    for key in row.match:
        pick(key, dict.fromkeys(key for reported in source.rows for key in reported), "key of a row", where)
    indices = source.matching(row.match)
    if len(indices) == 1:
        return indices[0]
    if indices:
        labels = "; ".join(source.label(index) for index in indices)
        raise UserError(
            f"{where}: matches {len(indices)} rows of the paper ({labels}); add a key that distinguishes them"
        )
    wanted = _text(row.match, row.match)
    raise UserError(f"{where}: no row of the paper has {wanted}; {nearest(wanted, _texts(row.match, source))}")


def _texts(keys: Iterable[str], source: ReportedTable) -> set[str]:
    return {_text(keys, reported) for reported in source.rows}


def _text(keys: Iterable[str], row: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key}={row.get(key)}" for key in keys)


def _check_labels(name: str, labels: list[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"tables.{name}: two rows would be called '{label}'; give one of them another label")
