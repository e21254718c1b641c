"""Two results folders, cell by cell."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vpd.utils.errors import UserError

CELLS = "tables/cells.csv"
KEY = ["table", "row", "column"]
NEEDED = (*KEY, "value", "sd", "provenance")


def read_cells(folder: Path) -> pd.DataFrame:
    """The cells of a results folder, or of a cells.csv itself, by table, row and column; UserError if there are none."""
    path = folder / CELLS if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a results folder in which the report has been written")
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(KEY, str))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file ({error}); write the report again") from None
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}'; write the report again")
    return frame.set_index(KEY)


def compare(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Cells that are not the same in both: ``first``, ``second``, ``difference`` (second minus first), ``noise``.

    ``noise`` is the standard deviation to expect of such a difference from the seeds' own, where both have several.
    Values are the same if they agree to the last digit written.
    """
    both = first.join(second, how="outer", lsuffix="_first", rsuffix="_second", sort=False)
    found = pd.DataFrame({"first": both["value_first"], "second": both["value_second"]})
    found["difference"] = (found["second"] - found["first"]).round(6)
    found["noise"] = (both["sd_first"] ** 2 + both["sd_second"] ** 2) ** 0.5
    same = (found["first"] == found["second"]) | (found["first"].isna() & found["second"].isna())
    changed = both["provenance_first"].fillna("absent") != both["provenance_second"].fillna("absent")
    found["source"] = both["provenance_first"].fillna("absent") + " -> " + both["provenance_second"].fillna("absent")
    found.loc[~changed, "source"] = both.loc[~changed, "provenance_first"]
    return found[~same | changed]


def report(first: Path, second: Path) -> tuple[str, int]:
    """What differs between two results folders, as text, and the number of cells that do."""
    one, other = read_cells(first), read_cells(second)
    found = compare(one, other)
    total = len(one.index.union(other.index))
    if found.empty:
        return f"all {total} cells are equal", 0
    lines = [f"{len(found)} of {total} cells differ ({first} -> {second})", ""]
    lines += [
        "| table | row | column | first | second | difference | seeds' noise | source |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for (table, row, column), cell in found.iterrows():
        numbers = (_number(cell[name]) for name in ("first", "second", "difference", "noise"))
        lines.append(f"| {table} | {row} | {column} | {' | '.join(numbers)} | {cell['source']} |")
    return "\n".join(lines), len(found)


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.4g}"
