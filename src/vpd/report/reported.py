"""The paper's printed numbers and comparisons, read from reported.yaml and claims.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from vpd.spec import Frozen

HERE = Path(__file__).parent
Scalar = bool | int | float | str | None
NOT_IDENTIFYING = ("group", "language", "note")
"""Row keys that describe a row without telling it apart from the others."""


class ReportedTable(Frozen):
    """One table of the paper: numeric columns and rows in the printed order."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, Scalar], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Row keys that are not numbers to compare, in the order of first use."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row if key not in self.columns))

    def matching(self, match: dict[str, Scalar]) -> list[int]:
        """Indices of the rows that agree with ``match`` in all its keys."""
        wanted = match.items()
        return [i for i, row in enumerate(self.rows) if all(key in row and row[key] == value for key, value in wanted)]

    def label(self, index: int) -> str:
        """Readable name of a row, unique within its table: ``LAVT, default``."""
        row = self.rows[index]
        names = [key for key in self.keys if key in row and key not in NOT_IDENTIFYING]
        return ", ".join(say(key, row[key]) for key in names)

    def decimals(self, column: str) -> int:
        """Decimals with which the paper prints a column."""
        texts = [repr(row.get(column)) for row in self.rows if isinstance(row.get(column), float)]
        return max((len(text.partition(".")[2]) for text in texts), default=0)


def say(key: str, value: Scalar) -> str:
    """A row's property in words: ``no text prompt``, ``cross attn up``, ``VPD``."""
    words = key.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{words} {value}" if key == "cross_attn" else str(value)


class Rerun(Frozen):
    """What others measured for a row of the paper."""

    table: str
    match: dict[str, Scalar]
    source: str
    values: dict[str, float]
    """By column."""


class Claim(Frozen):
    """A comparison that the paper makes between two of its own rows."""

    title: str
    table: str
    column: str
    better: dict[str, Scalar]
    """Selects the row that the paper finds better."""
    worse: dict[str, Scalar]


@cache
def load_reported() -> dict[str, ReportedTable]:
    """All tables by id; also ``table3-released`` (numbers of released weights) and ``figure3`` (its printed points)."""
    content = yaml.safe_load((HERE / "reported.yaml").read_text(encoding="utf-8"))
    tables = {}
    for name, block in content.items():
        if isinstance(block, dict):
            tables[name] = _table(block)
            if "released_code" in block:
                tables[f"{name}-released"] = _table(block["released_code"])
    return tables


def _table(block: dict) -> ReportedTable:
    return ReportedTable.model_validate({key: block[key] for key in ("title", "columns", "rows")})


@cache
def load_reruns() -> tuple[Rerun, ...]:
    """Independent re-runs, in the order of the file."""
    content = yaml.safe_load((HERE / "reruns.yaml").read_text(encoding="utf-8"))
    return tuple(Rerun.model_validate(block) for block in content)


def reruns_of(table: str, row: dict[str, Scalar], column: str) -> tuple[tuple[str, float], ...]:
    """(source, value) of every re-run of one cell."""
    return tuple(
        (rerun.source, rerun.values[column])
        for rerun in load_reruns()
        if rerun.table == table and column in rerun.values and rerun.match.items() <= row.items()
    )


@cache
def load_claims() -> tuple[Claim, ...]:
    """The paper's comparisons within its tables, in the order in which the report tells them."""
    content = yaml.safe_load((HERE / "claims.yaml").read_text(encoding="utf-8"))
    return tuple(Claim.model_validate(block) for block in content)
