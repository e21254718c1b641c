"""What the page shows, as plain values for its template: tables with their cells, claims with their bars, and runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vpd.config.table_checks import LOWER_IS_BETTER
from vpd.config.tables import RELEASED
from vpd.report.cells import PROTOCOL_OURS, Cell
from vpd.report.claims import Finding, Line, describe, shown, signed
from vpd.report.context import Report
from vpd.report.judge import SETTING
from vpd.report.names import heading
from vpd.report.tables import grid, origin, own, reasons, row_cells, row_names

MARKS = "abcdefghijklmnopqrstuvwxyz"
LOOKS = {
    "reproduced": ("good", "✓"),
    "agrees": ("good", "✓"),
    "supported": ("good", "✓"),
    "as re-run by others": ("near", "≈"),
    "differs": ("bad", "✗"),
    "contradicted": ("bad", "✗"),
    "inconclusive": ("open", "?"),
    "no difference seen": ("open", "="),
    "one seed, cannot tell": ("open", "?"),
    "miniature": ("mini", "▫"),
    "beyond the paper": ("beyond", "+"),
    "not run": ("none", "–"),
    "quoted": ("none", "”"),
}
"""Verdict -> style and sign; whatever is not here names who is ahead."""


@dataclass(frozen=True)
class Badge:
    """A verdict as text, sign and style, so that colour is never alone."""

    text: str
    style: str
    sign: str


def badge(verdict: str) -> Badge:
    """The look of a verdict; one of an unpublished protocol looks like the same verdict without it."""
    return Badge(verdict, *LOOKS.get(plain(verdict), ("ahead", "›")))


def plain(verdict: str) -> str:
    """A verdict without whose protocol it was, which a table says once per row."""
    return verdict.removesuffix(PROTOCOL_OURS)


# --------------------------------------------------------------------------------------------------------------- tables
@dataclass(frozen=True)
class CellView:
    """One number of a table; texts are empty where there is nothing to say."""

    value: str = "–"
    sd: str = ""
    paper: str = ""
    difference: str = ""
    others: tuple[str, ...] = ()
    anchor: str = ""
    """Place of the page that says what the number was made from."""
    badge: Badge | None = None
    mark: str = ""
    """Letter of the reason why it is quoted."""
    best: bool = False
    paper_best: bool = False
    quoted: bool = False


@dataclass(frozen=True)
class RowView:
    """One row of a table."""

    label: str
    own: bool
    cells: tuple[CellView, ...]
    origin: str
    badges: tuple[Badge, ...]


@dataclass(frozen=True)
class TableView:
    """One table of the paper."""

    name: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[RowView, ...]
    notes: tuple[tuple[str, str], ...]
    """(letter, reason)"""


def table_view(report: Report, name: str) -> TableView:
    """A table in the paper's own shape."""
    source, here = report.reported[name], grid(report.cells, name)
    marks = dict(zip(reasons(here.values()), MARKS, strict=False))
    best = {column: _best([c for (_, name), c in here.items() if name == column]) for column in source.columns}
    rows = []
    for row in row_names(here):
        cells = row_cells(here, row)
        ours = own(cells)
        views = tuple(
            _cell(here.get((row, column)), source.decimals(column), marks, best[column], ours)
            for column in source.columns
        )
        verdicts = dict.fromkeys(plain(cell.verdict) for cell in cells if cell.provenance not in ("quoted", "counted"))
        rows.append(RowView(row, ours, views, origin(cells), tuple(map(badge, verdicts))))
    notes = tuple((mark, reason) for reason, mark in marks.items())
    return TableView(name, report.tables[name], tuple(map(heading, source.columns)), tuple(rows), notes)


def _best(cells: Sequence[Cell]) -> tuple[float | None, float | None]:
    """The best measured and the best printed number of a column, where there are several to choose from."""
    measured = [cell for cell in cells if cell.seeds]
    printed = [cell.paper for cell in cells if cell.paper is not None and cell.reason != SETTING]
    choose = min if any(cell.column in LOWER_IS_BETTER or cell.metric in LOWER_IS_BETTER for cell in cells) else max
    counted = any(cell.provenance == "counted" or cell.column == "gflops" for cell in cells)
    own = choose(cell.value for cell in measured) if len(measured) > 1 else None
    return own, choose(printed) if len(printed) > 1 and not counted else None


