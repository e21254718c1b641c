"""The paper's claims and questions beyond it, each tested on the measured cells: a verdict with the numbers behind it."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from scipy import stats

from vpd.config.reported import Claim, ReportedTable
from vpd.config.tables import QuestionSpec
from vpd.report.cells import Cell, csv_text, number
from vpd.report.judge import BEYOND
from vpd.report.wording import heading, ordinal, rounded, signed

SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN = "supported", "contradicted", "inconclusive", "not run"
QUESTION_DECIMALS = dict.fromkeys(("rmse", "rel", "log10", "delta1", "delta2", "delta3"), 3)  # elsewhere 1
Points = Sequence[
    tuple[int, Cell]
]  # (pre-training steps or images, cell) of a trend figure; 0 stands for untrained weights
COLUMNS = (
    "section", "claim", "place", "verdict", "comparison", "comparison_verdict", "difference", "low", "high", "effect",
    "paper_difference",
)  # fmt: skip
LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Difference:
    """A difference of means, or a mean slope, with its interval over seeds."""

    mean: float
    seeds: str  # their number: ``3 and 3`` for two independent sets
    interval: tuple[float, float] | None = None  # None if either side has one seed
    effect: float | None = None  # Cohen's d: the difference over the pooled standard deviation; None without spread

    @property
    def significant(self) -> int:
        """Sign of the difference if the interval excludes zero, else 0."""
        low, high = self.interval or (0, 0)
        return (low > 0) - (high < 0)


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Compare two sets of independent seeds by Welch's t interval, which allows unequal spread."""
    mean, seeds = statistics.fmean(a) - statistics.fmean(b), f"{len(a)} and {len(b)}"
    if min(len(a), len(b)) < 2:
        return Difference(mean, seeds)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in (a, b))
    if squares == 0:  # t is undefined without spread, and scipy returns NaN
        return Difference(mean, seeds, (mean, mean))
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # the seeds of one side may be all equal
        low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return Difference(mean, seeds, (float(low), float(high)), mean / math.sqrt(squares / (len(a) + len(b) - 2)))


def rise(steps: Sequence[float], values: Sequence[Sequence[float]]) -> Difference:
    """Mean least-squares slope per doubling of the positive ``steps``, one curve per seed, with Student's t interval."""
    x = [math.log2(step) for step in steps]
    slopes = [statistics.linear_regression(x, curve).slope for curve in values]
    mean, seeds = statistics.fmean(slopes), str(len(slopes))
    sd = statistics.stdev(slopes) if len(slopes) > 1 else 0.0
    if sd == 0:
        return Difference(mean, seeds, (mean, mean) if len(slopes) > 1 else None)
    low, high = stats.ttest_1samp(slopes, 0).confidence_interval(LEVEL)
    return Difference(mean, seeds, (float(low), float(high)), mean / sd)


@dataclass(frozen=True)
class Line:
    """One comparison of a finding: what is compared, the difference, and the verdict of the seeds."""

    label: str
    verdict: str
    difference: Difference | None = None  # None if one side was not measured
    paper: float | None = None  # the paper's difference
    decimals: int = 1
    remark: str = ""
    sign: int = 1  # -1 where a negative difference is the better one

    @property
    def numbers(self) -> str:
        """``+1.20 (95 % interval +0.31 to +2.09, effect size +4.1, 3 and 3 seeds)``; empty if not measured."""
        if self.difference is None:
            return ""
        d, decimals = self.difference, self.decimals + 1  # a difference of means deserves one digit more than they have
        mean = signed(d.mean, decimals)
        if d.interval is None:
            return f"{mean} (one seed, no interval{self.remark})"
        ends = " to ".join(signed(end, decimals) for end in d.interval)
        effect = "no spread" if d.effect is None else f"effect size {signed(d.effect, 1)}"
        return f"{mean} (95 % interval {ends}, {effect}, {d.seeds} seeds)"

    @property
    def paper_text(self) -> str:
        """The paper's difference with its sign; empty if the paper prints none or nothing was measured."""
        return "" if self.paper is None or self.difference is None else signed(self.paper, self.decimals)

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        paper = f" The paper's difference is {self.paper_text}." if self.paper_text else ""
        return f"{self.label}: {self.numbers}.{paper}" if self.numbers else f"{self.label}."


@dataclass(frozen=True)
class Finding:
    """One claim or question with the comparisons that it rests on."""

    title: str
    place: str
    lines: Sequence[Line]

    @property
    def verdict(self) -> str:
        """All comparisons must be supported, and one contradicted is enough."""
        verdicts = {line.verdict for line in self.lines}
        if CONTRADICTED in verdicts:
            return CONTRADICTED
        return verdicts.pop() if len(verdicts) == 1 else INCONCLUSIVE

    @property
    def outcomes(self) -> str:
        """Verdicts of the comparisons, in the order of first occurrence: ``3 inconclusive, 2 supported``."""
        return ", ".join(f"{count} {name}" for name, count in Counter(line.verdict for line in self.lines).items())


def compare(first: Cell, second: Cell, decimals: int) -> Line:
    """Test the claim that ``first`` is better than ``second``."""
    if absent := _not_measured(first, second):
        return absent
    spread = ["" if cell.sd is None else f" ± {cell.sd:.{decimals}f}" for cell in (first, second)]
    sides = [f"'{c.row}' {rounded(c.mean, decimals)}{sd}" for c, sd in zip((first, second), spread, strict=True)]
    paper = None if first.paper is None or second.paper is None else first.paper - second.paper
    return _judged(" against ".join(sides), difference(first.values, second.values), first.sign, decimals, paper)


