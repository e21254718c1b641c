"""The paper's comparisons, recomputed: each becomes one sentence that says what was seen, whatever it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vpd.report.cells import Cell
from vpd.report.layout import LOWER_IS_BETTER
from vpd.report.names import heading, ordinal
from vpd.report.reported import Claim, ReportedTable
from vpd.report.statistics import Difference, difference


@dataclass(frozen=True)
class Finding:
    """One comparison with its outcome, such as ``holds`` or ``not settled``, and the sentence that says why."""

    title: str
    outcome: str
    sentence: str


def signed(value: float, decimals: int) -> str:
    """A number with its sign, minus as a minus sign: ``+1.2``, ``−0.3``; what rounds to zero has no minus."""
    text = f"{value:+.{decimals}f}"
    if float(text) == 0:
        text = f"+{0:.{decimals}f}"
    return text.replace("-", "−")


def spread(cell: Cell, decimals: int) -> str:
    """Mean, and standard deviation where there are several seeds: ``31.2 ± 0.4``."""
    mean = f"{cell.value:.{decimals}f}"
    return mean if cell.sd is None else f"{mean} ± {cell.sd:.{decimals}f}"


def describe(found: Difference, decimals: int) -> str:
    """``+1.20 (95 % interval +0.31 to +2.09, effect size +4.1, 3 and 3 seeds)``; one decimal more than the numbers."""
    mean = signed(found.mean, decimals + 1)
    if found.low is None:
        return f"{mean} (one seed, no interval)"
    ends = f"{signed(found.low, decimals + 1)} to {signed(found.high, decimals + 1)}"
    effect = "no spread" if found.effect is None else f"effect size {signed(found.effect, 1)}"
    return f"{mean} (95 % interval {ends}, {effect}, {found.seeds[0]} and {found.seeds[1]} seeds)"


def outcome(found: Difference, better_is: int) -> str:
    """What the seeds say about "the first is better"; ``better_is`` is -1 where lower is better."""
    if found.low is None:
        ahead = found.mean * better_is > 0
        return "as claimed, but of one seed" if ahead else "not as claimed, but of one seed"
    return {1: "holds", -1: "does not hold, the opposite does", 0: "not settled"}[found.settled * better_is]


def compare(title: str, better: Cell, worse: Cell, decimals: int) -> Finding:
    """Test the claim that ``better`` is better than ``worse``."""
    absent = [cell for cell in (better, worse) if not cell.values]
    if absent:
        names = " and ".join(dict.fromkeys(f"'{cell.row}'" for cell in absent))
        return Finding(title, "not run", f"{names} not measured, so there is nothing to compare.")
    found = difference(better.values, worse.values)
    result = outcome(found, -1 if better.metric in LOWER_IS_BETTER else 1)
    pair = f"'{better.row}' {spread(better, decimals)} against '{worse.row}' {spread(worse, decimals)}"
    paper = ""
    if better.paper is not None and worse.paper is not None:
        paper = f" The paper's difference is {signed(better.paper - worse.paper, decimals)}."
    return Finding(title, result, f"{pair}: {describe(found, decimals)}.{paper}")


def table_findings(
    claims: Iterable[Claim], reported: Mapping[str, ReportedTable], cells: Sequence[Cell]
) -> list[Finding]:
    """The paper's comparisons between two of its own rows, as far as this project runs both."""
    findings = []
    for claim in claims:
        source = reported[claim.table]
        pair = [_claimed(claim, match, source, cells) for match in (claim.better, claim.worse)]
        if all(cell.provenance != "quoted" for cell in pair):
            title = f"{claim.title} ({ordinal(claim.table)}, {heading(claim.column)})"
            findings.append(compare(title, *pair, source.decimals(claim.column)))
    return findings


def _claimed(claim: Claim, match: dict, source: ReportedTable, cells: Sequence[Cell]) -> Cell:
    """The cell of the one reported row that ``match`` selects."""
    (index,) = source.matching(match)
    rows = list(dict.fromkeys(cell.row for cell in cells if cell.table == claim.table))
    return next(
        cell for cell in cells if (cell.table, cell.row, cell.column) == (claim.table, rows[index], claim.column)
    )


def trend_findings(points: Sequence[tuple[int, Cell]], decimals: int) -> list[Finding]:
    """What a trend figure shows: its last point against the first and the first trained one, and every step between.

    ``points`` are (pre-training steps, cell) in the order of the figure; 0 steps stands for untrained weights.
    """
    ordered = [cell for _, cell in sorted(points, key=lambda point: point[0])]
    trained = [cell for steps, cell in sorted(points, key=lambda point: point[0]) if steps]
    findings = []
    if len(trained) < len(ordered):
        findings.append(compare("Pre-training matters", ordered[-1], ordered[0], decimals))
    if len(trained) > 1:
        findings.append(compare("Longer pre-training is better", trained[-1], trained[0], decimals))
    if len(ordered) > 2:
        findings.append(_monotone([cell for cell in ordered if cell.values], decimals))
    return findings


def _monotone(cells: Sequence[Cell], decimals: int) -> Finding:
    title = "The curve rises at every step"
    steps = list(pairwise(cells))
    if not steps:
        return Finding(title, "not run", "Fewer than two points are measured.")
    better_is = -1 if cells[0].metric in LOWER_IS_BETTER else 1
    falls = [(a, b) for a, b in steps if (b.value - a.value) * better_is <= 0]
    if not falls:
        return Finding(title, "holds", f"All {len(steps)} steps between the means improve.")
    worst = ", ".join(f"'{a.row}' to '{b.row}' ({signed(b.value - a.value, decimals)})" for a, b in falls)
    rest = f"{len(steps) - len(falls)} of {len(steps)} steps between the means improve"
    return Finding(title, "does not hold", f"{rest}; these do not: {worst}.")
