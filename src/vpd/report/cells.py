"""Cells: every number of the paper once, beside what was measured for it, and the verdict."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vpd.utils.files import write_text

COLUMNS = (
    "table", "row", "column", "value", "sd", "seeds", "paper", "reruns", "provenance", "verdict", "experiment", "reason",
)  # fmt: skip
PROVENANCES = ("measured", "counted", "released-weights", "quoted", "missing")
PROTOCOL_OURS = ", protocol: ours"
"""Ending of verdicts on rows whose protocol nobody published: never a reproduction in the narrow sense."""


@dataclass(frozen=True)
class Cell:
    """One number: ``values`` holds one measurement per seed, ``paper`` what the paper prints."""

    table: str
    row: str
    column: str
    paper: float | None
    provenance: str = "quoted"
    """``measured``, ``counted`` (from the network, without seeds), ``released-weights``, ``quoted`` or ``missing``."""
    verdict: str = "quoted"
    experiment: str = ""
    metric: str = ""
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    reruns: tuple[tuple[str, float], ...] = ()
    """(source, value) of others who measured the same."""
    reason: str = ""
    """Why the number is quoted."""

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
    rows = []
    for cell in cells:
        numbers = (number(cell.value), number(cell.sd), len(cell.seeds) or "", number(cell.paper))
        others = "; ".join(f"{number(value)} ({source})" for source, value in cell.reruns)
        ends = (others, cell.provenance, cell.verdict, cell.experiment, cell.reason)
        rows.append((cell.table, cell.row, cell.column, *numbers, *ends))
    return csv_text(COLUMNS, rows)


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A CSV file's text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def write_cells(cells: Iterable[Cell], path: Path) -> None:
    """Write ``cells.csv``."""
    write_text(path, cells_csv(cells))