def _not_measured(*cells: Cell) -> Line | None:
    """Name the cells without a measurement; None if there are none."""
    names = " and ".join(dict.fromkeys(f"'{cell.row}'" for cell in cells if not cell.values))
    return Line(f"{names} not measured, so there is nothing to compare", NOT_RUN) if names else None


def _judged(label: str, change: Difference, sign: int, decimals: int, paper: float | None = None) -> Line:
    """Judge a difference by its interval; one seed has none, shows the direction and decides nothing."""
    verdict = {1: SUPPORTED, -1: CONTRADICTED, 0: INCONCLUSIVE}[change.significant * sign]
    ahead = change.mean * sign
    direction = f"the direction is {'as claimed' if ahead > 0 else 'the opposite'}" if ahead else "no difference"
    return Line(label, verdict, change, paper, decimals, "" if change.interval else f"; {direction}", sign)


def findings(
    claims: Iterable[Claim], reported: Mapping[str, ReportedTable], cells: Sequence[Cell], points: Mapping[str, Points]
) -> list[Finding]:
    """Test every claim on the cells of its table, or on ``points`` of its trend figure."""
    tested = []
    for claim in claims:
        if claim.figure:
            source = reported.get(claim.figure)
            decimals = source.decimals(source.columns[0]) if source else 2
            lines = trend(claim.trend, points.get(claim.figure, ()), decimals)
            tested.append(Finding(claim.title, ordinal(claim.figure), lines))
        elif claim.table:
            place = f"{ordinal(claim.table)}, {', '.join(map(heading, claim.columns))}"
            tested.append(Finding(claim.title, place, _in_table(claim, claim.table, reported[claim.table], cells)))
    return tested


def _in_table(claim: Claim, name: str, source: ReportedTable, cells: Sequence[Cell]) -> list[Line]:
    """Compare rows of a table in each column of the claim."""
    by_place = {(cell.row, cell.column): cell for cell in cells if cell.table == name}
    labels = list(dict.fromkeys(row for row, _ in by_place))
    lines = []
    for column in claim.columns:
        prefix = f"{heading(column)}: " if len(claim.columns) > 1 else ""
        for pair in claim.pairs:
            rows = [labels[source.matching(match)[0]] for match in pair]
            better, worse = (by_place.get((row, column), Cell(name, row, column, None)) for row in rows)
            line = compare(better, worse, source.decimals(column))
            lines.append(replace(line, label=prefix + line.label))
    return lines


def trend(kind: str | None, points: Points, decimals: int) -> list[Line]:
    """Test whether the last point beats the untrained or the first trained one, each the one before, or a slope rises."""
    ordered = sorted(points, key=lambda point: point[0])
    every = [cell for _, cell in ordered]
    trained = [(steps, cell) for steps, cell in ordered if steps]
    if len(trained) < 2 or (kind == "untrained" and len(trained) == len(ordered)):
        return [Line("The figure has too few points to compare", NOT_RUN)]
    if kind == "slope":
        return [slope(trained, decimals)]
    if kind == "steps":
        return [compare(later, earlier, decimals) for earlier, later in pairwise(every)]
    return [compare(every[-1], every[0] if kind == "untrained" else trained[0][1], decimals)]


def slope(points: Points, decimals: int) -> Line:
    """Test whether the metric improves with every doubling of the steps: one least-squares slope per seed."""
    cells = [cell for _, cell in points]
    if absent := _not_measured(*cells):
        return absent
    seeds = [seed for seed in cells[0].seeds if all(seed in cell.seeds for cell in cells)]
    if not seeds:
        return Line("The points have no seed in common", NOT_RUN)
    values = [[cell.values[cell.seeds.index(seed)] for cell in cells] for seed in seeds]
    change = rise([steps for steps, _ in points], values)
    return _judged("Change per doubling of the pre-training", change, cells[0].sign, decimals)


def answers(questions: Iterable[QuestionSpec], cells: Iterable[Cell]) -> list[Finding]:
    """Answer every question: ``a is ahead``, ``no difference seen``, ``one seed, cannot tell`` or ``not run``."""
    by_place = {(cell.row, cell.column): cell for cell in cells if cell.table == BEYOND}
    answered = []
    for question in questions:
        first, second = (by_place[name, question.metric] for name in (question.first, question.second))
        milestone, _, metric = question.metric.partition(".")
        line = compare(first, second, QUESTION_DECIMALS.get(metric, 1))
        if line.difference:
            named = {SUPPORTED: f"{first.row} is ahead", CONTRADICTED: f"{second.row} is ahead"}
            verdict = named.get(line.verdict, "no difference seen")
            line = replace(line, verdict=verdict if line.difference.interval else "one seed, cannot tell", remark="")
        answered.append(Finding(question.title, f"{heading(metric)}, {milestone}", (line,)))
    return answered


def claims_csv(sections: Mapping[str, Iterable[Finding]]) -> str:
    """Format findings as CSV, one line per comparison; sections are ``paper`` and ``beyond the paper``."""
    rows = []
    for section, tested in sections.items():
        for finding in tested:
            for line in finding.lines:
                d = line.difference
                numbers = (d.mean, *(d.interval or (None, None)), d.effect) if d else (None,) * 4
                ends = (line.label, line.verdict, *map(number, numbers), number(line.paper))
                rows.append((section, finding.title, finding.place, finding.verdict, *ends))
    return csv_text(COLUMNS, rows)
