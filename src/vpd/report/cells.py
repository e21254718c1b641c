"""Cells: every number of the paper once, beside what was measured for it; their CSV file, and what differs between two."""

import csv
import io
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vpd.report.markdown import escape
from vpd.utils.errors import UserError
from vpd.utils.files import read_text

LOWER_IS_BETTER = frozenset({"rmse", "rel", "log10"})
KEY = ["table", "row", "column"]
COLUMNS = (*KEY, "value", "sd", "seeds", "paper", "reruns", "provenance", "verdict", "experiment", "reason")
PROVENANCES = ("measured", "counted", "released-weights", "quoted", "missing")
# What a spreadsheet takes for a formula, full-width signs too, but no number.
FORMULA = re.compile(r"(?![+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?\Z)[=+\-@\t\r＝＋－＠]")
NUMBERS = {"value", "sd", "seed", "step", "loss", "thing", "room", "frechet", "word_auc", "text_matters"}
"""Columns, of all CSV files that are read."""
PROTOCOL_OURS = ", protocol: ours"  # suffix of verdicts on rows whose protocol nobody published


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
    reruns: tuple[tuple[str, float], ...] = ()  # (source, value) of others who measured the same
    reason: str = ""  # why the number is quoted

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
    # + 0.0 turns -0.0 into 0.0
    return "" if value is None else repr(round(float(value), 6) + 0.0).removesuffix(".0")


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a CSV file; a text that a spreadsheet would run as a formula gets an apostrophe, which ``read_csv`` removes."""
    plain = [[f"'{cell}" if FORMULA.match(str(cell)) else cell for cell in row] for row in (columns, *rows)]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(plain)
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


def read_csv(path: Path, columns: Iterable[str], cure: str) -> pd.DataFrame:
    """Read a CSV file; UserError with ``cure`` if it is damaged, lacks one of ``columns``, or has text in a numeric one."""
    try:
        frame = pd.read_csv(io.StringIO(read_text(path, cure)))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise UserError(f"{path} is not a CSV file ({error}); {cure}") from None
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}' (columns: {', '.join(frame.columns)}); {cure}")
    for column in columns:
        if frame.empty and column in NUMBERS:  # pandas takes a column without values for text
            frame[column] = frame[column].astype(float)
        elif column in NUMBERS and not pd.api.types.is_numeric_dtype(frame[column]):
            raise UserError(f"{path} has a text in its column '{column}', which holds numbers; {cure}")
    for name in frame.select_dtypes(exclude="number"):
        frame[name] = frame[name].replace(f"^'(?={FORMULA.pattern})", "", regex=True)
    return frame


def read_cells(path: Path) -> pd.DataFrame:
    """Read value, standard deviation and provenance by table, row and column: of a results folder or a cells.csv."""
    path = path / "tables/cells.csv" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a results folder in which the report has been written")
    columns = [*KEY, "value", "sd", "provenance"]
    return read_csv(path, columns, "write the report again")[columns].astype(dict.fromkeys(KEY, str)).set_index(KEY)


def compare_cells(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Find the cells that differ in value or provenance, with their difference and the noise to expect of the seeds."""
    both = first.join(second, how="outer", lsuffix="_first", rsuffix="_second", sort=False)
    cells = both[["value_first", "value_second"]].set_axis(["first", "second"], axis=1)
    cells["difference"] = (cells["second"] - cells["first"]).round(6)
    cells["seeds' noise"] = (both["sd_first"] ** 2 + both["sd_second"] ** 2) ** 0.5
    before, after = (both[f"provenance_{side}"].fillna("absent") for side in ("first", "second"))
    cells["source"] = before.where(before == after, before + " -> " + after)
    same = (cells["first"] == cells["second"]) | cells[["first", "second"]].isna().all(axis=1)
    return cells[~same | (before != after)]


def diff(first: Path, second: Path) -> tuple[str, int]:
    """Describe what differs between two results folders as markdown; also return the number of cells that differ."""
    one, other = read_cells(first), read_cells(second)
    cells, total = compare_cells(one, other), len(one.index.union(other.index))
    if cells.empty:
        return f"all {total} cells are equal", 0
    lines = [f"{len(cells)} of {total} cells differ ({first} -> {second})", ""]
    lines += [f"| {' | '.join([*KEY, *cells.columns])} |", "|---|---|---|---:|---:|---:|---:|---|"]
    for *texts, source in cells.reset_index().itertuples(index=False):
        numbers = ["–" if pd.isna(value) else f"{value:.4g}" for value in texts[3:]]
        lines.append(f"| {' | '.join(map(escape, [*texts[:3], *numbers, source]))} |")
    return "\n".join(lines), len(cells)