def _cell(
    cell: Cell | None, decimals: int, marks: dict[str, str], best: tuple[float | None, float | None], ours: bool
) -> CellView:
    if cell is None:
        return CellView()
    paper = "" if cell.paper is None else f"{cell.paper:.{decimals}f}"
    shared = {"paper_best": cell.paper is not None and cell.paper == best[1], "mark": marks.get(cell.reason, "")}
    if not cell.values:
        if cell.provenance == "quoted":
            return CellView(paper, quoted=True, **shared)
        return CellView("not run", paper=paper, badge=badge(cell.verdict), **shared)
    return CellView(
        shown(cell.value, decimals),
        "" if cell.sd is None else f"{cell.sd:.{decimals}f}",
        paper,
        signed(cell.difference, decimals) if paper else "",
        tuple(f"{shown(value, decimals)} {source}" for source, value in cell.reruns),
        anchor(cell.experiment),
        badge(plain(cell.verdict)),
        best=bool(cell.seeds) and cell.value == best[0],
        **shared,
    )


def anchor(experiment: str) -> str:
    """Where the page tells the provenance of an experiment, or of released weights."""
    name = experiment.removesuffix(RELEASED)
    return f"run-{name}" if name == experiment else f"released-{name}"


# --------------------------------------------------------------------------------------------------------------- claims
@dataclass(frozen=True)
class Bar:
    """An interval on a line from 0 to 100 with zero difference at 50; to the right is what was claimed."""

    at: float
    low: float | None
    high: float | None
    paper: float | None


@dataclass(frozen=True)
class LineView:
    """One comparison of a claim."""

    label: str
    numbers: str
    paper: str
    badge: Badge
    bar: Bar | None


@dataclass(frozen=True)
class ClaimView:
    """One claim or question."""

    title: str
    place: str
    badge: Badge
    lines: tuple[LineView, ...]

    @property
    def outcomes(self) -> str:
        """``3 comparisons: 1 supported, 2 inconclusive``."""
        found = ", ".join(f"{count} {item.text}" for item, count in tally(line.badge for line in self.lines))
        return f"{len(self.lines)} comparisons: {found}"


def claim_view(finding: Finding) -> ClaimView:
    """A finding with its bars."""
    return ClaimView(finding.title, finding.place, badge(finding.verdict), tuple(map(_line, finding.lines)))


def _line(line: Line) -> LineView:
    if line.found is None:
        return LineView(line.label, "", "", badge(line.verdict), None)
    numbers = describe(line.found, line.decimals, line.remark)
    paper = "" if line.paper is None else signed(line.paper, line.decimals)
    return LineView(line.label, numbers, paper, badge(line.verdict), bar(line))


def bar(line: Line) -> Bar:
    """Geometry of a comparison; the paper's difference is drawn where it lies within twice the measured range."""
    found = line.found
    ends = [abs(value) for value in (found.mean, found.low, found.high) if value is not None]
    near = line.paper is not None and abs(line.paper) <= 2 * max(ends)
    widest = max([*ends, abs(line.paper)] if near else ends) or 1.0

    def place(value: float | None) -> float | None:
        return None if value is None else round(50 + line.sign * 46 * value / widest, 2)

    low, high = (found.low, found.high) if line.sign > 0 else (found.high, found.low)
    return Bar(place(found.mean), place(low), place(high), place(line.paper) if near else None)


def tally(badges: Iterable[Badge]) -> list[tuple[Badge, int]]:
    """How often each verdict occurs, in the order of ``LOOKS``."""
    found: dict[Badge, int] = {}
    for item in badges:
        found[item] = found.get(item, 0) + 1
    order = list(LOOKS)
    return sorted(found.items(), key=lambda pair: order.index(pair[0].text) if pair[0].text in order else len(order))
