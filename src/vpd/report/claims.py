"""The paper's claims, tested on what was measured here: each gets a verdict and the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vpd.config.reported import Claim, ReportedTable, Row
from vpd.config.table_checks import LOWER_IS_BETTER
from vpd.report.cells import Cell, csv_text, number
from vpd.report.names import heading, ordinal
from vpd.report.statistics import Difference, difference, rise

SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN = "supported", "contradicted", "inconclusive", "not run"
VERDICTS = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN)
Points = Sequence[tuple[int, Cell]]
"""(pre-training steps, cell) per point of a trend figure; 0 steps stands for untrained weights."""
COLUMNS = (
    "section", "claim", "place", "verdict", "comparison", "comparison_verdict", "difference", "low", "high", "effect",
    "paper_difference",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One comparison of a finding: what is held against what, the difference, and what the seeds say about it."""

    label: str
    verdict: str
    found: Difference | None = None
    """None if one side was not measured."""
    paper: float | None = None
    """The paper's difference."""
    decimals: int = 1
    remark: str = ""
    sign: int = 1
    """-1 where a negative difference is the better one."""

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        if self.found is None:
            return f"{self.label}."
        paper = f" The paper's difference is {signed(self.paper, self.decimals)}." if self.paper is not None else ""
        return f"{self.label}: {describe(self.found, self.decimals, self.remark)}.{paper}"


@dataclass(frozen=True)
class Finding:
    """One claim with its verdict and the comparisons that it rests on."""

    title: str
    place: str
    verdict: str
    lines: tuple[Line, ...]

    @property
    def sentence(self) -> str:
        """All comparisons in words."""
        return " ".join(line.sentence for line in self.lines)


def signed(value: float, decimals: int) -> str:
    """A number with its sign, minus as a minus sign: ``+1.2``, ``−0.3``; what rounds to zero has no minus."""
    text = f"{value:+.{decimals}f}"
    if float(text) == 0:
        text = f"+{0:.{decimals}f}"
    return text.replace("-", "−")


def shown(value: float, decimals: int) -> str:
    """A number with so many decimals, or with two digits where those would leave nothing of it."""
    text = f"{value:.{decimals}f}"
    return f"{value:.2g}" if value and float(text) == 0 else text


def spread(cell: Cell, decimals: int) -> str:
    """Mean, and standard deviation where there are several seeds: ``31.2 ± 0.4``."""
    mean = shown(cell.value, decimals)
    return mean if cell.sd is None else f"{mean} ± {cell.sd:.{decimals}f}"


def describe(found: Difference, decimals: int, remark: str = "") -> str:
    """``+1.20 (95 % interval +0.31 to +2.09, effect size +4.1, 3 and 3 seeds)``; one decimal more than the numbers."""
    mean = signed(found.mean, decimals + 1)
    if found.low is None:
        return f"{mean} (one seed, no interval{remark})"
    ends = f"{signed(found.low, decimals + 1)} to {signed(found.high, decimals + 1)}"
    effect = "no spread" if found.effect is None else f"effect size {signed(found.effect, 1)}"
    count = " and ".join(map(str, dict.fromkeys(found.seeds) if found.paired else found.seeds))
    return f"{mean} (95 % interval {ends}, {effect}, {count} seeds)"


# ---------------------------------------------------------------------------------------------------------------- lines
def better_is(cell: Cell) -> int:
    """-1 where lower is better."""
    return -1 if cell.metric in LOWER_IS_BETTER else 1


def compare(better: Cell, worse: Cell, decimals: int) -> Line:
    """Test the claim that ``better`` is better than ``worse``."""
    if absent := not_measured(better, worse):
        return absent
    found = difference(better.values, worse.values)
    paper = better.paper - worse.paper if None not in (better.paper, worse.paper) else None
    label = f"'{better.row}' {spread(better, decimals)} against '{worse.row}' {spread(worse, decimals)}"
    return judged(label, found, better_is(better), decimals, paper)


def not_measured(*cells: Cell) -> Line | None:
    """A line that says which of ``cells`` is missing, if one is."""
    names = " and ".join(dict.fromkeys(f"'{cell.row}'" for cell in cells if not cell.values))
    return Line(f"{names} not measured, so there is nothing to compare", NOT_RUN) if names else None


