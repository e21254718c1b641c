"""The paper's tables in their own rows and columns: measured, the paper's number, and the difference."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vpd.config.reported import REMARKS, ReportedTable, Scalar
from vpd.config.tables import TableSpec
from vpd.report.cells import LOWER_IS_BETTER, PROTOCOL_OURS, Cell, csv_text, number
from vpd.report.grids import anchor
from vpd.report.judge import SETTING
from vpd.report.wording import heading, rounded, signed

BEYOND = ", beyond the paper"
MARKS = "abcdefghijklmnopqrstuvwxyz"
Rows = Mapping[str, Mapping[str, Cell]]  # cells of one table by row and column, rows in the paper's order


def by_row(cells: Iterable[Cell], table: str) -> Rows:
    """Select the cells of a table."""
    rows: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        if cell.table == table:
            rows.setdefault(cell.row, {})[cell.column] = cell
    return rows


def table_view(name: str, caption: str, source: ReportedTable, rows: Rows) -> dict[str, Any]:
    """Lay out one table for the templates; ``own`` rows are run here, ``notes`` explain quoted numbers."""
    every = [cell for cells in rows.values() for cell in cells.values()]
    beyond = list(rows)[len(source.rows) :]
    reasons: dict[str, dict[str, None]] = {}
    for cell in every:
        if cell.reason and cell.reason != SETTING:
            reasons.setdefault(cell.reason, {})[cell.row] = None
    marks = {reason: MARKS[index % len(MARKS)] for index, reason in enumerate(reasons)}
    printed = [cell for cell in every if cell.row not in beyond]
    best = {column: _best([cell for cell in printed if cell.column == column]) for column in source.columns}
    lines = []
    for label, cells in rows.items():
        texts = [_cell(cells.get(c), source.decimals(c), marks, *best[c]) for c in source.columns]
        judged = [c for c in cells.values() if c.provenance not in ("quoted", "counted")]
        verdicts = [c.verdict.removesuffix(PROTOCOL_OURS) for c in judged]  # the origin says whose protocol it was
        own = any(cell.provenance != "quoted" for cell in cells.values())
        source_of = origin(cells) + (BEYOND if label in beyond else "")
        line = {"label": label, "own": own, "beyond": label in beyond, "cells": texts, "origin": source_of}
        lines.append(line | {"verdicts": list(dict.fromkeys(verdicts))})
    notes = [(marks[reason], reason, ", ".join(labels)) for reason, labels in reasons.items()]
    heads = [heading(column) for column in source.columns]
    return {"name": name, "caption": caption, "heads": heads, "rows": lines, "notes": notes}


def own_columns(cells: Iterable[Cell], name: str, table: TableSpec) -> dict[str, list[Cell]]:
    """Select by column what is not quoted in the rows that the paper has too."""
    beyond = {row.label for row in table.beyond}
    own = [cell for cell in cells if cell.table == name and cell.provenance != "quoted" and cell.row not in beyond]
    columns = {column: [cell for cell in own if cell.column == column] for column in table.columns}
    return {column: found for column, found in columns.items() if found}


def origin(row: Mapping[str, Cell]) -> str:
    """Name the origin of a row's numbers: ``measured, 3 seeds``, ``quoted`` or ``not run``."""
    measured = [cell for cell in row.values() if cell.seeds]
    if measured:
        count = max(len(cell.seeds) for cell in measured)
        ours = PROTOCOL_OURS if any(cell.verdict.endswith(PROTOCOL_OURS) for cell in measured) else ""
        return f"{measured[0].provenance}, {count} seed{'s' if count > 1 else ''}{ours}"
    return "not run" if any(cell.provenance == "missing" for cell in row.values()) else "quoted"


def _best(cells: Sequence[Cell]) -> tuple[float | None, float | None]:
    """The best measured and the best printed number of a column, where there are several to choose from."""
    measured = [cell.mean for cell in cells if cell.seeds]
    printed = [cell.paper for cell in cells if cell.paper is not None and cell.reason != SETTING]
    choose = min if any({cell.column, cell.metric} & LOWER_IS_BETTER for cell in cells) else max
    # A network with more or fewer multiply-adds is not a better one.
    counted = any(cell.provenance == "counted" or cell.column == "gflops" for cell in cells)
    own = choose(measured) if len(measured) > 1 else None
    return own, choose(printed) if len(printed) > 1 and not counted else None


def _cell(
    cell: Cell | None, decimals: int, marks: Mapping[str, str], best: float | None, paper_best: float | None
) -> dict[str, Any] | None:
    """Texts of one number; None where neither the paper nor this project has one."""
    if cell is None:
        return None
    quoted = cell.provenance == "quoted" and not cell.values
    paper = "" if cell.paper is None else f"{cell.paper:.{decimals}f}"
    return {
        "value": rounded(cell.mean, decimals) if cell.values else paper if quoted else "not run",
        "sd": "" if cell.sd is None else f"{cell.sd:.{decimals}f}",
        "paper": paper,
        "difference": "" if cell.difference is None else signed(cell.difference, decimals),
        "others": [(rounded(value, decimals), source) for source, value in cell.reruns if cell.values],
        "number": number(cell.value),
        "run": cell.experiment and anchor(cell.experiment),
        "counted": cell.provenance == "counted",
        "verdict": cell.verdict.removesuffix(PROTOCOL_OURS),
        "mark": marks.get(cell.reason, ""),
        "best": bool(cell.seeds) and cell.mean == best,
        "paper_best": cell.paper is not None and cell.paper == paper_best,
        "quoted": quoted,
    }


def table_csv(source: ReportedTable, rows: Rows) -> str:
    """Format a table as CSV: the row, its properties in the paper, and per column value, sd, paper and difference.

    The paper's rows come first; of others it has no properties.
    """
    keys = [key for key in source.keys if key not in REMARKS]
    columns = [f"{column}{part}" for column in source.columns for part in ("", "_sd", "_paper", "_difference")]
    lines = []
    beyond = len(rows) - len(source.rows)
    printed = [*((row, "") for row in source.rows), *[({}, BEYOND)] * beyond]
    for (label, row), (reported, note) in zip(rows.items(), printed, strict=True):
        cells = [row.get(column) for column in source.columns]
        numbers = [n for c in cells for n in ((c.value, c.sd, c.paper, c.difference) if c else (None,) * 4)]
        lines.append(
            [label, *(_property(reported.get(key)) for key in keys), *map(number, numbers), origin(row) + note]
        )
    return csv_text(["row", *keys, *columns, "source"], lines)


def _property(value: Scalar) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "" if value is None else str(value)
