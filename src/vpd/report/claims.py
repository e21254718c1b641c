"""The paper's claims and questions beyond it, each tested on the measured cells: a verdict with the numbers behind it.

docs/claims.md explains the test and the verdicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vpd.config.claims import POINT, Claim
from vpd.config.reported import ReportedTable, Row
from vpd.config.tables import QuestionSpec
from vpd.report.cells import Cell, csv_text, number
from vpd.report.judge import BEYOND
from vpd.report.paired import ALPHA, Paired, differences, holm, slopes
from vpd.report.wording import heading, ordinal, ranges, rounded, signed

SUPPORTED, CONTRADICTED, NO_DIFFERENCE = "supported", "contradicted", "no difference"
INCONCLUSIVE, NOT_RUN = "inconclusive", "not run"
VERDICTS = (SUPPORTED, CONTRADICTED, NO_DIFFERENCE, INCONCLUSIVE, NOT_RUN)
QUESTION_DECIMALS = dict.fromkeys(("rmse", "rel", "log10", "delta1", "delta2", "delta3"), 3)  # elsewhere 1
Points = Sequence[
    tuple[int, Cell]
]  # (pre-training steps or images, cell) of a trend figure; 0 stands for untrained weights
COLUMNS = (
    "section", "claim", "place", "verdict", "comparison", "comparison_verdict", "difference", "low", "high", "confidence",
    "p_holm", "margin", "paired_seeds", "paper_difference", "remark",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One comparison of a finding: what is compared, the difference seed by seed, and the verdict of the test."""

    label: str
    verdict: str = INCONCLUSIVE
    difference: Paired | None = None  # None if nothing can be paired
    paper: float | None = None  # the paper's difference
    decimals: int = 1
    sign: int = 1  # -1 where a negative difference is the better one
    remark: str = ""
    margin: float | None = None  # smallest difference of interest
    p: float | None = None  # corrected by Holm; None for one seed
    alpha: float = ALPHA  # of the interval
    experiments: tuple[str, ...] = ()  # whose numbers are compared

    @property
    def interval(self) -> tuple[float, float] | None:
        """Interval of the difference, which leaves zero out exactly if ``p`` is significant; None for one seed."""
        return self.difference.interval(self.alpha) if self.difference else None

    @property
    def texts(self) -> dict[str, str]:
        """Difference, interval with its level, p, margin, number of seeds and the paper's difference, as they are printed."""
        digits = self.decimals + 1  # a difference of means deserves one digit more than they have
        return {
            "difference": signed(self.difference.mean, digits) if self.difference else "",
            "interval": " to ".join(signed(end, digits) for end in self.interval or ()),
            "level": f"{100 * (1 - self.alpha):.4g} %" if self.interval else "",
            "p": "" if self.p is None else f"{self.p:.3f}" if self.p >= 0.001 else "<0.001",
            "margin": "" if self.margin is None else f"{self.margin:g}",
            "seeds": str(len(self.difference.values)) if self.difference else "",
            "paper": self.paper_text,
        }

    @property
    def paper_text(self) -> str:
        """The paper's difference with its sign; empty if the paper prints none or nothing was measured."""
        return "" if self.paper is None or self.difference is None else signed(self.paper, self.decimals)


@dataclass(frozen=True)
class Finding:
    """One claim or question with the comparisons that it rests on."""

    title: str
    place: str
    lines: Sequence[Line]

    @property
    def verdict(self) -> str:
        """The first that holds: all not run, one contradicted, all supported, one undecided, and else no difference."""
        verdicts = {line.verdict for line in self.lines}
        if len(verdicts) == 1:
            return verdicts.pop()
        if CONTRADICTED in verdicts:
            return CONTRADICTED
        return INCONCLUSIVE if verdicts & {INCONCLUSIVE, NOT_RUN} else NO_DIFFERENCE

    @property
    def outcomes(self) -> str:
        """Verdicts of the comparisons, in the order of first occurrence: ``3 inconclusive, 2 supported``."""
        return ", ".join(f"{count} {name}" for name, count in Counter(line.verdict for line in self.lines).items())


def tally(tested: Iterable[Finding]) -> list[tuple[str, int]]:
    """Count the verdicts that occur, in the order of ``VERDICTS``."""
    counts = Counter(finding.verdict for finding in tested)
    return [(verdict, counts[verdict]) for verdict in VERDICTS if counts[verdict]]