def judged(label: str, found: Difference, sign: int, decimals: int, paper: float | None = None) -> Line:
    """A line whose verdict follows from the interval; without one the direction is told and nothing decided."""
    if found.low is None:
        ahead = found.mean * sign
        way = (
            "the direction is as claimed"
            if ahead > 0
            else "the direction is the opposite"
            if ahead
            else "no difference"
        )
        return Line(label, INCONCLUSIVE, found, paper, decimals, f"; {way}", sign)
    verdict = {1: SUPPORTED, -1: CONTRADICTED, 0: INCONCLUSIVE}[found.settled * sign]
    return Line(label, verdict, found, paper, decimals, sign=sign)


def conclude(verdicts: Iterable[str]) -> str:
    """The verdict on a claim of several comparisons: all must be supported, and one contradicted is enough."""
    seen = set(verdicts)
    if CONTRADICTED in seen:
        return CONTRADICTED
    return seen.pop() if len(seen) == 1 else INCONCLUSIVE


# --------------------------------------------------------------------------------------------------------------- claims
def findings(
    claims: Iterable[Claim],
    reported: Mapping[str, ReportedTable],
    cells: Sequence[Cell],
    points: Mapping[str, Points],
) -> list[Finding]:
    """Every claim with its verdict; ``points`` by trend figure."""
    return [
        trend(claim, points.get(claim.figure, ()), _decimals(reported.get(claim.figure)))
        if claim.figure
        else table_finding(claim, reported[claim.table], cells)
        for claim in claims
    ]


def _decimals(source: ReportedTable | None) -> int:
    return source.decimals(source.columns[0]) if source else 2


def table_finding(claim: Claim, source: ReportedTable, cells: Sequence[Cell]) -> Finding:
    """A claim about rows of a table, compared in each of its columns."""
    here = [cell for cell in cells if cell.table == claim.table]
    labels = list(dict.fromkeys(cell.row for cell in here))

    def cell(match: Row, column: str) -> Cell:
        (index,) = source.matching(match)
        absent = Cell(claim.table, labels[index], column, None)
        return next((c for c in here if (c.row, c.column) == (labels[index], column)), absent)

    lines = []
    for column in claim.columns:
        decimals, prefix = source.decimals(column), f"{heading(column)}: " if len(claim.columns) > 1 else ""
        for better, worse in claim.pairs:
            line = compare(cell(better, column), cell(worse, column), decimals)
            lines.append(replace(line, label=prefix + line.label))
    place = f"{ordinal(claim.table)}, {', '.join(map(heading, claim.columns))}"
    return Finding(claim.title, place, conclude(line.verdict for line in lines), tuple(lines))


def trend(claim: Claim, points: Points, decimals: int) -> Finding:
    """A claim about the points of a figure, in the order of their pre-training steps."""
    ordered = sorted(points, key=lambda point: point[0])
    every = [cell for _, cell in ordered]
    trained = [(steps, cell) for steps, cell in ordered if steps]
    if len(trained) < 2 or (claim.trend == "untrained" and len(trained) == len(ordered)):
        lines = [Line("The figure has too few points to compare", NOT_RUN)]
    elif claim.trend == "slope":
        lines = [slope(trained, decimals)]
    elif claim.trend == "steps":
        lines = [compare(later, earlier, decimals) for earlier, later in pairwise(every)]
    else:
        first = every[0] if claim.trend == "untrained" else trained[0][1]
        lines = [compare(every[-1], first, decimals)]
    return Finding(claim.title, ordinal(claim.figure), conclude(line.verdict for line in lines), tuple(lines))


def slope(points: Points, decimals: int) -> Line:
    """Whether the metric rises with every doubling of the steps: one least-squares slope per seed."""
    cells = [cell for _, cell in points]
    if absent := not_measured(*cells):
        return absent
    seeds = [seed for seed in cells[0].seeds if all(seed in cell.seeds for cell in cells)]
    values = [[dict(zip(cell.seeds, cell.values, strict=True))[seed] for cell in cells] for seed in seeds]
    if not seeds:
        return Line("The points have no seed in common", NOT_RUN)
    found = rise([steps for steps, _ in points], values)
    return judged("Change per doubling of the pre-training steps", found, better_is(cells[0]), decimals)


def claims_csv(sections: Mapping[str, Sequence[Finding]]) -> str:
    """Findings as CSV, one line per comparison; sections are ``paper`` and ``beyond the paper``."""
    rows = []
    for section, found in sections.items():
        for finding in found:
            for line in finding.lines:
                d = line.found
                numbers = [number(value) for value in ((d.mean, d.low, d.high, d.effect) if d else (None,) * 4)]
                ends = (line.label, line.verdict, *numbers, number(line.paper))
                rows.append((section, finding.title, finding.place, finding.verdict, *ends))
    return csv_text(COLUMNS, rows)
