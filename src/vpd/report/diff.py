"""Two results folders, cell by cell."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vpd.report.collect import read_csv
from vpd.utils.errors import UserError

CELLS = "tables/cells.csv"
KEY = ["table", "row", "column"]
HEADS = ("table", "row", "column", "first", "second", "difference", "seeds' noise", "source")


def read_cells(folder: Path) -> pd.DataFrame:
    """Read the cells of a results folder, or a cells.csv itself, indexed by table, row and column."""
    path = folder / CELLS if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a results folder in which the report has been written")
    columns = (*KEY, "value", "sd", "provenance")
    return read_csv(path, columns, "write the report again", dict.fromkeys(KEY, str)).set_index(KEY)


def compare(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Find the cells that differ in value or provenance; values are equal if all written digits are.

    Returns:
        ``first``, ``second``, ``difference`` (second minus first), ``noise`` (the standard deviation to expect of such a
        difference from the seeds' own, where both have several) and ``source`` by table, row and column.
    """
    both = first.join(second, how="outer", lsuffix="_first", rsuffix="_second", sort=False)
    cells = pd.DataFrame({"first": both["value_first"], "second": both["value_second"]})
    cells["difference"] = (cells["second"] - cells["first"]).round(6)
    cells["noise"] = (both["sd_first"] ** 2 + both["sd_second"] ** 2) ** 0.5
    before, after = (both[f"provenance_{side}"].fillna("absent") for side in ("first", "second"))
    cells["source"] = before.where(before == after, before + " -> " + after)
    same = (cells["first"] == cells["second"]) | (cells["first"].isna() & cells["second"].isna())
    return cells[~same | (before != after)]


def report(first: Path, second: Path) -> tuple[str, int]:
    """Describe what differs between two results folders as markdown; also return the number of cells that differ."""
    one, other = read_cells(first), read_cells(second)
    cells = compare(one, other)
    total = len(one.index.union(other.index))
    if cells.empty:
        return f"all {total} cells are equal", 0
    lines = [f"{len(cells)} of {total} cells differ ({first} -> {second})", "", f"| {' | '.join(HEADS)} |"]
    lines.append("|---|---|---|---:|---:|---:|---:|---|")
    for cell in cells.reset_index().to_dict("records"):
        numbers = (cell[name] for name in ("first", "second", "difference", "noise"))
        texts = ("–" if pd.isna(value) else f"{value:.4g}" for value in numbers)
        lines.append(f"| {' | '.join((*(cell[name] for name in KEY), *texts, cell['source']))} |")
    return "\n".join(lines), len(cells)
