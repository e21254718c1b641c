"""The view: what the report shows, as plain typed data. The templates of REPORT.md and report.html only lay it out.

Captions are prose, which may hold ``code``; all other texts are plain, and the templates escape them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vpd.report.claims import Finding
from vpd.report.provenance import Source


@dataclass(frozen=True)
class CellView:
    """One number of a table of the paper; empty texts are not shown."""

    value: str = "–"
    sd: str = ""
    paper: str = ""
    difference: str = ""
    others: tuple[tuple[str, str], ...] = ()
    """(value, source) of others who measured the same."""
    anchor: str = ""
    """Element of the page with the provenance of the number."""
    verdict: str = ""
    mark: str = ""
    """Letter of the reason why it is quoted."""
    best: bool = False
    paper_best: bool = False
    quoted: bool = False


@dataclass(frozen=True)
class RowView:
    """One row of a table of the paper; ``own`` if this project runs it."""

    label: str
    own: bool
    cells: tuple[CellView, ...]
    origin: str
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class TableView:
    """One table of the paper, in its own rows and columns."""

    name: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[RowView, ...]
    notes: tuple[tuple[str, str, str], ...]
    """(letter, reason, rows) of quoted numbers."""


@dataclass(frozen=True)
class Entry:
    """One cell of a plain table: an id (``code``), what it leads to in the page, and its full text if it is shortened."""

    text: str
    code: bool = False
    anchor: str = ""
    title: str = ""


@dataclass(frozen=True)
class Grid:
    """A plain table; ``numeric`` columns are aligned to the right, and the last row may be a total."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    numeric: Sequence[int] = ()
    total: bool = False
    ids: Sequence[str] = ()
    """Of the rows in the page, if others refer to them."""


def entries(*cells: Entry | str) -> tuple[Entry, ...]:
    """Make a row of a plain table; an empty text becomes a dash."""
    return tuple(cell if isinstance(cell, Entry) else Entry(cell or "–") for cell in cells)


@dataclass(frozen=True)
class Picture:
    """A picture with its caption; without an address it is missing."""

    caption: str
    path: Path
    address: str = ""
    """Relative to the report."""
    vector: str = ""
    """The same of the SVG, if there is one."""
    anchor: str = ""


@dataclass(frozen=True)
class RunView:
    """Provenance of one experiment."""

    source: Source
    fills: str
    """Tables and figures with numbers of this experiment."""
    took: str
    metrics: Sequence[Sequence[str]] = ()
    """Milestone, metric and one value per seed."""
    files: dict[str, str] = field(default_factory=dict)
    """Word -> address relative to the report, of files that exist."""


@dataclass(frozen=True)
class Section:
    """One section of the report; usually one kind of content is not empty."""

    name: str
    title: str
    claims: Sequence[Finding] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[TableView] = ()
    grid: Grid | None = None
    runs: Sequence[RunView] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.claims or self.pictures or self.tables or self.grid or self.runs)


@dataclass(frozen=True)
class View:
    """The whole report."""

    scale: str
    protocol: str
    comparable: bool
    costs_scale: str
    origins: Sequence[tuple[str, int]]
    """How many cells have each provenance."""
    verdicts: Sequence[tuple[str, int]]
    """How many measured cells have each verdict."""
    sections: Sequence[Section]
