"""The paper's tables, in its own row order and shape: measured, the paper's number, and the difference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vpd.config.reported import REMARKS, ReportedTable, Scalar
from vpd.config.tables import TableSpec
from vpd.report.cells import PROTOCOL_OURS, Cell, csv_text, number
from vpd.report.claims import shown, signed, spread
from vpd.report.judge import SETTING
from vpd.report.names import heading, ordinal

Grid = dict[tuple[str, str], Cell]


def grid(cells: Sequence[Cell], table: str) -> Grid:
    """The cells of one table by row and column."""
    return {(cell.row, cell.column): cell for cell in cells if cell.table == table}


def row_names(cells: Grid) -> list[str]:
    """Rows in the paper's order."""
    return list(dict.fromkeys(row for row, _ in cells))


def row_cells(cells: Grid, row: str) -> list[Cell]:
    """The cells of one row."""
    return [cell for (label, _), cell in cells.items() if label == row]


def origin(cells: Sequence[Cell]) -> str:
    """Where a row's numbers come from: ``measured, 3 seeds``, ``quoted`` or ``not run``."""
    measured = [cell for cell in cells if cell.seeds]
    if measured:
        count = max(len(cell.seeds) for cell in measured)
        ours = PROTOCOL_OURS if any(cell.verdict.endswith(PROTOCOL_OURS) for cell in measured) else ""
        return f"{measured[0].provenance}, {count} seed{'s' if count > 1 else ''}{ours}"
    return "not run" if any(cell.provenance == "missing" for cell in cells) else "quoted"


def own(cells: Iterable[Cell]) -> bool:
    """Whether this project runs a row, which has any cell that is not quoted."""
    return any(cell.provenance != "quoted" for cell in cells)


def reasons(cells: Iterable[Cell]) -> dict[str, list[str]]:
    """Why rows are quoted: reason -> rows; settings, which are no results, need none."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        if cell.reason and cell.reason != SETTING and cell.row not in found.setdefault(cell.reason, []):
            found[cell.reason].append(cell.row)
    return found


def caption(name: str, table: TableSpec | None, source: ReportedTable) -> str:
    """``Table 5. Ablations on ADE20K with 8K iterations``."""
    return f"{ordinal(name)}. {(table and table.title) or source.title}"


def markdown_table(name: str, table: TableSpec | None, source: ReportedTable, cells: Sequence[Cell]) -> str:
    """One table as markdown: measured numbers bold above the paper's, quoted numbers plain, their reasons below."""
    here = grid(cells, name)
    heads = ["row", *map(heading, source.columns), "source"]
    lines = [_line(heads), _line(["---", *["---:"] * len(source.columns), "---"])]
    for row in row_names(here):
        ours = row_cells(here, row)
        texts = [_markdown(here.get((row, column)), source.decimals(column), own(ours)) for column in source.columns]
        lines.append(_line([f"**{escaped(row)}**" if own(ours) else escaped(row), *texts, origin(ours)]))
    why = [f"- {', '.join(rows)}: {reason}." for reason, rows in reasons(here.values()).items()]
    notes = "\nQuoted, because:\n\n" + "\n".join(why) + "\n" if why else ""
    return f"### {caption(name, table, source)}\n\n" + "\n".join(lines) + "\n" + notes


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def escaped(text: str) -> str:
    """``text`` as one cell of a markdown table."""
    return text.replace("|", "\\|")


def _markdown(cell: Cell | None, decimals: int, own: bool) -> str:
    """A cell; a number that the paper gives for a row run here but that is no result of it reads ``paper 80000``."""
    if cell is None:
        return "–"
    paper = "" if cell.paper is None else f"paper {cell.paper:.{decimals}f}"
    if cell.provenance == "quoted":
        return paper if own else paper.removeprefix("paper ")
    if not cell.values:
        return "<br>".join(filter(None, ("not run", paper)))
    text = f"**{spread(cell, decimals)}**"
    if paper:
        text += f"<br>{paper} ({signed(cell.difference, decimals)})"
    others = ", ".join(shown(value, decimals) for _, value in cell.reruns)
    return f"{text}<br>others {others}" if others else text


def csv_table(name: str, source: ReportedTable, cells: Sequence[Cell]) -> str:
    """One table as CSV: the row, its properties in the paper, and per column value, sd, paper and difference."""
    here = grid(cells, name)
    parts = [f"{column}{part}" for column in source.columns for part in ("", "_sd", "_paper", "_difference")]
    keys = [key for key in source.keys if key not in REMARKS]
    rows = []
    for row, reported in zip(row_names(here), source.rows, strict=True):
        numbers = [text for column in source.columns for text in _numbers(here.get((row, column)))]
        properties = (_plain(reported.get(key)) for key in keys)
        rows.append([row, *properties, *numbers, origin(row_cells(here, row))])
    return csv_text(["row", *keys, *parts, "source"], rows)


def _plain(value: Scalar) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _numbers(cell: Cell | None) -> tuple[str, str, str, str]:
    if cell is None:
        return ("", "", "", "")
    return number(cell.value), number(cell.sd), number(cell.paper), number(cell.difference)