# ------------------------------------------------------------------------------------------------------------ comparisons
def compare(first: Cell, second: Cell, decimals: int) -> Line:
    """Pair two cells by seed, for the claim that ``first`` is the better one."""
    if absent := _not_measured(first, second):
        return absent
    change = differences(*(dict(zip(cell.seeds, cell.values, strict=False)) for cell in (first, second)))
    shown = _paired(first, second) if change else (first, second)
    spread = ["" if cell.sd is None else f" ± {cell.sd:.{decimals}f}" for cell in shown]
    sides = [f"'{c.row}' {rounded(c.mean, decimals)}{sd}" for c, sd in zip(shown, spread, strict=True)]
    paper = None if first.paper is None or second.paper is None else first.paper - second.paper
    remark = _unpaired(first, second) if change else "no seed in common, so there is nothing to pair"
    line = Line(" against ".join(sides), INCONCLUSIVE, change, paper, decimals, first.sign, remark)
    return replace(line, experiments=_experiments(first, second))


def _not_measured(*cells: Cell) -> Line | None:
    """Name the cells without a measurement; None if there are none."""
    names = " and ".join(dict.fromkeys(f"'{cell.row}'" for cell in cells if not cell.values))
    label = f"{names} not measured, so there is nothing to compare"
    return Line(label, NOT_RUN, experiments=_experiments(*cells)) if names else None


def _experiments(*cells: Cell) -> tuple[str, ...]:
    """The experiments that fill the cells, each once."""
    return tuple(dict.fromkeys(cell.experiment for cell in cells if cell.experiment))


def _paired(*cells: Cell) -> list[Cell]:
    """Return the cells with the seeds alone that all of them have, so that means belong to the difference."""
    shared = set.intersection(*(set(cell.seeds) for cell in cells))
    by_seed = [{s: v for s, v in zip(cell.seeds, cell.values, strict=False) if s in shared} for cell in cells]
    return [replace(cell, seeds=(*kept,), values=(*kept.values(),)) for cell, kept in zip(cells, by_seed, strict=True)]


def _unpaired(*cells: Cell) -> str:
    """Say which seeds of which cells have no partner in another cell and are left out; empty if there are none."""
    left = [(cell.row, {*cell.seeds} - {*kept.seeds}) for cell, kept in zip(cells, _paired(*cells), strict=True)]
    texts = [f"seed{'s'[: len(seeds) > 1]} {ranges(seeds)} of '{row}'" for row, seeds in left if seeds]
    return f"without {', '.join(texts)}" if texts else ""


def slope(points: Points, decimals: int) -> Line:
    """Take the least-squares slope of the metric per doubling of the pre-training, one per seed that all points have."""
    trained = sorted((point for point in points if point[0]), key=lambda point: point[0])
    cells, label = [cell for _, cell in trained], "Change per doubling of the pre-training"
    if len(cells) < 2:
        return Line("The figure has too few points to compare", NOT_RUN)
    if absent := _not_measured(*cells):
        return absent
    by_seed = [dict(zip(cell.seeds, cell.values, strict=True)) for cell in cells]
    curves = [[values[seed] for values in by_seed] for seed in cells[0].seeds if all(seed in v for v in by_seed)]
    if not curves:
        return Line(label, remark="no seed in common, so there is nothing to pair", experiments=_experiments(*cells))
    change = slopes([steps for steps, _ in trained], curves)
    line = Line(label, INCONCLUSIVE, change, None, decimals, cells[0].sign, _unpaired(*cells))
    return replace(line, experiments=_experiments(*cells))


# --------------------------------------------------------------------------------------------------------------- verdicts
def judged(lines: Sequence[Line], margin: float | None, equal: bool = False) -> list[Line]:
    """Give every comparison of one claim its corrected p value, its interval and its verdict.

    Args:
        lines: all planned comparisons; those that could not be tested count for the correction, too.
        margin: smallest difference of interest; without one, no difference is found to be too small.
        equal: whether the claim is that there is no difference.
    """
    tests = holm([line.difference.p if line.difference else None for line in lines])
    tested = []
    for line, (p, alpha) in zip(lines, tests, strict=True):
        line = replace(line, margin=margin, p=p, alpha=alpha)
        if line.difference:
            verdict, remark = _verdict(line, equal)
            line = replace(line, verdict=verdict, remark="; ".join(filter(None, (remark, line.remark))))
        tested.append(line)
    return tested


