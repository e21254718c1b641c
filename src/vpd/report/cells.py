"""Cells: every number of the paper once, beside what was measured for it, and the verdict."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

LOWER_IS_BETTER = frozenset({"rmse", "rel", "log10"})
COLUMNS = (
    "table", "row", "column", "value", "sd", "seeds", "paper", "reruns", "provenance", "verdict", "experiment", "reason",
)  # fmt: skip
PROVENANCES = ("measured", "counted", "released-weights", "quoted", "missing")
PROTOCOL_OURS = ", protocol: ours"
"""Suffix of verdicts on rows whose protocol nobody published: never a reproduction in the narrow sense."""


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
        """Mean over the seeds, or the paper's number if it is quoted."""
        if self.values:
            return self.mean
        return self.paper if self.provenance == "quoted" else None

    @property
    def mean(self) -> float:
        """Mean of ``values``, which must not be empty; exactly rounded, so that the order of seeds does not matter."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Measured minus the paper's number."""
        return self.mean - self.paper if self.values and self.paper is not None else None

    @property
    def sign(self) -> int:
        """-1 where lower is better, else 1."""
        return -1 if self.metric in LOWER_IS_BETTER else 1


def number(value: float | None) -> str:
    """Format a number for CSV: shortest text of six rounded decimals; empty for None."""
    if value is None:
        return ""
    return repr(round(float(value), 6) + 0.0).removesuffix(".0")  # + 0.0 turns -0.0 into 0.0


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a CSV file."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def cells_csv(cells: Iterable[Cell]) -> str:
    """Format ``cells.csv``, one line per cell."""
    rows = []
    for cell in cells:
        numbers = (number(cell.value), number(cell.sd), len(cell.seeds) or "", number(cell.paper))
        others = "; ".join(f"{number(value)} ({source})" for source, value in cell.reruns)
        ends = (others, cell.provenance, cell.verdict, cell.experiment, cell.reason)
        rows.append((cell.table, cell.row, cell.column, *numbers, *ends))
    return csv_text(COLUMNS, rows)
