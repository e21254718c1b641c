"""What the paper claims about its own numbers, as a plan that is fixed before anything runs: claims.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat, model_validator

from vpd.config.reported import ReportedTable, Row
from vpd.config.tables import FigureSpec, matched
from vpd.utils.documents import read_yaml
from vpd.utils.errors import UserError, pick
from vpd.utils.validation import Frozen, checked

CLAIMS = Path(__file__).parent / "claims.yaml"
POINT = "point"  # key that selects a point of a figure


class Claim(Frozen):
    """Something that the paper says about rows of a table, in each of ``columns``, or about points of a figure.

    Either ``better`` is ahead of each of ``worse``, or each row of ``order`` is ahead of the next, or a figure has a ``trend``.
    """

    title: str
    table: str | None = None
    columns: tuple[str, ...] = ()
    figure: str | None = None
    better: Row | None = None
    """A row of the table by its keys, or a point of the figure as ``{point: sd-1-5}``; also in ``worse`` and ``order``."""
    worse: tuple[Row, ...] = ()
    order: tuple[Row, ...] = ()
    trend: Literal["slope"] | None = None
    """`slope`: the metric of the figure rises with every doubling of the pre-training."""
    equal: bool = False
    """Whether the claim is that the rows do not differ by the margin, and not that one is ahead."""
    margin: PositiveFloat
    """Smallest difference of interest, in the unit of the columns; of a slope, per doubling."""
    reason: str
    """Where the margin comes from."""
    noise: PositiveFloat
    """Largest standard deviation of the paired differences in the recorded runs of scale mini, from which seeds are planned."""

    @model_validator(mode="after")
    def _check_kind(self) -> Claim:
        kinds = [bool(self.better and self.worse), len(self.order) > 1, bool(self.trend)]
        in_table = bool(self.table and self.columns and not self.trend)
        if sum(kinds) != 1 or in_table == bool(self.figure):
            problem = "needs a table with columns or a figure, and one of better and worse, order, or a figure's trend"
            raise ValueError(problem)
        if self.figure and any(list(row) != [POINT] for row in self.rows):
            raise ValueError(f"selects points of a figure by the key '{POINT}' alone")
        return self

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row or point that the claim names, in the order of the file."""
        return (*filter(None, (self.better,)), *self.worse, *self.order)

    @property
    def pairs(self) -> tuple[tuple[Row, Row], ...]:
        """(better, worse) of every comparison in a column."""
        return tuple(pairwise(self.order)) or tuple((self.better or {}, worse) for worse in self.worse)

    @property
    def comparisons(self) -> int:
        """Number of tests that the claim consists of."""
        return 1 if self.trend else len(self.pairs) * max(len(self.columns), 1)

    @property
    def source(self) -> str:
        """Id of its table or figure."""
        return self.table or self.figure or ""


def load_claims(path: Path | None = None) -> tuple[Claim, ...]:
    """Read the plan, in the order of the report.

    Args:
        path: file to read; by default the project's own.

    Raises:
        UserError: the file is not a list of claims, or a claim has an unknown, missing or wrong key.
    """
    path = path or CLAIMS
    blocks = read_yaml(path, "restore it from the repository")
    if not isinstance(blocks, list):
        raise UserError(f"{path} holds {type(blocks).__name__} instead of a list of claims; restore it")
    return tuple(checked(Claim, block, _where(path, block)) for block in blocks)


def _where(path: Path, block: Any) -> str:
    """Name a claim by its title, so that it is found wherever it stands in the file."""
    title = block.get("title") if isinstance(block, dict) else None
    return f"{path}, '{title}'" if title else str(path)


def check_claims(
    claims: Iterable[Claim],
    reported: Mapping[str, ReportedTable],
    figures: Mapping[str, FigureSpec],
    path: Path | None = None,
) -> None:
    """Look up what claims name; UserError for the first table, figure, column, row or point that does not exist.

    Args:
        claims: of ``path``.
        reported: the paper's tables and figures.
        figures: of params.yaml; points of one that is not drawn are not looked up.
        path: file to name; by default the project's own.
    """
    for claim in claims:
        where = f"{path or CLAIMS}, '{claim.title}'"
        kind = "table" if claim.table else "figure"
        source = pick(claim.source, {name: reported[name] for name in reported if kind in name}, kind, where)
        for column in claim.columns:
            pick(column, dict.fromkeys(source.columns), "column", f"{where}: columns")
        for row in claim.rows:
            if claim.table:
                matched(row, source, where)
            elif claim.source in figures:
                pick(str(row[POINT]), figures[claim.source].points, "point", f"{where}: {claim.source}")