def _verdict(line: Line, equal: bool) -> tuple[str, str]:
    """Decide one comparison by its interval, and say what the verdict leaves out."""
    margin, ahead = line.margin or 0.0, line.difference.mean * line.sign if line.difference else 0.0
    if line.interval is None or line.p is None:
        direction = f"the direction is {'as claimed' if ahead > 0 else 'the opposite'}" if ahead else "no difference"
        return INCONCLUSIVE, "" if equal else direction
    low, high = line.interval
    small = -margin < low and high < margin
    if equal:
        large = margin <= low or high <= -margin
        return SUPPORTED if small else CONTRADICTED if large else INCONCLUSIVE, ""
    if line.p <= ALPHA:
        remark = "smaller than the smallest difference of interest" if small else ""
        return SUPPORTED if ahead > 0 else CONTRADICTED, remark
    return NO_DIFFERENCE if small else INCONCLUSIVE, ""


# --------------------------------------------------------------------------------------------------- claims and questions
def findings(
    claims: Iterable[Claim], reported: Mapping[str, ReportedTable], cells: Sequence[Cell], points: Mapping[str, Points]
) -> list[Finding]:
    """Test every claim on the cells of its table or figure, or on ``points`` of its trend figure."""
    tested = []
    for claim in claims:
        source = reported[claim.source]
        if claim.trend:
            lines = [slope(points.get(claim.source, ()), source.decimals(source.columns[0]))]
        else:
            lines = _pairs(claim, source, [cell for cell in cells if cell.table == claim.source])
        place = ", ".join((ordinal(claim.source), *map(heading, claim.columns)))
        tested.append(Finding(claim.title, place, judged(lines, claim.margin, claim.equal)))
    return tested


def _pairs(claim: Claim, source: ReportedTable, cells: Sequence[Cell]) -> list[Line]:
    """Compare rows of a table, or points of a figure, in each column of the claim."""
    by_place = {(cell.row, cell.column): cell for cell in cells}
    labels = list(dict.fromkeys(cell.row for cell in cells))
    lines = []
    for column in claim.columns or source.columns[:1]:
        prefix = f"{heading(column)}: " if len(claim.columns) > 1 else ""
        for pair in claim.pairs:
            rows = [_label(row, source, labels) for row in pair]
            first, second = (by_place.get((row, column), Cell(claim.source, row, column, None)) for row in rows)
            line = compare(first, second, source.decimals(column))
            lines.append(replace(line, label=prefix + line.label))
    return lines


def _label(row: Row, source: ReportedTable, labels: Sequence[str]) -> str:
    """Name the row of a table, whose ``labels`` are in the paper's order, or the point of a figure."""
    return str(row[POINT]) if POINT in row else labels[source.matching(row)[0]]


def answers(questions: Iterable[QuestionSpec], cells: Iterable[Cell]) -> list[Finding]:
    """Answer every question by the same test: ``a is ahead``, ``no difference``, ``inconclusive`` or ``not run``."""
    by_place = {(cell.row, cell.column): cell for cell in cells if cell.table == BEYOND}
    answered = []
    for question in questions:
        first, second = (by_place[name, question.metric] for name in (question.first, question.second))
        milestone, _, metric = question.metric.partition(".")
        line = compare(first, second, QUESTION_DECIMALS.get(metric, 1))
        (line,) = judged([line], question.margin)
        named = {SUPPORTED: f"{first.row} is ahead", CONTRADICTED: f"{second.row} is ahead"}
        line = replace(line, verdict=named.get(line.verdict, line.verdict))
        if line.interval is None:  # "as claimed" would be wrong: nobody claims anything
            line = replace(line, remark=_unpaired(first, second) if line.difference else line.remark)
        answered.append(Finding(question.title, f"{heading(metric)}, {milestone}", (line,)))
    return answered


def claims_csv(sections: Mapping[str, Iterable[Finding]]) -> str:
    """Format findings as CSV, one line per comparison; sections are ``paper`` and ``beyond the paper``."""
    rows = []
    for section, tested in sections.items():
        for finding in tested:
            for line in finding.lines:
                d, (low, high) = line.difference, line.interval or (None, None)
                numbers = (
                    d.mean if d else None,
                    low,
                    high,
                    1 - line.alpha if line.interval else None,
                    line.p,
                    line.margin,
                )
                ends = (line.label, line.verdict, *map(number, numbers), len(d.values) if d else "", number(line.paper))
                rows.append((section, finding.title, finding.place, finding.verdict, *ends, line.remark))
    return csv_text(COLUMNS, rows)
