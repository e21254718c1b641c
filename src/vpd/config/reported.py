"""The paper's printed numbers, and re-runs by others: reported.yaml and reruns.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vpd.utils.validation import Frozen

Scalar = bool | int | float | str | None
Row = dict[str, Scalar]  # keys and values of a row; as a selection, the row that agrees with it in all its keys
REMARKS = ("note", "quoted")  # keys of a row that hold sentences about it
NOT_IDENTIFYING = ("group", "language", *REMARKS)


class CostColumn(Frozen):
    """Column that ``vpd cost`` counts as ``figure``; a relative difference up to ``tolerance`` reproduces the paper."""

    figure: str
    tolerance: float


class ReportedTable(Frozen):
    """One table of the paper: numeric columns and rows in the printed order."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    """Values of the columns, and keys that describe the row."""
    settings: tuple[str, ...] = ()
    """Columns that say how a row was trained; they are not results."""
    costs: dict[str, CostColumn] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of rows that are not columns, in the order of first use."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row if key not in self.columns))

    def matching(self, match: Row) -> list[int]:
        """Return the indices of the rows that agree with ``match`` in all its keys."""
        return [index for index, row in enumerate(self.rows) if match.items() <= row.items()]

    def label(self, index: int) -> str:
        """Return a readable name of a row, unique within its table: ``LAVT, default``."""
        row = self.rows[index]
        return ", ".join(say(key, row[key]) for key in self.keys if key in row and key not in NOT_IDENTIFYING)

    def decimals(self, column: str) -> int:
        """Return the number of decimals with which the paper prints a column."""
        texts = [repr(row.get(column)) for row in self.rows if isinstance(row.get(column), float)]
        return max((len(text.partition(".")[2]) for text in texts), default=0)


def say(key: str, value: Scalar) -> str:
    """Put a property of a row into words: ``no text prompt``, ``cross attn up``, ``VPD``."""
    words = key.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{words} {value}" if key == "cross_attn" else str(value)


class Rerun(Frozen):
    """What others (``source``) measured for a row of the paper, by column."""

    table: str
    match: Row
    source: str
    values: dict[str, float]


def _read(name: str) -> Any:
    return yaml.safe_load((Path(__file__).parent / name).read_text(encoding="utf-8"))


@cache
def load_reported() -> dict[str, ReportedTable]:
    """Return all tables by id; also ``table3-released`` (numbers of released weights) and ``figure3`` (its printed points)."""
    tables = {}
    for name, block in _read("reported.yaml").items():
        released = {f"{name}-released": block["released_code"]} if "released_code" in block else {}
        for key, part in ({name: block} | released).items() if isinstance(block, dict) else ():
            own = {field: part[field] for field in ReportedTable.model_fields if field in part}
            tables[key] = ReportedTable.model_validate(own)
    return tables


@cache
def load_reruns() -> tuple[Rerun, ...]:
    """Return the independent re-runs, in the order of the file."""
    return tuple(map(Rerun.model_validate, _read("reruns.yaml")))


def reruns_of(table: str, row: Row, column: str) -> tuple[tuple[str, float], ...]:
    """Return (source, value) of every re-run of one cell."""
    return tuple(
        (rerun.source, rerun.values[column])
        for rerun in load_reruns()
        if rerun.table == table and column in rerun.values and rerun.match.items() <= row.items()
    )
