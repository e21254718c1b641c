"""The paper's printed numbers, its claims, and re-runs by others: reported.yaml, claims.yaml and reruns.yaml."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import yaml
from pydantic import model_validator

from vpd.utils.validation import Frozen

HERE = Path(__file__).parent
Scalar = bool | int | float | str | None
REMARKS = ("note", "quoted")
"""Keys of a row that hold sentences about it."""
NOT_IDENTIFYING = ("group", "language", *REMARKS)
"""Keys of a row that do not distinguish it from others."""


class CostColumn(Frozen):
    """Column that is counted from the network and not measured."""

    figure: str
    """Figure of `vpd cost` that it is."""
    tolerance: float
    """Relative difference from the paper's number up to which a count reproduces it."""


class ReportedTable(Frozen):
    """One table of the paper: numeric columns and rows in the printed order."""

    title: str
    """What it shows."""
    columns: tuple[str, ...]
    """Numeric columns."""
    rows: tuple[dict[str, Scalar], ...]
    """Values of the columns, and keys that describe the row."""
    settings: tuple[str, ...] = ()
    """Columns that say how a row was trained; they are not results."""
    costs: dict[str, CostColumn] = {}
    """Columns that `vpd cost` counts."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of rows that are not columns, in the order of first use."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row if key not in self.columns))

    def matching(self, match: dict[str, Scalar]) -> list[int]:
        """Return the indices of the rows that agree with ``match`` in all its keys."""
        return [index for index, row in enumerate(self.rows) if match.items() <= row.items()]

    def label(self, index: int) -> str:
        """Return a readable name of a row, unique within its table: ``LAVT, default``."""
        row = self.rows[index]
        names = [key for key in self.keys if key in row and key not in NOT_IDENTIFYING]
        return ", ".join(say(key, row[key]) for key in names)

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
    """What others measured for a row of the paper."""

    table: str
    """Table of the row."""
    match: dict[str, Scalar]
    """Selects the row."""
    source: str
    """Who measured it."""
    values: dict[str, float]
    """Column -> number."""


Row = dict[str, Scalar]
"""Selects a row of a table: all these keys are equal."""


class Claim(Frozen):
    """Something that the paper says about its own rows, or about the points of a trend figure."""

    title: str
    """The claim in words."""
    table: str | None = None
    """Table of the rows."""
    columns: tuple[str, ...] = ()
    """Its columns; the claim is tested in each."""
    better: Row | None = None
    """Row that the paper finds better than each of `worse`."""
    worse: tuple[Row, ...] = ()
    """Rows that `better` beats."""
    order: tuple[Row, ...] = ()
    """Several rows, each better than the next, instead of `better` and `worse`."""
    figure: str | None = None
    """Trend figure."""
    trend: Literal["untrained", "longer", "slope", "steps"] | None = None
    """What the figure's points show: the last is better than untrained weights (`untrained`) or than the first trained
    point (`longer`), the metric rises with the logarithm of the steps (`slope`), or from each point to the next (`steps`)."""

    @model_validator(mode="after")
    def _check_kind(self) -> Claim:
        rows = bool(self.better and self.worse) != (len(self.order) > 1)
        if bool(self.table and self.columns and rows) == bool(self.figure and self.trend):
            raise ValueError(
                f"claim '{self.title}' needs a table with columns and either better and worse or order, "
                "or a figure with a trend"
            )
        return self

    @property
    def pairs(self) -> tuple[tuple[Row, Row], ...]:
        """(better, worse) of every comparison that the claim consists of."""
        return tuple(pairwise(self.order)) or tuple((self.better or {}, worse) for worse in self.worse)


@cache
def load_reported() -> dict[str, ReportedTable]:
    """Return all tables by id; also ``table3-released`` (numbers of released weights) and ``figure3`` (its printed points)."""
    content = yaml.safe_load((HERE / "reported.yaml").read_text(encoding="utf-8"))
    tables = {}
    for name, block in content.items():
        if isinstance(block, dict):
            tables[name] = _table(block)
            if "released_code" in block:
                tables[f"{name}-released"] = _table(block["released_code"])
    return tables


def _table(block: dict) -> ReportedTable:
    return ReportedTable.model_validate({key: block[key] for key in ReportedTable.model_fields if key in block})


@cache
def load_reruns() -> tuple[Rerun, ...]:
    """Return the independent re-runs, in the order of the file."""
    content = yaml.safe_load((HERE / "reruns.yaml").read_text(encoding="utf-8"))
    return tuple(Rerun.model_validate(block) for block in content)


def reruns_of(table: str, row: dict[str, Scalar], column: str) -> tuple[tuple[str, float], ...]:
    """Return (source, value) of every re-run of one cell."""
    return tuple(
        (rerun.source, rerun.values[column])
        for rerun in load_reruns()
        if rerun.table == table and column in rerun.values and rerun.match.items() <= row.items()
    )


@cache
def load_claims() -> tuple[Claim, ...]:
    """Return what the paper claims, in the order of the report."""
    content = yaml.safe_load((HERE / "claims.yaml").read_text(encoding="utf-8"))
    return tuple(Claim.model_validate(block) for block in content)
